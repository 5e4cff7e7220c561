"""What came of a move: gains side by side, and whether it paid, where that can be said."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from splitinference.controller.history.adaptation_state import Promise, Recall
from splitinference.controller.reconcile.status.move_outcome import judge, outcome_of
from splitinference_protocol.report import ObservedTraffic, Percentiles
from tests.controller.story_kinds.test_calibration_stories import serving, steps
from tests.controller.world import Operator


def promise(before: float = 40.0, after: float = 30.0, seen: float | None = 50.0) -> Promise:
    return Promise(revision="r", predicted_before_ms=before, predicted_after_ms=after, observed_before_ms=seen)


@pytest.mark.parametrize(("after", "gain", "paid"), [(25.0, 50.0, True), (50.0, 0.0, False), (75.0, -50.0, False)])
def test_predicted_and_observed_gain_stand_side_by_side(after: float, gain: float, paid: bool):
    outcome, counted = outcome_of(promise(), after)
    assert (outcome["predictedGainPercent"], outcome["observedGainPercent"], outcome["paid"]) == (25.0, gain, paid)
    assert counted


def test_a_move_before_which_nothing_was_seen_is_not_said_to_have_paid():
    outcome, counted = outcome_of(promise(seen=None), 25.0)
    assert "paid" not in outcome
    assert "observedGainPercent" not in outcome
    assert not counted


def test_a_move_for_something_else_than_quicker_tokens_is_shown_and_not_counted():
    """For cost or energy tokens may well come slower: that was the bargain."""
    outcome, counted = outcome_of(promise(before=30.0, after=40.0), 60.0)
    assert (outcome["predictedGainPercent"], outcome["observedGainPercent"]) == (-33.3, -20.0)
    assert "paid" not in outcome
    assert not counted


def test_moves_that_paid_and_did_not_are_counted_over_restarts():
    world, operator = serving("a", "b", "c")
    first = steps(world, operator, 1, {})[0]
    steps(world, operator, 15, {first[0]: 5.0})
    steps(world, Operator(world), 2, {first[0]: 5.0})
    kept = world.status()["adaptation"]
    assert (kept["paid"], kept.get("unpaid", 0)) == (1, 0)
    outcome = world.status()["decisions"][0]["outcome"]
    assert 10 < outcome["predictedGainPercent"] <= outcome["observedGainPercent"], "what was not measured is not promised"


SETTLED = datetime(2026, 1, 1, tzinfo=UTC)


def seen(seconds: float, **more: Any) -> Any:
    """What a pass sees so many seconds after the move has settled: of all that, only what a verdict looks at."""
    given = {"requests": 5, "settled_at": SETTLED, "serving": "r", "reported": "r", "p50": 30.0, **more}
    traffic = ObservedTraffic(window_seconds=60, requests=given["requests"], time_per_output_token_ms=Percentiles(p50=given["p50"]))
    return SimpleNamespace(
        now=SETTLED + timedelta(seconds=seconds),
        recall=Recall(promise=promise().model_copy(update={"settled_at": given["settled_at"]})),
        stored=SimpleNamespace(route=SimpleNamespace(revision=given["serving"])),
        report=SimpleNamespace(revision=given["reported"], observed=traffic),
    )


@pytest.mark.parametrize(("seconds", "judged"), [(59.9, False), (60, True), (60.1, True), (599.9, True), (600, True), (600.1, False)])
def test_a_move_is_judged_after_a_window_of_requests_and_within_ten_minutes(seconds: float, judged: bool):
    verdict = judge(seen(seconds), settled=True)
    assert bool(verdict.outcome) is judged
    assert verdict.recall.paid == judged
    assert (verdict.recall.promise is None) is (seconds >= 60), "what was judged, or is too old to be, is forgotten"


@pytest.mark.parametrize(("seconds", "remembered"), [(599.9, True), (600, True), (600.1, False)])
def test_a_move_that_nobody_used_is_remembered_for_ten_minutes(seconds: float, remembered: bool):
    verdict = judge(seen(seconds, requests=0), settled=True)
    assert not verdict.outcome
    assert (verdict.recall.promise is not None) is remembered


@pytest.mark.parametrize(("more", "settled"), [({"serving": "old"}, True), ({"reported": "old"}, True), ({"p50": None}, True), ({}, False)])
def test_only_figures_of_the_new_route_at_rest_are_judged(more: dict[str, Any], settled: bool):
    verdict = judge(seen(60, **more), settled)
    assert not verdict.outcome
    assert verdict.recall.promise is not None


def test_the_window_begins_when_the_walk_is_done():
    verdict = judge(seen(0, settled_at=None), settled=True)
    assert verdict.recall.promise.settled_at == SETTLED
