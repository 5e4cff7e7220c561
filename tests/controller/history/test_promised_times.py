"""Times that the documentation promises of nodes, plans and processes: on either side of each, and at it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.api.sections.adaptation_spec import Adaptation
from splitinference.controller.cluster_state.segment_probes import Doubt, Proofs
from splitinference.controller.history.adaptation_state import Distrust, Recall
from splitinference.controller.kube_values.start_failures import Limits, hindrance
from splitinference.controller.spec_to_core.policy import policy

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 24 * 3600.0


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(("seconds", "avoided"), [(0, True), (DAY - 0.1, True), (DAY, False), (DAY + 0.1, False)])
def test_a_node_with_a_wrong_output_is_avoided_for_24_hours(seconds: float, avoided: bool):
    recall = Recall(distrusted={"a": Distrust(since=NOW, why="s gave a wrong output")})
    assert ("a" in recall.distrusted_now(at(seconds))) is avoided
    assert ("a" in recall.quarantined(at(seconds))) is avoided
    if avoided:
        assert recall.distrusted_now(at(seconds))["a"] == "s gave a wrong output; the node is avoided until 2026-01-02 00:00 UTC"


@pytest.mark.parametrize(("seconds", "kept"), [(DAY - 0.1, True), (DAY, False)])
def test_a_plan_that_was_rejected_is_not_proposed_for_24_hours(seconds: float, kept: bool):
    assert ("p" in Recall(rejected={"p": NOW}).rejected_now(at(seconds))) is kept


@pytest.mark.parametrize(
    ("seconds", "times", "sure"), [(5, 3, True), (4.9, 3, False), (5, 2, False), (60, 2, False), (5.1, 4, True), (4.9, 100, False)]
)
def test_a_process_is_given_up_after_5_seconds_and_three_tries(seconds: float, times: int, sure: bool):
    for kind in ("dead", "lost"):
        doubt = Doubt(**{"since": NOW, "times": times, "why": "no route", "dead": False, "served": True, kind: True})
        proofs = Proofs(doubts={"s/0": doubt})
        assert proofs.broken(at(seconds)) == ({"s/0": "no route"} if sure else {}), kind
        assert proofs.lost(at(seconds)) == (frozenset({"s/0"}) if sure and kind == "lost" else frozenset()), kind


def test_one_that_is_only_slow_is_never_given_up():
    slow = Doubt(since=NOW, times=100, why="it took 9 s", dead=False, served=True)
    assert Proofs(doubts={"s/0": slow}).broken(at(3600)) == {}


def unscheduled(reason: str = "Unschedulable") -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": reason, "message": "no room", "lastTransitionTime": NOW.isoformat()}
    return {"metadata": {"name": "s", "creationTimestamp": NOW.isoformat()}, "spec": {}, "status": {"conditions": [condition]}}


@pytest.mark.parametrize(("seconds", "lasts"), [(19.9, False), (20.1, True)])
def test_a_segment_that_cannot_be_scheduled_for_20_seconds_makes_its_node_avoided(seconds: float, lasts: bool):
    found = hindrance(unscheduled(), "segment", at(seconds), Limits(failure_seconds=60, start_seconds=600), "")
    assert found is not None
    assert found.lasts(at(seconds)) is lasts
    gated = hindrance(unscheduled("SchedulingGated"), "segment", at(seconds), Limits(failure_seconds=60, start_seconds=600), "")
    assert gated is not None
    assert not gated.lasts(at(99_999)), "a gate is another controller's matter"


@pytest.mark.parametrize(("window", "review"), [("10s", 30), ("29s", 30), ("30s", 30), ("31s", 31), ("60s", 60), ("5m", 300)])
def test_the_operator_searches_once_per_window_but_not_more_often_than_every_30_seconds(window: str, review: float):
    assert policy(Adaptation.model_validate({"window": window})).review == timedelta(seconds=review)


def test_a_move_must_pay_within_ten_minutes_and_the_other_times_are_those_of_the_documentation():
    found = policy(Adaptation())
    assert found.payback == found.obstacle == found.stabilization == timedelta(minutes=10)
    assert found.retry == timedelta(seconds=15)
    assert (found.link_factor, found.link_floor_ms) == (2.0, 2.0)
    assert found.spacing == found.window / found.confirmations
