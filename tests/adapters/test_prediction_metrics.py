"""Prediction against observation as Prometheus reads it: errors, factors, and moves that paid or did not."""

from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from splitinference.adapters.telemetry import ResourceGauges

OUTCOME = {"predictedGainPercent": 40.0, "observedGainPercent": -12.5, "paid": False}
STATUS: dict[str, Any] = {
    "plan": {"revision": "r2", "segments": [{}], "predicted": {"timePerOutputTokenMs": 21.0}},
    "observed": {"revision": "r2", "timePerOutputTokenMs": {"p50": 30.0, "p95": 41.0}, "timeToFirstTokenMs": {"p50": 120.0}},
    "calibration": {
        "errorPercent": 4.0,
        "uncalibratedErrorPercent": 55.0,
        "nodes": {"node-a": {"factor": 2.2, "windows": 5, "time": "2026-01-01T00:00:00Z"}},
    },
    "adaptation": {"paid": 3, "unpaid": 1},
    "decisions": [
        {"reason": "Blocked", "transition": "keep"},
        {"reason": "BetterPlan", "transition": "migration", "outcome": OUTCOME},
        {"reason": "LinkDegraded", "transition": "migration", "outcome": {"predictedGainPercent": 1.0, "observedGainPercent": 1.0}},
    ],
}
NAMED = 'name="chat",namespace="team"'


def lines(status: dict[str, Any]) -> set[str]:
    registry = CollectorRegistry()
    registry.register(ResourceGauges(lambda: [{"metadata": {"namespace": "team", "name": "chat"}, "status": status}]))
    return set(generate_latest(registry).decode().splitlines())


def test_errors_are_shares_and_factors_have_their_node() -> None:
    found = lines(STATUS)
    assert f"splitinference_prediction_error{{{NAMED}}} 0.04" in found
    assert f"splitinference_prediction_error_uncalibrated{{{NAMED}}} 0.55" in found
    assert 'splitinference_node_calibration{name="chat",namespace="team",node="node-a"} 2.2' in found


def test_moves_are_counted_and_the_newest_judged_one_shows_both_gains() -> None:
    found = lines(STATUS)
    assert 'splitinference_moves_judged_total{name="chat",namespace="team",paid="yes"} 3.0' in found
    assert 'splitinference_moves_judged_total{name="chat",namespace="team",paid="no"} 1.0' in found
    assert f"splitinference_move_predicted_gain{{{NAMED}}} 0.4" in found
    assert f"splitinference_move_observed_gain{{{NAMED}}} -0.125" in found


def test_observed_medians_are_those_of_the_plan() -> None:
    assert f"splitinference_observed_time_per_output_token_ms{{{NAMED}}} 30.0" in lines(STATUS)
    other = lines({**STATUS, "observed": {**STATUS["observed"], "revision": "r1"}})
    assert not any(line.startswith("splitinference_observed") for line in other)


def test_what_is_not_known_is_not_there_and_never_zero() -> None:
    found = lines({"calibration": {"nodes": {"node-a": {"factor": "odd"}}}, "decisions": [{"reason": "NoPlan"}]})
    values = {line for line in found if not line.startswith("#")}
    assert values == {
        f"splitinference_ready{{{NAMED}}} 0.0",
        'splitinference_moves_judged_total{name="chat",namespace="team",paid="yes"} 0.0',
        'splitinference_moves_judged_total{name="chat",namespace="team",paid="no"} 0.0',
    }
