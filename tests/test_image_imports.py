"""What any file imports from the images' packages is there: tests are not type-checked, and those of the segment run in its image only."""

import ast
import re
from functools import cache
from pathlib import Path

from splitinference_modelfiles.rules.families import DECODERS, ENCODERS

ROOT = Path(__file__).parents[1]
PACKAGES = {f"splitinference_{name}": ROOT / "images" / name / f"splitinference_{name}" for name in ("segment", "gateway", "protocol")}
FOLDERS = ("operator", "images", "tests", "e2e")


@cache
def defined(module: str) -> frozenset[str] | None:
    """Names that a module of the images defines anywhere, or imports; None: there is no such module."""
    package, *parts = module.split(".")
    base = PACKAGES[package].joinpath(*parts)
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    if not path.exists():
        return None
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                found |= {(alias.asname or alias.name).partition(".")[0] for alias in names}
    if path.name == "__init__.py":
        found |= {child.stem for child in path.parent.iterdir()}
    return frozenset(found)


def test_every_name_that_is_imported_exists() -> None:
    missing = []
    for path in (path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or node.level or (node.module or "").partition(".")[0] not in PACKAGES:
                continue
            there = defined(str(node.module))
            lost = [str(node.module)] if there is None else [f"{node.module}.{a.name}" for a in node.names if a.name not in there]
            missing += [f"{path.relative_to(ROOT)}:{node.lineno}: {name}" for name in lost]
    assert missing == []


def test_a_name_that_was_moved_would_be_found() -> None:
    assert "KvEntry" in (defined("splitinference_segment.cache.kv") or ())
    assert "KvShape" not in (defined("splitinference_segment.cache.kv") or ())
    assert defined("splitinference_segment.nothing") is None


def test_the_image_keeps_the_models_of_every_family_that_is_served() -> None:
    kept = (ROOT / "images/segment/trim_transformers.py").read_text("utf-8").lower()
    lost = [name for name in (*DECODERS, *ENCODERS) if f" {re.sub('[_-]|text', '', name)}for" not in kept and name != "gpt2"]
    assert lost == []
    assert " gpt2lmheadmodel" in kept
