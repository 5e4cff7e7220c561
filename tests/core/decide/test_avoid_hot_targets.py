"""An optional move takes no layer from a calm node to one that is too busy, however well that one is thought of."""

from datetime import timedelta

import pytest

from splitinference.core.cost.stage import memory_bytes
from splitinference.core.decide.avoid_hot_targets import goes_to_busier, no_more_on_busy
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Memory, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.decide import decide
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs, text_of

POLICY = Policy(
    window=timedelta(seconds=20), confirmations=2, review=timedelta(hours=1), min_gain=0.05, utilization_limit=0.6, load_bytes_per_s=1e9
)
BIG, SMALL = {"mib": 450}, {"mib": 150}


def after_a_window(problem: Problem, plan: Plan) -> Adopt | Keep:
    memory = Memory(reviewed=START)
    for second in (100, 110, 120):
        found, memory = decide(inputs(problem, plan, second), POLICY, memory, Exhaustive(), Limits(seconds=1))
    return found


def two_busy(of_b: float, slow_c: float) -> Problem:
    """a has room for one layer only, c is calm and has turned out to be slow."""
    return a_problem(
        a_node("a", utilization=0.74, **SMALL),
        a_node("b", utilization=of_b, **BIG),
        a_node("c", calibration=slow_c, prefill_calibration=slow_c, **BIG),
    )


def test_a_node_that_was_left_for_being_busy_is_not_gone_back_to_while_it_is():
    """The fault: two nodes got busy, the plan left them as far as it may, and went back when the calm node had turned out to be slow."""
    before = a_plan("a[0:1] c[1:3] b[3:4]", two_busy(0.64, 1.0))
    found = after_a_window(two_busy(0.64, 6.0), before)
    assert isinstance(found, Keep)
    assert found.reason is Kept.GAIN_TOO_SMALL
    assert found.trigger is not None
    assert found.trigger.reason is Reason.UTILIZATION_SHIFTED


def test_it_is_gone_back_to_when_others_have_left_it():
    before = a_plan("a[0:1] c[1:3] b[3:4]", two_busy(0.64, 1.0))
    found = after_a_window(two_busy(0.2, 6.0), before)
    assert isinstance(found, Adopt)
    assert "c" not in text_of(found.plan)


def test_from_a_busier_node_to_a_less_busy_one_is_an_improvement():
    problem = a_problem(a_node("a", utilization=0.95, **BIG), a_node("b", utilization=0.65, **BIG))
    found = after_a_window(problem, a_plan("a[0:4]", problem))
    assert isinstance(found, Adopt)
    assert text_of(found.plan) == "b[0:4]"


def test_where_the_best_plan_is_on_a_busy_node_the_best_of_the_others_is_taken():
    problem = a_problem(
        a_node("a", utilization=0.7, **BIG),
        a_node("b", utilization=0.65, gflops=1000.0, **BIG),
        a_node("c", **BIG),
        a_node("d", gflops=20, **BIG),
    )
    found = after_a_window(problem, a_plan("a[0:2] d[2:4]", problem))
    assert isinstance(found, Adopt)
    assert "b" not in text_of(found.plan)
    assert "c" in text_of(found.plan)


@pytest.mark.parametrize(
    ("plan", "busier"),
    [
        ("a[0:2] c[2:4]", False),
        ("c[0:2] a[2:4]", True),  # the layers of the calm node go to a busy one
        ("a[0:3] c[3:4]", True),  # one of them
        ("a[0:1] c[1:4]", False),
        ("b[0:2] c[2:4]", False),  # from one busy node to one that is less so
        ("d[0:2] d[2:4]", False),  # calm, below the limit
    ],
)
def test_which_moves_these_are(plan: str, busier: bool):
    problem = a_problem(
        a_node("a", utilization=0.8), a_node("b", utilization=0.7), a_node("c", utilization=0.3), a_node("d", utilization=0.5)
    )
    assert goes_to_busier(a_plan("a[0:2] c[2:4]"), a_plan(plan), problem, 0.6) is busier


@pytest.mark.parametrize(("share", "busier"), [(0.59, False), (0.6, False), (0.61, True)])
def test_a_node_is_too_busy_above_the_limit(share: float, busier: bool):
    problem = a_problem(a_node("a"), a_node("b", utilization=share))
    assert goes_to_busier(a_plan("a[0:4]"), a_plan("b[0:4]"), problem, 0.6) is busier


def test_a_node_of_which_nothing_is_known_and_a_layer_that_was_nowhere_count_as_calm():
    problem = a_problem(a_node("a"), a_node("b", utilization=0.8))
    assert not goes_to_busier(a_plan("a[0:4]"), a_plan("gone[0:4]"), problem, 0.6)
    assert goes_to_busier(a_plan("gone[0:4]"), a_plan("b[0:4]"), problem, 0.6)
    assert goes_to_busier(a_plan("a[0:2]"), a_plan("a[0:2] b[2:4]"), problem, 0.6)
    assert not goes_to_busier(a_plan("a[0:2]"), a_plan("a[0:4]"), problem, 0.6)


def test_of_several_pipelines_those_are_compared_that_both_plans_have():
    problem = a_problem(a_node("a"), a_node("b", utilization=0.8))
    one = a_plan("a[0:4]")
    two = one.model_copy(update={"pipelines": (*one.pipelines, *a_plan("b[0:4]").pipelines)})
    assert not goes_to_busier(one, two, problem, 0.6)
    assert not goes_to_busier(two, one, problem, 0.6)


@pytest.mark.parametrize(("share", "bounded"), [(0.59, False), (0.6, False), (0.61, True)])
def test_a_node_above_the_limit_holds_no_more_than_it_does(share: float, bounded: bool):
    """b holds two segments, and d, as busy, none."""
    problem = a_problem(a_node("a"), a_node("b", utilization=share), a_node("d", utilization=share))
    free = {n.name: n.memory_free_bytes for n in problem.snapshot.nodes}
    after = {n.name: n.memory_free_bytes for n in no_more_on_busy(a_plan("a[0:1] b[1:2] a[2:3] b[3:4]"), problem, 0.6).snapshot.nodes}
    held = 2 * memory_bytes(problem, 0, 1)
    assert after == ({"a": free["a"], "b": held, "d": 0} if bounded else free)
