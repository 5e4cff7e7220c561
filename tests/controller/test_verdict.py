"""What came of a move: gains side by side, and whether it paid, where that can be said."""

import pytest

from splitinference.controller.recall import Promise
from splitinference.controller.verdict import outcome_of
from tests.controller.test_calibration_stories import serving, steps
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
