"""What steps show before metrics do: a lasting change within seconds; pulses, old or few steps, heat and the unknown never."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy, StageTime
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.decide.early_load_signal import ENOUGH_OBSERVATIONS, FRESH, LEAST_STEPS, LEFT, SHOWN, with_early_load
from splitinference.simulation.system.stepping import RECENT_SECONDS, RecentSteps, Steps
from tests.core.planning import START, a_node, a_plan, a_problem, inputs
from tests.examples import examples

ALONE_MS = 2.0
"""Two layers of the test's profile on an idle node of 100 GFLOP/s."""
PASS = 5.0
Truth = Callable[[float], float]
"""Use of node b by others, second by second."""


def told(used: float | None, *stages: StageTime, seconds: float = 0.0, text: str = "a[0:2] b[2:4]") -> DecisionInputs:
    """DecisionInputs with metrics that say `used` of node b."""
    problem = a_problem(a_node("a"), a_node("b", utilization=used), a_node("c"))
    return inputs(problem, a_plan(text, a_problem(a_node("a"), a_node("b"), a_node("c"))), seconds, stages=stages)


def stage(milliseconds: float, **more: Any) -> StageTime:
    """Of the stage on b."""
    return StageTime(**{"node": "b", "start": 2, "end": 4, "alone_ms": milliseconds, "steps": 50, "age_seconds": 10.0, **more})


def used(found: DecisionInputs, name: str = "b") -> float | None:
    return next(node.utilization for node in found.problem.snapshot.nodes if node.name == name)


def mean(truth: Truth, end: float, window: float = 60.0, parts: int = 240) -> float:
    """As metrics have it: over a minute, to four digits."""
    return round(sum(truth(end - window * (part + 0.5) / parts) for part in range(parts)) / parts, 4)


def played(truth: Truth, seconds: float, **more: Any) -> list[tuple[float, float, DecisionInputs, Memory]]:
    """Passes five seconds apart over a stage that never stops stepping: the time, what metrics said (read every 15 s), what was noticed."""
    steps, at, memory, met = RecentSteps(), -60.0, Memory(), []
    for number in range(1, int(seconds / PASS) + 1):
        now = number * PASS
        while at < now:
            took = ALONE_MS / max(0.02, 1.0 - truth(at))
            count = max(1, int(100 / took))  # a tenth of a second's at once
            steps.add(Steps(at, at + count * took / 1e3, count), took)
            at += count * took / 1e3
        quartile = steps.quartile(now)
        assert quartile is not None
        said = mean(truth, now - now % 15)
        found, memory = with_early_load(told(said, stage(quartile[0], steps=quartile[1], **more), seconds=now), memory)
        met.append((now, said, found, memory))
    return met


def step_at(begin: float, level: float, before: float = 0.1) -> Truth:
    return lambda at: level if at >= begin else before


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_a_lasting_change_is_known_in_full_long_before_the_mean_over_a_minute_has_it(level: float):
    met = played(step_at(20.0, level), 120)
    raised = [now for now, said, found, _ in met if (used(found) or 0) > said + 0.05]
    assert raised[0] <= 45.0
    first_said, first = next((said, found) for now, said, found, _ in met if now == raised[0])
    assert first_said < 0.6
    assert used(first) == pytest.approx(level, abs=0.02)
    assert all(used(found) == pytest.approx(level, abs=0.05) for now, _, found, _ in met if now >= raised[0])


def test_the_reason_begins_to_be_confirmed_sooner():
    policy = Policy(window=timedelta(seconds=60), review=timedelta(hours=1))
    began: list[float] = []
    for learned in (True, False):
        memory = Memory(reviewed=START)
        for now, _, found, _ in played(step_at(20.0, 0.9), 150, learned=learned):
            trigger, memory = check(found, policy, memory)
            if trigger is not None:
                assert trigger.reason is Reason.UTILIZATION_SHIFTED
                began.append(now)
                break
    assert began[0] <= began[1] - 20


@examples(30)
@given(on=st.floats(1, 9), off=st.floats(3, 20), level=st.floats(0.6, 0.98), phase=st.floats(0, 20))
def test_pulses_of_seconds_are_no_sign_whatever_their_height(on: float, off: float, level: float, phase: float):
    met = played(lambda at: level if (at + phase) % (on + off) < on else 0.1, 120)
    assert all(used(found) == said for _, said, found, _ in met)


@examples(30)
@given(st.lists(st.floats(-0.15, 0.15), min_size=24, max_size=24), st.floats(0.2, 0.6))
def test_a_load_that_wavers_is_no_sign(noise: Sequence[float], level: float):
    met = played(lambda at: min(0.98, max(0.0, level + noise[int(at // 5) % 24])), 120)
    # What is noticed beyond metrics is at most what the load truly was.
    assert all((used(found) or 0) <= max(said, level + 0.15 + 1e-6) for _, said, found, _ in met)


@examples(200)
@given(
    st.lists(st.tuples(st.floats(0.01, 1e4), st.integers(0, 50), st.floats(0, 40), st.booleans()), max_size=8),
    st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=8, max_size=8),
)
def test_it_only_ever_raises_and_only_what_is_known(observed: Sequence[tuple[float, int, float, bool]], metrics: Sequence[float | None]):
    memory = Memory()
    for number, (said, (took, steps, age, learned)) in enumerate(zip(metrics, observed, strict=False)):
        given_facts = told(said, stage(took, steps=steps, age_seconds=age, learned=learned), seconds=5.0 * number)
        found, memory = with_early_load(given_facts, memory)
        now = used(found)
        assert (now is None) == (said is None)
        assert now is None or (said is not None and said <= now <= 1)
        assert (used(found, "a"), used(found, "c")) == (0.0, 0.0)
        assert found.model_copy(update={"problem": given_facts.problem}) == given_facts
        assert Memory.model_validate_json(memory.model_dump_json()) == memory


def many(said: Sequence[float | None], spacing: float = 5.0, **more: Any) -> tuple[DecisionInputs, Memory]:
    """The last of some passes in which the stage took five times what it should have of an idle node."""
    found, memory = told(0.0), Memory()
    for number, share in enumerate(said):
        found, memory = with_early_load(told(share, stage(5 * ALONE_MS, **more), seconds=number * spacing), memory)
    return found, memory


RISING = (0.1, 0.15, 0.2, 0.2)


def test_it_takes_some_observations_in_a_row():
    assert used(many(RISING)[0]) == pytest.approx(0.8)
    assert used(many(RISING[: ENOUGH_OBSERVATIONS - 1])[0]) == RISING[ENOUGH_OBSERVATIONS - 2]
    enough = RISING[:ENOUGH_OBSERVATIONS]
    assert (used(many(enough)[0]) or 0.0) > enough[-1], "the last one that is needed counts at once"
    assert used(many(RISING, spacing=0.5)[0]) == RISING[-1], "one look is not several"
    assert used(many(RISING, spacing=FRESH.total_seconds())[0]) == RISING[-1], "nor are several with gaps between them"


@pytest.mark.parametrize(
    "more",
    [
        {"steps": LEAST_STEPS - 1},
        {"age_seconds": FRESH.total_seconds() + 1},
        {"learned": False},
        {"end": 9},
        {"processor": "gpu0"},
        {"node": "gone"},
    ],
)
def test_what_is_no_sign(more: dict[str, Any]):
    found, memory = many(RISING, **more)
    assert used(found) == RISING[-1]
    assert memory.slowed == {}


def test_without_a_step_that_computed_alone_nothing_is_noticed():
    found, memory = with_early_load(told(0.3), Memory())
    assert (used(found), memory) == (0.3, Memory())


def test_a_node_that_is_slow_while_metrics_stand_still_is_for_calibration():
    found, memory = many([0.2] * 10)
    assert used(found) == 0.2
    assert memory.slowed["b"].observations == 10


def test_once_metrics_have_had_their_time_they_count_alone():
    shown = int(SHOWN.total_seconds() / PASS)
    assert used(many([0.1] + [0.3] * (shown - 1))[0]) == pytest.approx(0.8)
    assert used(many([0.1] + [0.3] * (shown + 1))[0]) == 0.3


def test_a_node_that_was_left_counts_as_it_was_seen_until_metrics_show_it():
    _, memory = many(RISING)
    last = memory.slowed["b"].last
    for after, expected in ((30.0, pytest.approx(0.8)), (LEFT.total_seconds() + 1, 0.3)):
        at = (last - START).total_seconds() + after
        found, _ = with_early_load(told(0.3, seconds=at, text="a[0:2] c[2:4]"), memory)
        assert used(found) == expected
    assert used(with_early_load(told(0.3, seconds=(last - START).total_seconds() + 30), memory)[0]) == 0.3, (
        "one that serves without steps does not"
    )


def test_a_stage_that_is_quick_again_is_believed_at_once():
    _, memory = many(RISING)
    found, memory = with_early_load(told(0.2, stage(ALONE_MS / 0.8), seconds=20), memory)
    assert used(found) == 0.2
    assert memory.slowed == {}


def test_the_window_of_the_simulated_gateway_is_what_facts_call_fresh():
    assert timedelta(seconds=RECENT_SECONDS) <= FRESH
