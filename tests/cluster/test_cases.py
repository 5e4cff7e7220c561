"""The command that plays what clusters do: which rows it plays, and that what goes wrong is a row and not the end."""

import base64
import json
import re
import ssl
import urllib.request
from pathlib import Path
from typing import Any, cast

import pytest

from e2e.cluster import Cluster
from e2e.cluster_cases import case as cases
from e2e.cluster_cases.__main__ import chosen, main, table
from e2e.cluster_cases.case import CASES, Case, Result, played, shown_by
from e2e.cluster_cases.webhook import webhook
from e2e.stack import NotInTimeError

NOWHERE = cast(Cluster, None)
ROOT = Path(__file__).parents[2]


def test_all_rows_are_played_in_order_unless_some_are_named():
    assert [each.row for each in chosen([], quick=False)] == sorted(each.row for each in CASES)
    assert {each.row for each in chosen(["7"], quick=False)} == {7}
    assert all(each.quick for each in chosen([], quick=True))
    assert len(chosen([], quick=True)) < len(CASES)


@pytest.mark.parametrize("word", ["99", "seven"])
def test_a_row_that_is_none_is_said(capsys: pytest.CaptureFixture[str], word: str):
    assert main([word, "--list"]) == 2
    assert word in capsys.readouterr().err


def test_the_list_plays_nothing(capsys: pytest.CaptureFixture[str]):
    assert main(["--list"]) == 0
    assert "the gateway's objects are deleted" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [NotInTimeError("another service: not after 60 s"), AssertionError("two moves")])
def test_what_goes_wrong_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, wrong: Exception):
    monkeypatch.setattr(cases, "serves", lambda _: {})

    def play(_: Cluster) -> str:
        raise wrong

    result = played(Case(1, "x", "y", play), NOWHERE)
    assert (result.ok, result.happened) == (False, str(wrong))
    well = played(Case(1, "x", "y", lambda _: "it did"), NOWHERE)
    assert (well.ok, well.happened) == (True, "it did")


def test_a_case_after_which_nothing_serves_is_not_ok(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []

    def serves(_: Cluster) -> dict[str, Any]:
        calls.append(1)
        if len(calls) == 2:
            raise NotInTimeError("si/chat is Ready: not after 480 s")
        return {}

    monkeypatch.setattr(cases, "serves", serves)
    result = played(Case(1, "x", "y", lambda _: "it did"), NOWHERE)
    assert not result.ok
    assert "si/chat is Ready" in result.happened


def test_the_table_has_a_line_for_each():
    made = table([Result(each, "seen", ok=True) for each in CASES])
    assert made.row_count == len(CASES)


def test_every_row_of_the_table_is_there():
    assert {each.row for each in CASES} >= set(range(1, 18))


@pytest.mark.parametrize("name", sorted({name for each in CASES for name in each.tests}))
def test_rows_that_tests_show_name_tests_that_exist(name: str):
    file, _, function = name.partition("::")
    text = (ROOT / file).read_text()
    assert re.search(rf"^(async )?def {function or 'test_'}", text, re.MULTILINE)


@pytest.mark.parametrize(("name", "ok"), [("test_it_holds", True), ("test_it_does_not", False), ("test_nobody_wrote", False)])
def test_a_row_that_a_test_shows_is_as_the_test_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ok: bool):
    file = tmp_path / "test_shown.py"
    file.write_text("def test_it_holds():\n    pass\n\n\ndef test_it_does_not():\n    assert 1 == 2\n")
    monkeypatch.setattr(cases, "CASES", [])
    shown_by(1, "x", "y", f"{file}::{name}")
    (case,) = cases.CASES
    found = played(case, NOWHERE)
    assert found.ok is ok
    assert ("1 passed" in found.happened) is ok
    assert not case.quick


def test_a_webhook_answers_whoever_trusts_its_certificate_and_changes_what_it_is_told_to():
    patch = [{"op": "add", "path": "/metadata/labels", "value": {"a": "b"}}]
    with webhook("127.0.0.1", lambda obj: patch if obj["kind"] == "Pod" else []) as where:
        context = ssl.create_default_context(cadata=base64.b64decode(where["caBundle"]).decode())

        def asked(kind: str) -> dict[str, Any]:
            body = json.dumps({"request": {"uid": "u", "object": {"kind": kind}}}).encode()
            with urllib.request.urlopen(urllib.request.Request(where["url"], body), context=context, timeout=60) as answer:
                found: dict[str, Any] = json.load(answer)
                return found

        response = asked("Pod")["response"]
        assert (response["uid"], response["allowed"], response["patchType"]) == ("u", True, "JSONPatch")
        assert json.loads(base64.b64decode(response["patch"])) == patch
        assert asked("Service")["response"] == {"uid": "u", "allowed": True}
