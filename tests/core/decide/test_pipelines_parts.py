"""The pieces of decisions about several pipelines, each with what it is asked and at the edges of what it compares."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from splitinference.core.cost import objective_value, predict
from splitinference.core.decide.base.compare import gain, move_seconds, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy, Watch
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import DryRun, Solver, always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.decide.pipelines import (
    SeveralPipelines,
    aligned,
    as_many_as_fit,
    beside,
    better_of_several,
    counting,
    joined,
    most_possible,
    parts,
    several,
    slowest_and_others,
    valued,
    without_slo,
)
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Slo
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Outcome, Solved
from tests.core.planning import START, a_node, a_plan, a_problem, inputs, text_of

LIMITS = Limits(seconds=1)
POLICY = Policy(load_bytes_per_s=2e7)
TWO = "a[0:2] b[2:4] | c[0:2] d[2:4]"


def of(text: str) -> Plan:
    """`a[0:2] b[2:4] | c[0:4]`."""
    return joined([a_plan(part) for part in text.split("|")])


def texts(plan: Plan) -> list[str]:
    return [text_of(part) for part in parts(plan)]


def world(
    names: str = "abcdef", pipelines: int = 2, slow: dict[str, float] | None = None, mib: int = 310, **constraints: object
) -> Problem:
    """Nodes that hold two of four layers each; `slow` has those that do not do 100 GFLOP/s."""
    nodes = (a_node(name, mib=mib, gflops=(slow or {}).get(name, 100.0)) for name in names)
    return a_problem(*nodes, constraints=Constraints(pipelines=pipelines, **constraints))


class Scripted:
    """A solver that answers as it is told: a plan for each question, or None. It keeps the questions."""

    def __init__(self, answer: Callable[[Problem], str | None]) -> None:
        self.answer, self.asked = answer, list[Problem]()

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        self.asked.append(problem)
        text = self.answer(problem)
        if text is None:
            return Infeasible(reasons=(BindingConstraint(name="x", message="nothing fits", relaxation=""),))
        plan = of(text)
        value = objective_value(plan, problem)
        return Solved(plan=plan, bound=value, gap=0.0, optimal=True, seconds=0.0, explanation=("as told",))


def ready(problem: Problem) -> str:
    """The nodes that the question leaves."""
    return "".join(node.name for node in problem.snapshot.nodes if node.ready)


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


# --- a mandatory reason ---------------------------------------------------------------------------------------------------------------


def mandatory(
    problem: Problem,
    answer: Callable[[Problem], str | None],
    current: str | None = TWO,
    *,
    dry_run: DryRun = always_reachable,
    recut: bool = False,
    policy: Policy = POLICY,
    **more,
) -> tuple[SeveralPipelines, Scripted]:
    plan = None if current is None else of(current)
    known: DecisionInputs = inputs(problem, plan, **more)
    solver = Scripted(answer)
    return SeveralPipelines(known, policy, Solver(solve=solver, limits=LIMITS, dry_run=dry_run), plan, recut), solver


def test_pipelines_that_work_stay_without_a_question():
    case, solver = mandatory(world(), lambda _: None)
    found = case.of(case.inputs.problem, 2)
    assert isinstance(found, Plan)
    assert texts(found) == ["a[0:2] b[2:4]", "c[0:2] d[2:4]"]
    assert solver.asked == []


def test_of_more_than_are_asked_for_the_best_stay():
    case, _ = mandatory(world(pipelines=1, slow={"b": 50}), lambda _: None)
    found = case.of(case.inputs.problem, 1)
    assert isinstance(found, Plan)
    assert texts(found) == ["c[0:2] d[2:4]"]


@pytest.mark.parametrize("works", [0, 1, 2])
def test_a_broken_pipeline_is_first_mended_around_its_segment_that_works_then_with_its_cuts_then_anyhow(works):
    tries = ["c[0:2] e[2:4]", "e[0:2] f[2:4]", "e[0:1] f[1:4]"]
    case, solver = mandatory(world("abcef", mib=340), lambda _: tries[works] if len(solver.asked) == works + 1 else None)
    found = case.of(case.inputs.problem, 2)
    assert isinstance(found, Plan)
    assert texts(found) == ["a[0:2] b[2:4]", tries[works]]
    pins = [[pin.node for pin in problem.constraints.pins] for problem in solver.asked]
    assert pins == [["c"], [], []][: works + 1]
    assert [problem.constraints.split_points for problem in solver.asked] == [(2,), (2,), None][: works + 1]
    assert {ready(problem) for problem in solver.asked} == {"cef"}
    assert {problem.constraints.pipelines for problem in solver.asked} == {1}


def test_where_it_may_be_cut_elsewhere_at_once_its_cuts_do_not_count():
    case, solver = mandatory(world("abcef"), lambda _: "c[0:2] e[2:4]", recut=True)
    assert isinstance(case.of(case.inputs.problem, 2), Plan)
    assert (solver.asked[0].constraints.split_points, solver.asked[0].constraints.pins) == (None, ())


def test_one_that_is_mended_leaves_the_working_segments_of_the_next_one_alone():
    """b and d are gone; a and c still run, and the third pipeline works. The first must not take c."""
    case, solver = mandatory(
        world("acefgh", pipelines=3),
        lambda asked: "a[0:2] e[2:4]" if "a" in ready(asked) else "c[0:2] f[2:4]",
        f"{TWO} | g[0:2] h[2:4]",
    )
    found = case.of(case.inputs.problem, 3)
    assert isinstance(found, Plan)
    assert texts(found) == ["a[0:2] e[2:4]", "c[0:2] f[2:4]", "g[0:2] h[2:4]"]
    assert [ready(problem) for problem in solver.asked] == ["aef", "cf"]


def blocked_for(*names: str) -> DryRun:
    return lambda plan: Blocked(why="there is no room") if set(names) & {s.node for s in plan.segments} else always_reachable(plan)


def test_what_cannot_be_reached_gives_way_to_all_planned_anew():
    """The mended pipeline would use e, which has no room; planned anew, all go without it."""
    case, _ = mandatory(
        world("abcefg"),
        lambda asked: "a[0:2] b[2:4] | f[0:2] g[2:4]" if asked.constraints.pipelines == 2 else "c[0:2] e[2:4]",
        dry_run=blocked_for("e"),
    )
    found = case.of(case.inputs.problem, 2)
    assert isinstance(found, Plan)
    assert texts(found) == ["a[0:2] b[2:4]", "f[0:2] g[2:4]"]


def test_without_a_way_to_any_of_them_the_number_and_the_reason_are_said():
    case, _ = mandatory(world("abcefg"), lambda asked: "a[0:2] b[2:4] | f[0:2] g[2:4]", dry_run=lambda _: Blocked(why="f has no room"))
    found = case.of(case.inputs.problem, 2)
    assert found == Keep(reason=Kept.BLOCKED, message="no plan of 2 pipelines can be reached from the serving segments: f has no room")


def test_a_first_plan_is_taken_whether_it_can_be_reached_or_not():
    case, _ = mandatory(world(), lambda _: TWO, None, dry_run=lambda _: Blocked(why="no room"))
    found = case.of(case.inputs.problem, 2)
    assert isinstance(found, Plan)
    assert texts(found) == TWO.split(" | ")


def test_why_there_is_no_plan_is_the_solver_s_reason():
    case, _ = mandatory(world("abc"), lambda _: None, None)
    found = case.of(case.inputs.problem, 1)
    assert isinstance(found, Keep)
    assert found.message == "nothing fits"


@pytest.mark.parametrize(
    ("digests", "scaled", "number", "asks"),
    [
        ({"plan_spec_digest": "s", "spec_digest": "s"}, False, 2, False),
        ({"plan_spec_digest": "s", "spec_digest": "t"}, False, 2, True),
        ({"plan_spec_digest": "s", "spec_digest": "t"}, True, 2, False),
        ({"plan_spec_digest": "s", "spec_digest": "t"}, False, 1, False),
    ],
)
def test_another_specification_of_as_many_pipelines_compares_with_all_planned_anew(digests, scaled, number, asks):
    case, solver = mandatory(world(pipelines=number), lambda _: "e[0:2] f[2:4]" if number == 1 else TWO, **digests, only_scaled=scaled)
    assert isinstance(case.of(case.inputs.problem, number), Plan)
    assert bool(solver.asked) is asks


@pytest.mark.parametrize(("above", "all_anew"), [(-1e-6, True), (0.0, False), (1e-6, False)])
def test_all_planned_anew_must_gain_more_than_the_least_gain_with_its_longer_move_taken_off(above, all_anew):
    problem = inputs(world(slow={"d": 20}), of(TWO)).problem
    kept, joint = of(TWO), of("a[0:2] b[2:4] | e[0:2] f[2:4]")
    longer = move_seconds(joint, problem, POLICY) - move_seconds(kept, problem, POLICY)
    assert longer > 0
    further = gain(objective_value(kept, problem), objective_value(joint, problem), problem) - longer / POLICY.payback.total_seconds()
    policy = POLICY.model_copy(update={"min_gain": further + above})
    case, _ = mandatory(problem, lambda _: "a[0:2] b[2:4] | e[0:2] f[2:4]", policy=policy, spec_digest="t")
    found = case.of(case.inputs.problem, 2)
    assert isinstance(found, Plan)
    assert texts(found) == texts(joint if all_anew else kept)


def test_an_slo_that_no_number_keeps_is_said_with_the_number_that_fits():
    problem = world("abcd").model_copy(update={"slo": Slo(time_per_output_token_ms=0.001)})
    case, _ = mandatory(problem, lambda asked: TWO if asked.slo == Slo() else None, None)
    found, notes = case.most(case.inputs.problem)
    assert isinstance(found, Plan)
    assert len(found.pipelines) == 2
    assert notes == ("no plan meets the SLO: nothing fits",)


def test_no_plan_at_all_is_the_reason_of_the_first_try_also_with_an_slo():
    problem = world("abcd").model_copy(update={"slo": Slo(time_per_output_token_ms=0.001)})
    case, _ = mandatory(problem, lambda _: None, None)
    found, notes = case.most(case.inputs.problem)
    assert isinstance(found, Keep)
    assert (found.message, notes) == ("nothing fits", ())


@pytest.mark.parametrize(("least", "found"), [(1, 2), (2, 2), (3, None)])
def test_fewer_than_the_least_are_no_plan(least, found):
    """Three of which two fit."""
    plans = {1: "a[0:2] b[2:4]", 2: TWO}
    case, _ = mandatory(world(pipelines=3), lambda asked: plans.get(asked.constraints.pipelines), None)
    plan, notes = case.most(case.inputs.problem, least)
    if found is None:
        assert isinstance(plan, Keep)
        assert notes == ()
    else:
        assert isinstance(plan, Plan)
        assert len(plan.pipelines) == found
        assert notes == ("3 pipelines are requested, 2 fit: nothing fits",)


def test_as_many_as_there_are_is_tried_first_where_all_do_not_fit():
    case, solver = mandatory(world("abcdefgh", pipelines=4), lambda asked: None)
    plan, _ = case.most(case.inputs.problem)
    assert isinstance(plan, Plan)
    assert len(plan.pipelines) == 2
    assert {problem.constraints.pipelines for problem in solver.asked} <= {1, 2, 3, 4}


def test_a_blocked_transition_goes_back_to_what_serves():
    """The plan moved both pipelines; the old ones still serve. What stays are theirs, not the plan's."""
    plan, serving = of("a[0:2] e[2:4] | c[0:2] f[2:4]"), of(TWO)
    problem = inputs(world(), plan).problem
    known = inputs(problem, plan, 100, serving=serving, in_transition=True, blocked=Blocked(why="e has no room"), served=True)
    watches = {Reason.TRANSITION_BLOCKED: Watch(since=START, confirmations=1, last=START + timedelta(seconds=100))}
    memory = Memory(reviewed=START, watches=watches)
    solver = Scripted(lambda _: None)
    decision, _ = decide(known, POLICY, memory, solver, LIMITS, dry_run=blocked_for("e"))
    assert isinstance(decision, Adopt), decision
    assert decision.reason is Reason.TRANSITION_BLOCKED
    assert texts(decision.plan) == TWO.split(" | ")


def test_places_of_pipelines_stay_where_plans_have_one_pipeline_or_there_is_none():
    one = a_plan("a[0:4]")
    assert aligned(one, of(TWO)) is one
    assert aligned(of(TWO), None).revision == of(TWO).revision
