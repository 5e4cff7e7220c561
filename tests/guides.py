"""What the documentation tells people to type and to apply: commands of console blocks, and manifests of YAML blocks."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<kind>console|yaml)\n(?P<text>.*?)^ *```", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """A part of a page: `text` is a command on one line, or YAML."""

    page: str
    text: str


def pages() -> list[Path]:
    """README, the chart's page, and the documentation but its record of decisions."""
    docs = [path for path in sorted((ROOT / "docs").rglob("*.md")) if "decisions" not in path.parts]
    return [ROOT / "README.md", ROOT / "charts/splitinference/README.md", *docs]


def blocks(kind: str) -> Iterator[Found]:
    """Blocks of one kind, without the indentation of lists."""
    for page in pages():
        for block in _BLOCK.finditer(page.read_text("utf-8")):
            if block["kind"] == kind:
                indent = block["indent"]
                lines = (line.removeprefix(indent) for line in block["text"].splitlines())
                yield Found(str(page.relative_to(ROOT)), "\n".join(lines))


def commands() -> Iterator[Found]:
    """What stands after `$ `, with continued lines joined."""
    for block in blocks("console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield Found(block.page, line.removeprefix("$ "))


def manifests() -> Iterator[tuple[Found, dict[str, Any]]]:
    """Whole objects of YAML blocks."""
    for block in blocks("yaml"):
        for thing in yaml.safe_load_all(block.text):
            if isinstance(thing, dict) and "apiVersion" in thing and "kind" in thing and "metadata" in thing:
                yield block, thing


@cache
def options() -> dict[str, frozenset[str]]:
    """Options of each verb of the command line, as its generated page has them: `bench serve` → {--quick, …}."""
    found: dict[str, set[str]] = {}
    verb = ""
    for line in (ROOT / "docs/reference/cli.md").read_text("utf-8").splitlines():
        if usage := re.match(r"Usage: kubectl split ([a-z-]+(?: [a-z-]+)?)", line):
            verb = usage[1]
            found[verb] = set()
        elif verb and (head := re.match(r"  (-[^ ].*?)(?:  |$)", line)):
            found[verb] |= set(re.findall(r"--?[a-zA-Z][\w-]*", head[1]))
    return {name: frozenset(known) for name, known in found.items()}


def words_of(command: str) -> list[list[str]]:
    """The commands of a line, each as its words; variables before them left out."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = ""
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            parts.append([])
        elif word.startswith("#") and not parts[-1]:
            break
        elif not (not parts[-1] and re.match(r"^[A-Z_]+=", word)):
            parts[-1].append(word)
    return [part for part in parts if part]
