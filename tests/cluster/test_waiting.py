"""A slow machine is waited for as long as something goes on; a stuck one is not."""

import itertools
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from e2e import scene, stack
from e2e.demo import agreement, busy_machine, errors, totals
from e2e.stack import NotInTimeError, until

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
    with pytest.raises(NotInTimeError, match="the moon: not after"):
        until(lambda: None, 10, "the moon")
    with pytest.raises(NotInTimeError):
        until(counted(1000), 10, "it", progress=lambda: "always the same")


@pytest.mark.usefixtures("clock")
def test_what_goes_on_is_waited_for_however_slow():
    steps = itertools.count()
    assert until(counted(300), 10, "it", progress=lambda: next(steps)) is True


@pytest.mark.usefixtures("clock")
def test_what_goes_round_in_circles_is_given_up_too():
    steps = itertools.count()
    with pytest.raises(NotInTimeError):
        until(lambda: False, 10, "it", progress=lambda: next(steps))


NOW = datetime(2026, 11, 30, 12, 0, tzinfo=UTC)


def a_resource(mode: str, *, moved: timedelta = timedelta(hours=1), memory: dict[str, Any] | None = None) -> dict[str, Any]:
    said = {"Ready": ("True", ""), "Progressing": ("False", "Settled"), "MetricsAvailable": ("True", "")}
    return {
        "metadata": {"generation": 2},
        "spec": {"adaptation": {"mode": mode}},
        "status": {
            "observedGeneration": 2,
            "adaptation": {"moves": [(NOW - moved).isoformat()], "memory": memory or {}},
            "conditions": [{"type": kind, "status": s, "reason": r, "message": "until 12:10"} for kind, (s, r) in said.items()],
        },
    }


def unrest(found: dict[str, Any], *, ending: bool = False) -> list[str]:
    return scene.unrest_of(found, ending=ending, now=NOW)


def test_what_a_test_waits_for_before_it_disturbs_has_words():
    assert unrest(a_resource("Auto")) == []
    (window,) = unrest(a_resource("Auto", memory={"stabilizing": {"since": None}}))
    assert window == "a stabilization window: until 12:10"
    (cooldown,) = unrest(a_resource("Auto", moved=timedelta(seconds=5)))
    assert "cooldown" in cooldown
    assert unrest(a_resource("Auto", memory={"watches": {"BetterPlan": {}}})) == ["a reason for another plan is being confirmed"]
    assert unrest(a_resource("Auto"), ending=True) == ["a pod is being ended"]


def test_nobody_waits_for_optional_moves_where_there_are_none():
    found = a_resource("Frozen", moved=timedelta(seconds=5), memory={"stabilizing": {"since": None}, "watches": {"BetterPlan": {}}})
    assert unrest(found) == []
    found["status"]["observedGeneration"] = 1
    assert unrest(found) == ["not settled: until 12:10"]


@pytest.mark.usefixtures("clock")
def test_a_cluster_that_does_not_come_to_rest_is_given_up_with_what_is_left(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []

    class AnyCluster:
        progress = type("Progress", (), {"say": lambda _, text: said.append(text)})()

    monkeypatch.setattr(scene, "unrest", lambda _: ["a stabilization window: until 12:10"])
    monkeypatch.setattr(stack, "circumstances", lambda *_: ["Ready=True"])
    with pytest.raises(NotInTimeError, match=r"(?s)a stabilization window: until 12:10.*Ready=True"):
        scene.comes_to_rest(AnyCluster())  # type: ignore[arg-type]
    assert said == ["before anything is disturbed: a stabilization window: until 12:10"]


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


def test_a_stage_that_computes_next_to_nothing_says_nothing_of_the_prediction():
    plan = {**PLAN, "segments": [{"name": "s0", "predictedMs": 1.2}, {"name": "s1", "predictedMs": 20.0}]}
    stages = {"s0": {"computeMs": 0.2}, "s1": {"computeMs": 25.0}}
    assert errors({"status": {"plan": plan, "observed": {"revision": "r1", "requests": 7, "stages": stages}}}) == [0.25]


def test_load_beside_the_cluster_computes_and_ends_with_the_demo():
    def seconds(pid: int) -> float:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    with busy_machine(1) as (pid,):
        before, spent = time.monotonic(), seconds(pid)
        while seconds(pid) < spent + 0.2:
            assert time.monotonic() - before < 300, "it does not compute"
            time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
