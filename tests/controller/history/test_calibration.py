"""Predicted stage times held against observed ones: what is learned, what is not, and what is not believed."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.history.calibration import (
    LEAST_PROMPTS,
    LEAST_STEPS,
    MOST_PROMPT_TOKENS,
    Calibration,
    Stage,
    compare,
    read_calibration,
)
from splitinference.controller.plan_io.serving import Serving
from splitinference.core.cost import predict
from splitinference.core.values.cluster import Node
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Engine
from splitinference_protocol.report import GatewayReport, ObservedTraffic, StageTimes
from tests.core.planning import a_node, a_plan, a_problem, a_profile

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WINDOW = timedelta(seconds=60)
STAGES = (Stage(name="s0", node="a", start=0, end=2), Stage(name="s1", node="b", start=2, end=4))


def nodes(a: float | None = 0.0, b: float | None = 0.0) -> tuple[Node, ...]:
    return a_node("a", utilization=a), a_node("b", utilization=b)


def compute_ms(problem: Problem) -> dict[str, float]:
    """What the cost model says of both stages, without the server's millisecond."""
    first, second = predict(a_plan("a[0:2] b[2:4]"), problem).stages
    return {"s0": first.decode_ms - 1.0, "s1": second.decode_ms - 1.0}


def serving(times: dict[str, float | None], steps: int | None = 500, revision: str = "r1") -> Serving:
    stages = {name: StageTimes(compute_ms=found, steps=steps) for name, found in times.items()}
    return Serving(revision=revision, stages=STAGES, traffic=ObservedTraffic(requests=5, stages=stages))


def slower(factor: float, problem: Problem) -> Serving:
    return serving({name: factor * found for name, found in compute_ms(problem).items()})


def windows(count: int, seen: Serving, problem: Problem, known: Calibration | None = None, every: timedelta = WINDOW) -> Calibration:
    """So many windows of the same, and the one that they begin with."""
    found = known or Calibration()
    for number in range(count + 1):
        found, _ = compare(found, seen, problem, NOW + number * every)
    return found


def factors(known: Calibration) -> dict[str, float]:
    return {name: factor.factor for name, factor in known.nodes.items()}


def test_nodes_slower_than_predicted_get_their_factor_and_the_error_goes() -> None:
    problem = a_problem(*nodes())
    first = windows(1, slower(3.0, problem), problem)
    assert (first.error_percent, first.uncalibrated_error_percent) == (pytest.approx(66.7), pytest.approx(66.7))
    known = windows(4, slower(3.0, problem), problem)
    assert factors(known) == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}
    assert (known.error_percent, known.uncalibrated_error_percent) == (pytest.approx(0.0, abs=0.1), pytest.approx(66.7))
    shown = known.stages["s0"]
    assert shown.predicted_ms == pytest.approx(shown.observed_ms, rel=1e-3)
    assert shown.uncalibrated_ms == pytest.approx(shown.observed_ms / 3, rel=1e-3)


def prompts(decode: float, prefill: float, problem: Problem, tokens: int = 200, count: int = 40) -> Serving:
    """Both phases slower than predicted, each by a factor of its own."""
    asked = problem.model_copy(update={"workload": problem.workload.model_copy(update={"prompt_tokens": tokens})})
    predicted = predict(a_plan("a[0:2] b[2:4]"), asked).stages
    steps = slower(decode, problem)
    assert steps.traffic is not None
    stages = {
        name: times.model_copy(
            update={"prompts": count, "prompt_tokens": tokens, "prompt_ms_per_token": prefill * (stage.prefill_ms - 1.0) / tokens}
        )
        for (name, times), stage in zip(steps.traffic.stages.items(), predicted, strict=True)
    }
    return steps.model_copy(update={"traffic": steps.traffic.model_copy(update={"stages": stages})})


def test_prefill_and_decode_get_factors_of_their_own() -> None:
    """The prompts that were seen are longer than those of the workload: what is predicted of them is of their length."""
    problem = a_problem(*nodes())
    known = windows(4, prompts(3.0, 0.5, problem), problem)
    assert factors(known) == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}
    assert {name: factor.factor for name, factor in known.prefill_nodes.items()} == {"a": pytest.approx(0.5), "b": pytest.approx(0.5)}
    found = known.applied_to(problem.snapshot, NOW).nodes
    assert [(node.calibration, node.prefill_calibration) for node in found] == [(pytest.approx(3.0), pytest.approx(0.5))] * 2
    assert read_calibration({"calibration": known.as_status()}) == known


def test_until_a_prefill_was_measured_decode_speaks_for_both() -> None:
    problem = a_problem(*nodes())
    known = windows(4, slower(3.0, problem), problem)
    assert [node.prefill_calibration for node in known.applied_to(problem.snapshot, NOW).nodes] == [pytest.approx(3.0)] * 2


@pytest.mark.parametrize(
    ("tokens", "prefill", "count"), [(200, 3.0, LEAST_PROMPTS - 1), (0, 3.0, 40), (MOST_PROMPT_TOKENS + 1, 3.0, 40), (200, 1e9, 40)]
)
def test_few_and_absurd_prompts_are_not_learned_from(tokens: int, prefill: float, count: int) -> None:
    problem = a_problem(*nodes())
    seen = prompts(1.0, prefill, problem, max(1, tokens), count)
    assert seen.traffic is not None
    stages = {name: times.model_copy(update={"prompt_tokens": tokens}) for name, times in seen.traffic.stages.items()}
    seen = seen.model_copy(update={"traffic": seen.traffic.model_copy(update={"stages": stages})})
    assert windows(4, seen, problem).prefill_nodes == {}


def test_one_measurement_a_window_however_often_a_pass_looks() -> None:
    problem = a_problem(*nodes())
    known = windows(24, slower(3.0, problem), problem, every=timedelta(seconds=5))
    assert {factor.windows for factor in known.nodes.values()} == {2}


def test_a_node_measured_while_busy_is_not_taken_for_a_slow_one() -> None:
    """What others took is in the prediction that the factor is relative to: idle again, the node is as good as it was."""
    busy = a_problem(*nodes(a=0.6))
    known = windows(5, slower(1.0, busy), busy)
    assert factors(known) == {"b": pytest.approx(1.0)}
    idle = a_problem(*nodes())
    assert [node.calibration for node in known.applied_to(idle.snapshot, NOW).nodes] == [pytest.approx(1.0)] * 2


def test_of_a_node_that_others_use_it_is_learned_that_it_is_slow_and_not_that_it_is_quick() -> None:
    """A short step gets more of it than others leave in the mean; a long one would not, so the plan must not be made for that."""
    busy = a_problem(*nodes(a=0.5))
    assert factors(windows(5, slower(0.4, busy), busy)) == {"b": pytest.approx(0.4)}
    assert factors(windows(5, slower(3.0, busy), busy)) == {"a": pytest.approx(3.0), "b": pytest.approx(3.0)}


@pytest.mark.parametrize("used", [None, 0.61, 1.0])
def test_of_a_node_that_is_very_busy_or_unknown_nothing_is_learned(used: float | None) -> None:
    problem = a_problem(*nodes(a=used))
    known = windows(5, slower(4.0, problem), problem)
    assert factors(known) == {"b": pytest.approx(4.0)}


def test_a_window_in_which_the_use_by_others_changed_is_compared_and_not_learned_from() -> None:
    idle, busy = a_problem(*nodes()), a_problem(*nodes(a=0.5))
    begun, _ = compare(Calibration(), slower(1.0, idle), idle, NOW)
    known, _ = compare(begun, slower(1.0, busy), busy, NOW + WINDOW)
    assert set(known.stages) == {"s0", "s1"}
    assert set(known.nodes) == {"b"}


@pytest.mark.parametrize("steps", [None, 0, LEAST_STEPS - 1])
def test_too_few_steps_teach_nothing(steps: int | None) -> None:
    problem = a_problem(*nodes())
    assert windows(5, serving({"s0": 99.0, "s1": 99.0}, steps=steps), problem).as_status() == {}


def test_a_stage_that_hardly_computes_says_nothing_of_its_node() -> None:
    """What a step costs whatever its layers, 0.25 ms, would be called a node 50 times as slow as it is."""
    profile = a_profile()
    small = [layer.model_copy(update={"flops_per_token": 2.5e5}) for layer in profile.layers[:2]]
    light = profile.model_copy(update={"layers": (*small, *profile.layers[2:])})
    problem = a_problem(*nodes(), profile=light)
    known = windows(5, serving({"s0": 0.25, "s1": 3 * compute_ms(problem)["s1"]}), problem)
    assert factors(known) == {"b": pytest.approx(3.0)}
    assert set(known.stages) == {"s1"}


def test_a_new_route_begins_a_new_window() -> None:
    problem = a_problem(*nodes())
    begun, _ = compare(Calibration(), slower(3.0, problem), problem, NOW)
    moved = slower(3.0, problem).model_copy(update={"revision": "r2"})
    known, _ = compare(begun, moved, problem, NOW + WINDOW)
    assert not known.nodes
    assert known.window is not None
    assert (known.window.revision, known.window.since) == ("r2", NOW + WINDOW)


def test_windows_are_counted_in_which_all_stages_of_a_route_were_measured() -> None:
    problem = a_problem(*nodes())
    seen = slower(3.0, problem)
    known = windows(2, seen, problem)
    assert (known.measured(seen), known.measured(None)) == (2, 0)
    moved = seen.model_copy(update={"revision": "r2"})
    assert known.measured(moved) == 0
    begun, _ = compare(known, moved, problem, NOW + 3 * WINDOW)
    just_before, _ = compare(begun, moved, problem, NOW + 4 * WINDOW - timedelta(milliseconds=1))
    assert just_before.measured(moved) == 0
    assert compare(begun, moved, problem, NOW + 4 * WINDOW)[0].measured(moved) == 1


def test_a_window_in_which_one_stage_had_too_few_steps_is_not_counted() -> None:
    problem = a_problem(*nodes())
    seen = slower(3.0, problem)
    half = serving({"s0": 99.0})
    known = windows(2, half, problem, windows(2, seen, problem))
    assert known.measured(seen) == 2


def test_a_pause_of_requests_forgets_no_window_that_was_counted() -> None:
    problem = a_problem(*nodes())
    seen = slower(3.0, problem)
    known, _ = compare(windows(2, seen, problem), serving({}), problem, NOW + 3 * WINDOW)
    assert known.window is None
    assert known.measured(seen) == 2
    assert read_calibration({"calibration": known.as_status()}).measured(seen) == 2


@pytest.mark.parametrize("seen", [None, Serving(revision="r1", stages=STAGES, traffic=None)])
def test_on_the_way_and_without_a_gateway_nothing_is_measured_and_nothing_forgotten(seen: Serving | None) -> None:
    problem = a_problem(*nodes())
    known = windows(4, slower(3.0, problem), problem)
    after, notes = compare(known, seen, problem, NOW + 10 * WINDOW)
    assert (after.nodes, after.window, notes) == (known.nodes, None, ())


def test_a_clock_that_was_set_back_begins_a_new_window() -> None:
    problem = a_problem(*nodes())
    begun, _ = compare(Calibration(), slower(3.0, problem), problem, NOW)
    known, _ = compare(begun, slower(3.0, problem), problem, NOW - timedelta(hours=1))
    assert not known.nodes
    assert known.window is not None
    assert known.window.since == NOW - timedelta(hours=1)


def test_another_model_on_the_same_nodes_is_learned_anew() -> None:
    problem = a_problem(*nodes())
    known = windows(4, slower(3.0, problem), problem)
    other = a_problem(*nodes(), profile=a_profile(digest="fedcba9876543210"))
    assert compare(known, None, other, NOW + 5 * WINDOW)[0].nodes == {}


# --- what is not believed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (0, "0 ms"),
        (1e9, "1e+09 ms"),
        (-3, "no number"),
        (float("nan"), "no number"),
        (float("inf"), "no number"),
        ("x", "no number"),
        (True, "no number"),
    ],
)
def test_an_absurd_stage_time_is_noted_and_unknown_and_the_rest_is_read(given: Any, said: str) -> None:
    """As it would come from a gateway: the report itself stays readable, since routes are drained by it."""
    problem = a_problem(*nodes())
    good = 2 * compute_ms(problem)["s1"]
    stages = {"s0": {"computeMs": given, "steps": 500}, "s1": {"computeMs": good, "steps": 500}}
    report = GatewayReport.model_validate(
        {"revision": "r1", "routes": {"r1": {"inFlight": 1}}, "observed": {"requests": 5, "stages": stages}}
    )
    seen = Serving(revision="r1", stages=STAGES, traffic=report.observed)
    known = windows(4, seen, problem)
    assert factors(known) == {"b": pytest.approx(2.0)}
    assert set(known.stages) == {"s1"}
    _, notes = compare(known, seen, problem, NOW)
    assert notes == (f"compute time of segment s0 is {said}, which is implausible and ignored",)


@pytest.mark.parametrize("steps", [-1, 1.5, "many", True, float("nan")])
def test_a_number_of_steps_that_is_none_is_not_known(steps: Any) -> None:
    assert StageTimes.model_validate({"computeMs": 4, "steps": steps}).steps is None


def test_segments_that_a_gateway_does_not_name_are_not_noted() -> None:
    problem = a_problem(*nodes())
    known, notes = compare(Calibration(), serving({"other": 5.0}), problem, NOW)
    assert (known.window, notes) == (None, ())


# --- kept in the status --------------------------------------------------------------------------------------------------------------


def test_what_was_learned_survives_the_status_whatever_is_unknown() -> None:
    problem = a_problem(*nodes(b=None))
    known = windows(4, slower(3.0, problem), problem)
    written = known.as_status()
    assert "null" not in json.dumps(written), "a merge patch takes it for a removal"
    assert read_calibration({"calibration": written}) == known
    assert written["nodes"]["a"]["factor"] == pytest.approx(3.0)
    assert written["stages"]["s0"] == {
        "node": "a",
        "observedMs": known.stages["s0"].observed_ms,
        "predictedMs": known.stages["s0"].predicted_ms,
        "uncalibratedMs": known.stages["s0"].uncalibrated_ms,
    }


@pytest.mark.parametrize(
    "written",
    [
        None,
        {"nodes": "x"},
        {"nodes": {"a": {"factor": -1, "windows": 5, "time": "2026-01-01T00:00:00Z"}}},
        {"nodes": {"a": {"factor": "NaN", "windows": 5, "time": "2026-01-01T00:00:00Z"}}},
        {"window": {"since": "yesterday"}},
    ],
)
def test_what_cannot_be_read_is_nothing_learned(written: Any) -> None:
    assert read_calibration({"calibration": written}) == Calibration()


def test_factors_of_another_engine_are_forgotten() -> None:
    torch = a_problem(*nodes())
    known = windows(6, slower(2.0, torch), torch)
    assert known.nodes
    llama = torch.model_copy(update={"profile": torch.profile.model_copy(update={"engine": Engine.LLAMA_CPP})})
    found, _ = compare(known, slower(1.0, llama), llama, NOW)
    assert not found.nodes
    assert found.model == f"{known.model}/llamacpp"
