"""Mandatory decisions about several pipelines: what stays, what is mended first, and what is asked for then."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from splitinference.core.cost import objective_value
from splitinference.core.decide.base.compare import gain, move_seconds
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy, Watch
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import DryRun, Solver, always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.decide.pipelines import (
    SeveralPipelines,
    aligned,
)
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo
from tests.core.decide.several.scripted import LIMITS, POLICY, TWO, Scripted, of, ready, texts, world
from tests.core.planning import START, a_plan, inputs


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


def test_as_many_as_there_are_is_not_tried_again_where_that_was_asked_for():
    """All three work, and what serves the third has no room any more: two stay, although as many as there are were asked for."""
    case, _ = mandatory(world(pipelines=3), lambda _: None, f"{TWO} | e[0:2] f[2:4]", dry_run=blocked_for("e"))
    plan, notes = case.most(case.inputs.problem)
    assert isinstance(plan, Plan)
    assert texts(plan) == TWO.split(" | ")
    assert notes[0].startswith("3 pipelines are requested, 2 fit: ")


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
