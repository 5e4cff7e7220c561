"""Checks prose with Vale: README, docs, changelog, the chart's values, and every message of the operator, the gateway and the segments.

    python -m tests.prose

Vale is built once, by Go, from the pinned version of its module into the cache (or `VALE` names a program). The rules are in
.vale.ini and .vale/styles. Messages and comments of values are written to build/prose first, because Vale reads whole files. The exit
status is Vale's: 1 when a rule of level `error` is broken.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULE, VERSION = "github.com/vale-cli/vale/v3/cmd/vale", "v3.21.0"
EXTRACTED = ROOT / "build/prose"
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs")
SOURCES = ("operator", "images")
LEAST_WORDS = 4
"""Shorter strings are names, units and parts of sentences."""


def vale() -> str:
    """The path of the program. Raises FileNotFoundError without Go, CalledProcessError when the build fails."""
    if named := os.environ.get("VALE"):
        return named
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitinference" / f"bin-vale-{VERSION}"
    if not (cache / "vale").exists():
        go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
        if go is None:
            raise FileNotFoundError(
                "Vale is built by Go, which is missing: install it from https://go.dev/dl, or set VALE to a vale program."
            )
        sys.stderr.write(f"building vale {VERSION} (some minutes, once)\n")
        environment = os.environ | {"GOBIN": str(cache), "GOFLAGS": "-buildvcs=false -modcacherw"}
        subprocess.run([go, "install", f"{MODULE}@{VERSION}"], env=environment, cwd=cache.parents[1], check=True)
    return str(cache / "vale")


def _text(node: ast.expr) -> str:
    """A string or an f-string as prose: `N` in the place of each value."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join("N" if isinstance(part, ast.FormattedValue) else _text(part) for part in node.values)
    return ""


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a module that reads like a sentence. Docstrings, code and patterns are left out."""
    tree = ast.parse(source)
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
            text = _text(node).strip()
            words = re.findall(r"(?<![\w.$%/-])[A-Za-z][a-z']*(?![\w(=/])", text)
            if len(words) >= LEAST_WORDS and not re.search(r"[<>|\\]|\n|\$|\(\?|==|://|\bby \(", text):
                yield node.lineno, text


def descriptions(values: str) -> Iterator[tuple[int, str]]:
    """Line and text of every comment of the chart's values; lines of one comment are joined."""
    found: list[tuple[int, list[str]]] = []
    for number, line in enumerate(values.splitlines(), 1):
        if not (comment := re.match(r"\s*# ?(.*)", line)):
            found.append((number, []))
        elif found and found[-1][1]:
            found[-1][1].append(comment[1])
        else:
            found.append((number, [comment[1]]))
    return ((number, " ".join(lines)) for number, lines in found if lines)


def extract() -> None:
    """Write what is no page of its own to build/prose: one item for each text, after a heading with its file."""
    shutil.rmtree(EXTRACTED, ignore_errors=True)
    EXTRACTED.mkdir(parents=True)
    pages = {"messages.md": (messages, [path for folder in SOURCES for path in sorted((ROOT / folder).rglob("*.py"))])}
    pages["values.md"] = (descriptions, [ROOT / "charts/splitinference/values.yaml"])
    for name, (texts, paths) in pages.items():
        lines = []
        for path in paths:
            items = [f"- {text} (`{line}`)" for line, text in texts(path.read_text("utf-8"))]
            lines += [f"# `{path.relative_to(ROOT)}`", "", *items, ""] if items else []
        (EXTRACTED / name).write_text("\n".join(lines), "utf-8")


def main() -> int:
    """Extract, then let Vale judge."""
    extract()
    return subprocess.run([vale(), *sys.argv[1:], *PAGES, str(EXTRACTED.relative_to(ROOT))], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
