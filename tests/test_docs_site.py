"""The documentation's site: how pages are changed for it, what its navigation has, and that the tutorial is what its script runs."""

import re

import pytest
import yaml

from e2e.tutorial import BEGIN, COMMANDS, END, PAGE, put, transcript
from tests import docs_site
from tests.test_repository import ROOT


class Loader(yaml.SafeLoader):
    """MkDocs' settings name Python objects; here only their names matter."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_links_out_of_the_pages_become_paths_or_links(monkeypatch: pytest.MonkeyPatch):
    text = "See [the code](../../operator/splitinference/__main__.py), [a page](../tutorial.md), [us](https://a.example/b) and `[x](y.py)`."
    found = docs_site.links_inside(text.replace(" and `[x](y.py)`", ""), "how-to/simulate.md")
    assert "the code (`operator/splitinference/__main__.py`)" in found
    assert "[a page](../tutorial.md)" in found
    assert "[us](https://a.example/b)" in found
    monkeypatch.setattr(docs_site, "URL", "https://git.example/us")
    assert "(https://git.example/us/blob/main/operator/splitinference/__main__.py)" in docs_site.links_inside(
        text[:66] + ")", "how-to/x.md"
    )
    assert docs_site.links_inside("[home](../../README.md)", "how-to/x.md") == "[home](../index.md)\n"


def test_a_link_that_leads_nowhere_is_an_error():
    with pytest.raises(docs_site.LeadsNowhereError, match=r"x.md: the link to ../operator/none.py leads nowhere"):
        docs_site.links_inside("[a](../operator/none.py)", "x.md")
    with pytest.raises(docs_site.LeadsNowhereError):
        docs_site.links_inside("[a](../../../etc/passwd)", "how-to/x.md")


def test_code_is_left_alone():
    text = "```python\n[a](../operator/none.py)\nx:\n- y\n```\n"
    assert docs_site.lists_apart(docs_site.links_inside(text, "x.md")) == text


def test_a_list_after_a_paragraph_is_a_list():
    assert docs_site.lists_apart("All:\n- a\n- b\n  more\n- c\n") == "All:\n\n- a\n- b\n  more\n- c\n"


def test_every_page_is_in_the_navigation_or_is_a_decision():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def pages(part: object) -> set[str]:
        if isinstance(part, str):
            return {part}
        inner = part.values() if isinstance(part, dict) else part
        return {page for each in inner for page in pages(each)}  # type: ignore[union-attr]

    there = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    listed = pages(settings["nav"])
    assert listed - there == set()
    assert {page for page in there - listed if not page.startswith("decisions/0")} == set(), "add it to nav in mkdocs.yml"


def test_the_tutorial_has_at_most_five_commands_and_each_is_explained():
    page = PAGE.read_text()
    assert len(COMMANDS) <= 5
    table = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(table) == len(COMMANDS)
    for shown, command in zip(table, COMMANDS, strict=True):
        assert command.startswith(shown.rstrip("…"))
    assert page.index(BEGIN) < page.index(END)


def test_a_transcript_is_put_between_its_marks_again_and_again():
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    block = transcript([("make demo", f"at {ROOT}/build\n", 61.0)])
    once = put(page, block)
    assert put(once, block) == once
    assert "old" not in once
    assert "$ make demo\nat ./build\n# 61 s" in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
