"""What clients saw, counted rightly; and when they are silent."""

import threading

import pytest

from e2e import traffic
from e2e.traffic import BURSTY, STEADY, Report, Request, Traffic


def a_request(started: float, *tokens_at: float, error: str | None = None) -> Request:
    return Request("?", started, tokens_at, "", error)


def test_steady_clients_are_never_silent():
    assert [STEADY.silence(seconds) for seconds in (0, 5, 100)] == [0, 0, 0]


@pytest.mark.parametrize(("seconds", "silence"), [(0, 0), (5.9, 0), (6, 8), (13, 1), (14, 0), (21, 7)])
def test_bursts_come_and_go(seconds: float, silence: float):
    assert BURSTY.silence(seconds) == silence


def test_a_wait_for_the_first_token_is_a_wait_but_no_gap():
    report = Report((a_request(0, 9, 10, 12), a_request(5, 6, 7)))
    assert (report.longest_gap, report.longest_wait) == (2, 9)


def test_gaps_of_a_while_are_those_open_in_it():
    report = Report((a_request(0, 1, 2, 12, 13),))
    assert report.gap_percentile(1.0) == 10
    assert report.gap_percentile(1.0, 5, 6) == 10
    assert report.gap_percentile(1.0, 12.5) == 1
    assert report.gap_percentile(1.0, 20) == 0


def test_a_request_belongs_to_every_while_in_which_it_was_under_way():
    long, short = a_request(0, 1, 50), a_request(20, 21)
    report = Report((long, short))
    assert report.within(30, 40).requests == (long,)
    assert report.within(10, 25).requests == (long, short)


def test_an_error_is_counted_with_what_came_before_it():
    report = Report((a_request(0, 1, error="gone"), a_request(0, 1)))
    assert [request.error for request in report.failed] == ["gone"]
    assert report.tokens == 2


@pytest.mark.parametrize("wrong", [True, False])
def test_a_request_that_hangs_does_not_hide_what_went_wrong(monkeypatch: pytest.MonkeyPatch, wrong: bool):
    waited = []
    monkeypatch.setattr(threading.Thread, "join", lambda _, timeout: waited.append(timeout))
    clients = Traffic("http://127.0.0.1:1/v1", "m")
    clients._threads = [threading.Thread()]
    clients.__exit__(RuntimeError if wrong else None)
    assert (waited[0] <= traffic._AFTER_ERROR_SECONDS) is wrong
