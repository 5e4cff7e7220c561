"""The pieces of decisions about several pipelines, each with what it is asked and at the edges of what it compares."""

import pytest

from splitinference.core.cost import objective_value, predict
from splitinference.core.decide.base.compare import net_gain
from splitinference.core.decide.base.decision import Keep, Kept
from splitinference.core.decide.base.policy import Policy
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.pipelines import (
    as_many_as_fit,
    beside,
    better_of_several,
    counting,
    joined,
    most_possible,
    several,
    slowest_and_others,
    valued,
    without_slo,
)
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Objective, Problem, Slo
from tests.core.decide.several.scripted import LIMITS, POLICY, TWO, Scripted, of, ready, texts, world
from tests.core.planning import a_node, a_plan, a_problem, text_of

# --- values ---------------------------------------------------------------------------------------------------------------------------


def test_a_decision_is_about_several_pipelines_if_they_are_asked_for_or_there():
    assert not several(world(pipelines=1), None)
    assert not several(world(pipelines=1), of("a[0:4]"))
    assert several(world(pipelines=2), None)
    assert several(world(pipelines=1), of(TWO))


def test_the_same_number_of_pipelines_is_the_same_problem():
    problem = world(pipelines=2)
    assert counting(problem, 2) is problem
    assert counting(problem, 3).constraints.pipelines == 3


def test_joined_plans_share_the_requests_evenly():
    plan = joined([a_plan("a[0:4]"), of("b[0:4] | c[0:4]")])
    assert [pipeline.share for pipeline in plan.pipelines] == pytest.approx([1 / 3] * 3)
    assert plan.model_digest == a_plan("a[0:4]").model_digest


@pytest.mark.parametrize(("below", "optimal"), [(0.0, True), (0.99e-6, True), (1.01e-6, False), (0.1, False)])
def test_what_is_joined_is_proven_as_far_as_the_bound_of_the_best_plan_of_all_says(below, optimal):
    problem = world()
    value = objective_value(of(TWO), problem)
    found = valued(of(TWO), problem, of(TWO).model_copy(update={"bound": value * (1 - below)}))
    assert found is not None
    assert found.value == value
    assert found.prediction == predict(of(TWO), problem)
    assert found.bound == value * (1 - below)
    assert found.gap == pytest.approx(below, abs=1e-12)
    assert found.optimal is optimal
    assert found.explanation == ("pipelines that work stay as they are; the others are planned for the nodes that are left",)


@pytest.mark.parametrize("best", [None, of(TWO)])
def test_without_a_bound_nothing_is_proven(best):
    found = valued(of(TWO), world(), best)
    assert found is not None
    assert (found.bound, found.gap, found.optimal) == (None, None, False)


def test_a_bound_above_the_value_is_a_gap_all_the_same():
    value = objective_value(of(TWO), world())
    found = valued(of(TWO), world(), of(TWO).model_copy(update={"bound": value * 1.5}))
    assert found is not None
    assert found.gap == pytest.approx(0.5)


def test_what_breaks_a_constraint_has_no_value():
    assert valued(of(TWO), world(pipelines=3)) is None
    assert valued(of(TWO), world("abc")) is None


# --- what others leave ----------------------------------------------------------------------------------------------------------------

FIRST = [a_plan("a[0:2] b[2:4]")]


def test_others_leave_the_nodes_that_they_do_not_have():
    left = beside(world(pipelines=3), FIRST)
    assert left is not None
    assert (ready(left), left.constraints.pipelines) == ("cdef", 1)
    both = beside(world(pipelines=3), FIRST, 2)
    assert both is not None
    assert both.constraints.pipelines == 2
    bounds = left.constraints
    assert (bounds.max_nodes, bounds.max_cost_per_hour, bounds.max_watts) == (None, None, None)


@pytest.mark.parametrize(("most", "left"), [(1, None), (2, None), (3, 1), (4, 2)])
def test_the_limit_of_nodes_is_for_all_pipelines(most, left):
    found = beside(world(max_nodes=most), FIRST)
    assert (None if found is None else found.constraints.max_nodes) == left


def priced(**budget: float) -> Problem:
    """Nodes that cost 2 an hour and take 50 W when they work."""
    problem = world(**budget)
    nodes = tuple(node.model_copy(update={"cost_per_hour": 2.0, "idle_watts": 10.0, "busy_watts": 50.0}) for node in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})


@pytest.mark.parametrize(("budget", "of_two_nodes"), [("max_cost_per_hour", 4.0), ("max_watts", 100.0)])
@pytest.mark.parametrize("above", [-1.0, 0.0, 0.5])
def test_so_are_budgets(budget, of_two_nodes, above):
    found = beside(priced(**{budget: of_two_nodes + above}), FIRST)
    assert (None if found is None else getattr(found.constraints, budget)) == (above if above > 0 else None)


# --- how many there can be ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "possible"),
    [
        (world("ab", mib=219), 0),  # 440 MiB and the margin of each layer for a model
        (world("ab", mib=221), 1),
        (world("abcd", mib=221), 2),
        (world("abcd", mib=2000), 4),  # a node for each is the most
        (world("abcd", mib=2000, min_segments=2), 2),
        (world("abcde", mib=2000, min_segments=2), 2),
        (world("abcd", mib=2000, max_nodes=3), 3),
        (world("abcd", mib=2000, max_nodes=9), 4),
    ],
)
def test_there_are_no_more_pipelines_than_nodes_and_memory_allow(problem, possible):
    assert most_possible(problem) == possible


def test_a_node_that_cannot_be_used_counts_neither_as_a_node_nor_with_its_memory():
    nodes = (a_node("a", mib=2000), a_node("b", mib=2000, ready=False))
    assert most_possible(a_problem(*nodes)) == 1


@pytest.mark.parametrize(("most", "pipelines"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 3), (9, 3)])
def test_as_many_as_fit_are_at_least_one_and_at_most_what_is_allowed(most, pipelines):
    assert as_many_as_fit(world("abc", mib=2000), most).constraints.pipelines == pipelines


def test_at_least_one_is_asked_for_where_none_fits():
    assert as_many_as_fit(world("a", mib=100), 8).constraints.pipelines == 1


@pytest.mark.parametrize(
    ("goal", "instead"),
    [
        (Goal.LATENCY, Goal.LATENCY),
        (Goal.BOTTLENECK, Goal.BOTTLENECK),
        (Goal.THROUGHPUT, Goal.LATENCY),
        (Goal.COST, Goal.LATENCY),
        (Goal.ENERGY, Goal.LATENCY),
    ],
)
def test_where_no_plan_keeps_the_slo_the_goal_is_a_time(goal, instead):
    problem = world().model_copy(update={"slo": Slo(time_per_output_token_ms=1), "objective": Objective(goal=goal)})
    found = without_slo(problem)
    assert (found.slo, found.objective.goal) == (Slo(), instead)


# --- an optional reason ---------------------------------------------------------------------------------------------------------------


def test_the_slowest_pipeline_is_the_one_that_may_move():
    problem = world(slow={"d": 50})
    slowest, others = slowest_and_others(of(TWO), problem)
    assert text_of(slowest) == "c[0:2] d[2:4]"
    assert [text_of(plan) for plan in others] == ["a[0:2] b[2:4]"]


BUSY_D = world(slow={"d": 50, "f": 90}).model_copy(update={"serving": tuple((s.start, s.end, s.node) for s in of(TWO).segments)})
JOINT = "a[0:2] e[2:4] | b[0:2] c[2:4]"
ONE = "c[0:2] f[2:4]"


def compared(policy: Policy = POLICY, one: Plan | Keep | None = None, joint: str | None = JOINT) -> Plan | Keep:
    return better_of_several(of(TWO), BUSY_D, policy, Solver(Scripted(lambda _: joint), LIMITS), one if one is not None else a_plan(ONE))


@pytest.mark.parametrize(("above", "all_anew"), [(-1e-6, True), (0.0, False), (1e-6, False)])
def test_all_are_planned_anew_only_for_more_than_the_gain_of_a_re_split(above, all_anew):
    """The gain that it takes lies this much above what planning all anew gains over the move of the slowest."""
    one = of(f"a[0:2] b[2:4] | {ONE}")
    further = net_gain(of(TWO), of(JOINT), BUSY_D, POLICY) - net_gain(of(TWO), one, BUSY_D, POLICY)
    policy = POLICY.model_copy(update={"resplit_gain": further + above})
    found = compared(policy)
    assert isinstance(found, Plan)
    assert texts(found) == (JOINT.split(" | ") if all_anew else ["a[0:2] b[2:4]", ONE])


def test_the_move_of_one_has_its_own_figures_and_the_bound_of_all():
    found = compared(POLICY.model_copy(update={"resplit_gain": 1.0}))
    assert isinstance(found, Plan)
    assert found.value == objective_value(found, BUSY_D)
    assert found.prediction == predict(found, BUSY_D)
    assert found.bound == objective_value(of(JOINT), BUSY_D)


def test_where_the_slowest_stays_the_plan_is_the_present_one_with_today_s_figures():
    found = compared(one=a_plan("c[0:2] d[2:4]"), joint=None)
    assert isinstance(found, Plan)
    assert found.revision == of(TWO).revision
    assert found.prediction == predict(of(TWO), BUSY_D)
    assert found.value == objective_value(of(TWO), BUSY_D)


def test_all_are_planned_anew_from_the_present_plan_on():
    """So the solver has a plan to beat, and staying wins ties."""
    solver = Scripted(lambda _: JOINT)
    better_of_several(of(TWO), BUSY_D, POLICY, Solver(solver, LIMITS), a_plan(ONE))
    assert solver.asked == [BUSY_D]
    assert solver.hints == [of(TWO)]


def test_a_joint_plan_keeps_the_places_of_pipelines_that_both_have():
    turned = "e[0:2] f[2:4] | a[0:2] b[2:4]"
    found = compared(one=Keep(reason=Kept.INFEASIBLE), joint=turned)
    assert isinstance(found, Plan)
    assert texts(found) == ["a[0:2] b[2:4]", "e[0:2] f[2:4]"]
    assert found.prediction == predict(found, BUSY_D)


def test_without_any_plan_it_is_said_why():
    nothing = Keep(reason=Kept.SOLVE_TIMED_OUT, message="the solver found no plan")
    assert compared(one=nothing, joint=None) == nothing
    broken = a_plan("c[0:2] x[2:4]")
    assert compared(one=broken, joint=None) == Keep(reason=Kept.INFEASIBLE, message="no plan keeps the other pipelines as they are")


def test_the_plan_of_one_that_breaks_a_constraint_beside_the_others_gives_way_to_the_joint_one():
    found = compared(POLICY.model_copy(update={"resplit_gain": 1.0}), one=a_plan("a[0:2] f[2:4]"))
    assert isinstance(found, Plan)
    assert texts(found) == JOINT.split(" | ")
