"""The command that plays what clusters do: which rows it plays, and that what goes wrong is a row and not the end."""

from typing import Any, cast

import pytest

from e2e.cluster import Cluster
from e2e.cluster_cases import case as cases
from e2e.cluster_cases.__main__ import chosen, main, table
from e2e.cluster_cases.case import CASES, Case, Result, played
from e2e.stack import NotInTime

NOWHERE = cast(Cluster, None)


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
    assert "the gateway's Service is deleted" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [NotInTime("another service: not after 60 s"), AssertionError("two moves")])
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
            raise NotInTime("si/chat is Ready: not after 480 s")
        return {}

    monkeypatch.setattr(cases, "serves", serves)
    result = played(Case(1, "x", "y", lambda _: "it did"), NOWHERE)
    assert not result.ok
    assert "si/chat is Ready" in result.happened


def test_the_table_has_a_line_for_each():
    made = table([Result(each, "seen", ok=True) for each in CASES])
    assert made.row_count == len(CASES)
