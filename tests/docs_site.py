"""MkDocs' hook: the pages are written for GitHub, and the site shows them as GitHub does.

- Links to files of the repository that are no pages: the file must be there. The site shows its path, or a link if
  SPLITINFERENCE_REPOSITORY_URL has the address of the repository.
- A list may follow a paragraph without an empty line.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
URL = os.environ.get("SPLITINFERENCE_REPOSITORY_URL", "").rstrip("/")
_LINK = re.compile(r"\[(?P<text>(?:[^\]\[]|\[[^\]]*\])*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_ITEM = re.compile(r"^([-*]|\d+\.) ")


class LeadsNowhereError(ValueError):
    """A link to a file that is not there."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page's text, as Python-Markdown understands it."""
    from mkdocs.exceptions import PluginError  # the tests of this module need no MkDocs

    try:
        return lists_apart(links_inside(markdown, page.file.src_uri))
    except LeadsNowhereError as error:
        raise PluginError(str(error)) from error


def links_inside(markdown: str, page: str) -> str:
    """Links that lead out of docs/ become paths or absolute links. Raises LeadsNowhereError."""

    def replaced(found: re.Match[str]) -> str:
        target = found["target"]
        if re.match(r"[a-z]+:", target) or target.startswith("/"):
            return found[0]
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/") and path.endswith((".md", ".svg", ".png", ".json")):
            return found[0]
        if path.startswith("..") or not (ROOT / path).exists():
            raise LeadsNowhereError(f"{page}: the link to {target} leads nowhere")
        if path == "README.md":
            return f"[{found['text']}]({posixpath.relpath('index.md', posixpath.dirname(page) or '.')})"
        return f"[{found['text']}]({URL}/blob/main/{path}{found['anchor'] or ''})" if URL else f"{found['text']} (`{path}`)"

    return _outside_code(markdown, lambda line: _LINK.sub(replaced, line))


def lists_apart(markdown: str) -> str:
    """An empty line before each list that has none."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        before = lines[-1] if lines else ""
        if not fenced and _ITEM.match(line) and before.strip() and not _ITEM.match(before) and not before.startswith(" "):
            lines.append("")
        if _FENCE.match(line):
            fenced = not fenced
        lines.append(line)
    return "\n".join(lines) + "\n"


def _outside_code(markdown: str, change: Any) -> str:
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        fence = bool(_FENCE.match(line))
        lines.append(line if fenced or fence else change(line))
        fenced ^= fence
    return "\n".join(lines) + "\n"
