"""Whoever types what the documentation shows meets no unknown verb, option, value or target."""

import re
from typing import Any

import pytest
import yaml

from tests.guides import ROOT, Found, commands, options, words_of

ALL = list(commands())
VALUES: dict[str, Any] = yaml.safe_load((ROOT / "charts/splitinference/values.yaml").read_text("utf-8"))
FREE = ("global", "extraSettings", "labels", "annotations")
"""Maps of values whose keys are anybody's."""


def ours(words: list[str]) -> list[str] | None:
    """The words after the program's name where it is our command line."""
    name = words[0].rpartition("/")[2]
    if name in ("splitinference", "kubectl-split"):
        return words[1:]
    return words[2:] if words[:2] == ["kubectl", "split"] else None


def faults(words: list[str]) -> list[str]:
    """Of a command of ours."""
    known = options()
    verb = next((v for v in (" ".join(words[:2]), words[0] if words else "") if v in known), None)
    if verb is None:
        return [f"no verb {words[:2]}"] if words and not words[0].startswith("-") else []
    given = [word.partition("=")[0] for word in words[len(verb.split()) :] if re.match(r"--?[a-zA-Z]", word)]
    return [f"{verb} has no option {option}" for option in given if option not in known[verb]]


def value_faults(words: list[str]) -> list[str]:
    """Of helm: values that the chart does not have."""
    found = []
    for index, word in enumerate(words[:-1]):
        if word in ("--set", "--set-string"):
            place: Any = VALUES
            for name in re.split(r"(?<!\\)\.", words[index + 1].partition("=")[0]):
                if name in FREE or re.match(r".*\[", name):
                    break
                if not isinstance(place, dict) or name not in place:
                    found.append(f"the chart has no value {words[index + 1].partition('=')[0]}")
                    break
                place = place[name]
    return found


@pytest.mark.parametrize("page", sorted({found.page for found in ALL}))
def test_every_command_that_a_page_shows_exists(page: str):
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    wrong = []
    for found in (each for each in ALL if each.page == page):
        for words in words_of(found.text):
            if (rest := ours(words)) is not None:
                wrong += faults(rest)
            elif words[0] == "helm":
                wrong += value_faults(words)
            elif words[0] == "make":
                wrong += [f"no target {word}" for word in words[1:] if "=" not in word and word not in targets]
    assert wrong == []


def test_files_of_the_repository_that_commands_name_are_there():
    folders = ("charts/", "config/", "crds/", "docs/", "images/")
    named = [(found, word) for found in ALL for words in words_of(found.text) for word in words if word.startswith(folders)]
    assert [(found.page, word) for found, word in named if not (ROOT / word).exists()] == []


@pytest.mark.parametrize(
    "text",
    [
        "kubectl split stauts chat",
        "kubectl split logs chat --grep x",
        "splitinference calibrate fit --output x",
        "kubectl split drain n --never",
    ],
)
def test_a_wrong_command_would_be_found(text: str):
    (words,) = words_of(Found("x", text).text)
    assert faults(ours(words) or [])


def test_a_wrong_value_would_be_found():
    assert value_faults(["helm", "install", "--set", "page.enable=true"])
    assert not value_faults(["helm", "install", "--set", "page.enabled=true", "--set", "serviceMonitor.labels.team=x"])
