"""One word for one thing: names of classes, of exceptions, and of what other modules use."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

import pytest

from tests.test_repository import ROOT, tracked

ONCE_PER_LAYER = ("Resource", "Stage", "Segment", "Observed", "Chain", "Route", "Mode", "Strategy", "Manifest", "Plan", "Pipeline")
LAYERS = {
    **{f"operator/splitinference/{name}": name for name in ("core", "controller", "adapters", "view", "ui", "simulation", "cli", "probe")},
    **{f"images/{name}": name for name in ("protocol", "gateway", "segment")},
}
OURS = {
    "splitinference",
    "splitinference_modelfiles",
    "splitinference_protocol",
    "splitinference_gateway",
    "splitinference_segment",
    "tests",
    "e2e",
}


@cache
def sources() -> dict[str, ast.Module]:
    paths = [path for path in tracked("*.py") if path.exists()]
    return {PurePosixPath(path.relative_to(ROOT)).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def layer(path: str) -> str | None:
    return next((name for folder, name in LAYERS.items() if path.startswith(f"{folder}/")), None)


def defined(trees: dict[str, ast.Module]) -> dict[tuple[str, str], list[str]]:
    """The files that define a class, or an alias of a type, of each of the words, by word and layer."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for path, tree in trees.items():
        names = [node.name for node in classes(tree)]
        names += [
            target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
        ]
        for name in names:
            if name in ONCE_PER_LAYER and (of := layer(path)) is not None:
                found[name, of].append(path)
    return found


def exceptions(trees: dict[str, ast.Module]) -> set[str]:
    """Names of all classes that are exceptions, directly or by a base of ours."""
    bases = defaultdict(set)
    for tree in trees.values():
        for node in classes(tree):
            bases[node.name] |= {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    found = {"BaseException", "Exception"}

    def raised(name: str) -> bool:
        return name in found or name.endswith(("Error", "Exception")) or name in ("KeyboardInterrupt", "SystemExit")

    while more := {name for name, of in bases.items() if name not in found and any(map(raised, of))}:
        found |= more
    return found & set(bases)


def foreign_privates(trees: dict[str, ast.Module]) -> list[str]:
    """Imports of names that another module keeps to itself."""
    return [
        f"{path}: {node.module}.{alias.name}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def test_a_word_of_the_glossary_names_one_class_in_each_layer() -> None:
    assert {key: paths for key, paths in defined(sources()).items() if len(paths) > 1} == {}


def test_exceptions_end_in_error() -> None:
    assert [name for name in sorted(exceptions(sources())) if not name.endswith("Error")] == []


def test_no_module_imports_what_another_keeps_to_itself() -> None:
    assert foreign_privates(sources()) == []


@pytest.mark.parametrize(
    ("first", "second", "twice"),
    [
        ("class Stage: ...", "class Stage: ...", True),
        ("class Stage: ...", "Stage = tuple[int, int]", True),
        ("class Stage: ...", "class StageCost: ...", False),
    ],
)
def test_a_second_class_of_a_word_is_found(first: str, second: str, twice: bool) -> None:
    trees = {f"operator/splitinference/core/{name}.py": ast.parse(text) for name, text in (("a", first), ("b", second))}
    assert any(len(paths) > 1 for paths in defined(trees).values()) is twice


def test_exceptions_are_found_by_their_bases() -> None:
    named = ("Busy(Exception)", "Full(Busy)", "Gone(BaseException)", "Late(asyncio.TimeoutError)", "Plan(Value)")
    text = "\n".join(f"class {name}: ..." for name in named)
    assert exceptions({"a.py": ast.parse(text)}) == {"Busy", "Full", "Gone", "Late"}


def test_imports_of_private_names_are_found() -> None:
    text = "from splitinference.core.cost import _a\nfrom tests.x import __all__, b\nfrom _pytest.runner import _c"
    assert foreign_privates({"a.py": ast.parse(text)}) == ["a.py: splitinference.core.cost._a"]
