"""A move that may wait waits until the use of the plan's nodes keeps still: one answer to one disturbance, and none is put off for ever."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Level, Memory, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.decide import decide
from splitinference.core.decide.metrics_settling import STEP, settling, update_levels
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs, text_of

POLICY = Policy(
    window=timedelta(seconds=10),
    confirmations=2,
    cooldown=timedelta(seconds=30),
    review=timedelta(seconds=5),
    min_gain=0.05,
    load_bytes_per_s=1e9,
)
CALM = POLICY.window / POLICY.confirmations
LIMITS = Limits(seconds=1)
SMALL = {"mib": 250}
Use = Callable[[float], float]
"""Use of a node by others as metrics have it, second by second."""


def cluster(a: float, b: float) -> Problem:
    return a_problem(a_node("a", utilization=a, **SMALL), a_node("b", utilization=b, **SMALL), a_node("c", **SMALL), a_node("d", **SMALL))


PLAN = a_plan("a[0:2] b[2:4]", cluster(0.0, 0.0))


def mean_over(window: float, begin: float, share: float) -> Use:
    """A mean over so many seconds of a load that begins at once."""
    return lambda at: share * min(1.0, max(0.0, (at - begin) / window))


def played(a: Use, b: Use, seconds: int, policy: Policy = POLICY) -> list[tuple[int, Plan]]:
    """When which plans were adopted, with a look each second."""
    plan, memory, adopted = PLAN, Memory(reviewed=START), []
    for second in range(seconds):
        moves = tuple(inputs(cluster(0, 0), None, at).now for at, _ in adopted)
        found, memory = decide(inputs(cluster(a(second), b(second)), plan, second, moves=moves), policy, memory, Exhaustive(), LIMITS)
        if isinstance(found, Adopt):
            plan = found.plan
            adopted.append((second, plan))
    return adopted


@pytest.mark.parametrize("apart", [0, 8, 16])
def test_two_nodes_that_get_busy_one_after_the_other_are_one_move(apart: int):
    adopted = played(mean_over(15, 20, 0.8), mean_over(15, 20 + apart, 0.8), 200)
    assert len(adopted) == 1
    at, plan = adopted[0]
    assert {s.node for s in plan.segments} == {"c", "d"}
    assert at <= 20 + apart + 15 + 2 * POLICY.window.total_seconds()


def test_what_is_lost_or_forbidden_does_not_wait():
    memory = Memory(reviewed=START)
    for second, use in enumerate((0.0, 0.3, 0.6)):
        found, memory = decide(inputs(cluster(use, 0.0), PLAN, second), POLICY, memory, Exhaustive(), LIMITS)
    assert settling(memory, inputs(cluster(0.6, 0.0), PLAN, 3), POLICY)
    found, memory = decide(inputs(cluster(0.6, 0.0), PLAN, 3, quarantined={"b": "3 failures"}), POLICY, memory, Exhaustive(), LIMITS)
    assert isinstance(found, Adopt)
    assert found.reason is Reason.SEGMENT_FAILED


def test_while_it_waits_a_reason_that_has_held_long_enough_is_kept_and_no_solver_runs():
    memory, solver = Memory(reviewed=START), Exhaustive()
    busy = POLICY.model_copy(update={"review": timedelta(hours=1)})
    decisions = []
    for second in range(14):
        use = 0.75 if second < 10 else 0.95  # above the limit all the time, and higher still when the window is over
        found, memory = decide(inputs(cluster(use, 0.0), PLAN, 100 + second), busy, memory, solver, LIMITS)
        decisions.append(found)
    assert all(isinstance(found, Keep) for found in decisions)
    assert decisions[-1].reason is Kept.SETTLING
    assert decisions[-1].trigger is not None
    assert decisions[-1].trigger.reason is Reason.UTILIZATION_SHIFTED
    assert solver.asked == []
    found, memory = decide(inputs(cluster(0.95, 0.0), PLAN, 116), busy, memory, solver, LIMITS)
    assert isinstance(found, Adopt)
    assert "a" not in text_of(found.plan)


def test_a_node_that_never_keeps_still_puts_nothing_off_for_ever():
    """a is busy for good; b goes up and down by a third of it every two seconds."""
    adopted = played(lambda at: 0.95, lambda at: 0.3 if int(at) // 2 % 2 else 0.0, 60)
    assert adopted
    assert adopted[0][0] <= 4 * POLICY.window.total_seconds()


def test_what_is_not_known_is_no_change():
    memory = update_levels(inputs(cluster(0.2, 0.2), PLAN, 0), POLICY, Memory())
    dark = a_problem(a_node("a", utilization=None), a_node("b", utilization=None))
    later = update_levels(inputs(dark, PLAN, 1), POLICY, memory)
    assert later.levels == memory.levels
    assert not settling(update_levels(inputs(cluster(0.25, 0.2), PLAN, 2), POLICY, later), inputs(dark, PLAN, 2), POLICY)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_it_settles_as_soon_as_nothing_has_changed_for_its_share_of_the_window(uses: list[float]):
    memory = Memory()
    for second, use in enumerate(uses):
        memory = update_levels(inputs(cluster(use, 0.0), PLAN, second), POLICY, memory)
    last = len(uses) - 1
    calm = inputs(cluster(uses[-1], 0.0), PLAN, last + CALM.total_seconds())
    assert not settling(update_levels(calm, POLICY, memory), calm, POLICY)


@given(st.lists(st.floats(0, STEP), min_size=1, max_size=30))
def test_what_wavers_by_less_than_a_step_is_still(uses: list[float]):
    memory = Memory()
    for second, use in enumerate(uses):
        found = inputs(cluster(use, 0.0), PLAN, second)
        memory = update_levels(found, POLICY, memory)
        assert not settling(memory, found, POLICY)


@pytest.mark.parametrize(
    ("changed_ago", "changing_for", "waits"),
    [(4.9, 10, True), (5, 10, False), (5.1, 10, False), (1, 19.9, True), (1, 20, False), (1, 20.1, False)],
)
def test_it_waits_for_a_change_within_its_share_of_the_window_and_for_two_windows_at_most(changed_ago, changing_for, waits):
    """The window is 10 s, its share 5 s."""
    now = inputs(cluster(0, 0), PLAN, 100)
    level = Level(utilization=0, since=now.now - timedelta(seconds=changed_ago), changing_since=now.now - timedelta(seconds=changing_for))
    assert settling(Memory(levels={"a": level}), now, POLICY) is waits


@pytest.mark.parametrize(("apart", "one_change"), [(4.9, True), (5, False), (5.1, False)])
def test_changes_closer_than_the_share_of_the_window_are_one(apart: float, one_change: bool):
    memory = update_levels(inputs(cluster(0, 0), PLAN, 0), POLICY, Memory())
    memory = update_levels(inputs(cluster(0.3, 0), PLAN, 1), POLICY, memory)
    memory = update_levels(inputs(cluster(0.6, 0), PLAN, 1 + apart), POLICY, memory)
    began = START + timedelta(seconds=1 if one_change else 1 + apart)
    assert memory.levels["a"].changing_since == began


def test_levels_are_remembered_to_four_digits():
    memory = update_levels(inputs(cluster(0.123456, 0), PLAN, 0), POLICY, Memory())
    assert memory.levels["a"].utilization == 0.1235
    memory = update_levels(inputs(cluster(0.654321, 0), PLAN, 1), POLICY, memory)
    assert memory.levels["a"].utilization == 0.6543
