"""A slow machine is waited for as long as something goes on; a stuck one is not."""

import itertools

import pytest

from e2e import stack
from e2e.demo import agreement, errors, totals
from e2e.stack import NotInTime, until

PLAN = {
    "revision": "r1",
    "bound": 2000.0,
    "gap": 0.0,
    "segments": [{"name": "s0", "predictedMs": 40.0}, {"name": "s1", "predictedMs": 20.0}],
    "predicted": {"timeToFirstTokenMs": 90.0, "timePerOutputTokenMs": 20.0, "latencyMs": 1300.0},
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second passes with each look at the clock, and none while it sleeps."""
    ticks = itertools.count()
    monkeypatch.setattr(stack.time, "monotonic", lambda: float(next(ticks)))
    monkeypatch.setattr(stack.time, "sleep", lambda _: None)


def counted(true_at: int):
    calls = itertools.count()
    return lambda: next(calls) >= true_at


@pytest.mark.usefixtures("clock")
def test_what_stands_still_is_given_up():
    with pytest.raises(NotInTime, match="the moon: not after"):
        until(lambda: None, 10, "the moon")
    with pytest.raises(NotInTime):
        until(counted(1000), 10, "it", progress=lambda: "always the same")


@pytest.mark.usefixtures("clock")
def test_what_goes_on_is_waited_for_however_slow():
    steps = itertools.count()
    assert until(counted(300), 10, "it", progress=lambda: next(steps)) is True


@pytest.mark.usefixtures("clock")
def test_what_goes_round_in_circles_is_given_up_too():
    steps = itertools.count()
    with pytest.raises(NotInTime):
        until(lambda: False, 10, "it", progress=lambda: next(steps))


def test_the_demo_says_how_far_both_answers_agree():
    assert agreement("a b  c", "a b c ") == "word for word the same"
    assert agreement("a b c", "a b d") == "the first 2 words are the same"
    assert agreement("a b", "a b c") == "the first 2 words are the same"


def test_observed_times_stand_beside_predicted_ones_if_they_are_of_this_plan():
    found = {"status": {"plan": PLAN, "observed": {"revision": "old"}}}
    assert "observed" not in totals(found)
    found["status"]["observed"] = {
        "revision": "r1",
        "requests": 7,
        "timeToFirstTokenMs": {"p50": 100.0},
        "timePerOutputTokenMs": {"p50": 25.0},
    }
    assert totals(found).splitlines()[1] == "observed: first token 100.0 ms, then 25.0 ms per token, in the median of 7 requests"


def test_the_demo_says_by_how_much_each_stage_differs():
    stages = {"s0": {"computeMs": 50.0}, "s1": {"computeMs": 10.0}}
    found = {"status": {"plan": PLAN, "observed": {"revision": "r1", "requests": 7, "stages": stages}}}
    assert errors(found) == [0.25, 0.5]
    assert totals(found).splitlines()[-1] == "decode steps, predicted and observed, differ by 25%, 50%"
    del stages["s1"]
    assert errors(found) == [0.25]
