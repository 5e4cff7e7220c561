"""Calibration: factors that reproduce what was observed, and the error before and after."""

import json
from pathlib import Path

import pytest

from splitinference.cli.main import main
from splitinference.core.cost import predict
from splitinference.core.cost.evaluate import UnknownPlaceError
from splitinference.core.cost.fitting.calibrate import StageObservation, calibrate
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Problem, Workload
from tests.core.planner_problems import a_node, a_plan, a_profile


def a_problem(calibration: float = 1.0) -> Problem:
    factors = {"calibration": calibration, "prefill_calibration": calibration}
    nodes = tuple(a_node(name, stage_overhead_ms=2.0, **factors) for name in ("a", "b"))
    return Problem(profile=a_profile(), snapshot=Snapshot(nodes=nodes), workload=Workload(max_context_tokens=256))


def observed_when(calibration: float) -> list[StageObservation]:
    """Compute alone: what is predicted less the 2 ms of the server."""
    prediction = predict(a_plan("a[0:2] b[2:5]"), a_problem(calibration))
    spans = (("a", 0, 2), ("b", 2, 5))
    return [
        StageObservation(node=n, start=s, end=e, prefill_ms=stage.prefill_ms - 2.0, decode_ms=stage.decode_ms - 2.0)
        for (n, s, e), stage in zip(spans, prediction.stages, strict=True)
    ]


def test_the_factor_that_made_the_times_is_found_again() -> None:
    found = calibrate(a_problem(1.5), observed_when(3.0))
    assert found.factors == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}
    assert found.prefill_factors == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}
    assert found.error_before > 0.4
    assert found.error_after == pytest.approx(0.0, abs=1e-9)


def test_prefill_and_decode_are_off_by_factors_of_their_own() -> None:
    """With one factor for both, neither would be right."""
    right = observed_when(1.0)
    found = calibrate(a_problem(), [o.model_copy(update={"decode_ms": 4 * (o.decode_ms or 0)}) for o in right])
    assert (found.factors["a"], found.prefill_factors["a"]) == (pytest.approx(4.0), pytest.approx(1.0))
    assert found.error_after == pytest.approx(0.0, abs=1e-9)


def test_where_only_decode_was_observed_prefill_has_no_factor() -> None:
    found = calibrate(a_problem(), [o.model_copy(update={"prefill_ms": None}) for o in observed_when(2.0)])
    assert found.prefill_factors == {}


def test_a_model_that_is_right_has_no_error() -> None:
    assert calibrate(a_problem(), observed_when(1.0)).error_before == 0.0


def test_unknown_places_and_nothing_to_compare_are_refused() -> None:
    with pytest.raises(UnknownPlaceError):
        calibrate(a_problem(), [StageObservation(node="z", start=0, end=1, decode_ms=1)])
    with pytest.raises(ValueError, match="no observed time"):
        calibrate(a_problem(), [])


def test_the_command_prints_the_error_in_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, observed = tmp_path / "problem.json", tmp_path / "observed.json"
    problem.write_text(a_problem().model_dump_json())
    observed.write_text(json.dumps([o.model_dump() for o in observed_when(2.0)]))
    assert main(["calibrate", "--problem", str(problem), "--observed", str(observed)]) == 0
    text = capsys.readouterr().out
    assert "with the factors below: 0.0%" in text
    assert "a: calibration 2.000, prefill_calibration 2.000" in text
