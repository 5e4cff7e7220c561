"""A pass between gathering and acting: one pure function, which the operator and the simulation call."""

import ast
import copy
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from splitinference.controller.reconcile.planning import plan_pass as module
from splitinference.controller.reconcile.planning.plan_pass import (
    Course,
    PassInputs,
    Question,
    confirmed,
    plan_pass,
    with_room,
    without_route,
)
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy
from splitinference.core.transition.state import NamedSegment, Observed, ObservedSegment, Phase, Target
from splitinference.core.transition.steps import Blocked, CreateSegment, Cutover, Done, Steps, Strategy
from splitinference.core.values.cluster import Processor, Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem, TrustRule
from splitinference.core.values.result import Limits
from splitinference.simulation import operator_pass
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, text_of

RULES = Constraints(trust=(TrustRule(start=0, end=1, labels={"trusted": "true"}),))


def target(plan: Plan) -> Target:
    assert plan.prediction is not None
    stages = zip(plan.segments, plan.prediction.stages, strict=True)
    named = (
        NamedSegment(name=f"s-{s.start}-{s.end}-{s.node}", start=s.start, end=s.end, node=s.node, memory_bytes=p.memory_bytes)
        for s, p in stages
    )
    return Target(pipelines=(tuple(named),))


def course(plan: Plan, rules: Constraints = Constraints()) -> Course:  # noqa: B008 - frozen
    return Course(plan, target(plan), "s", rules)


def observing(problem: Problem, plan: Plan | None = None, phase: Phase = Phase.PROVEN, serves: bool = True) -> Observed:
    """The segments of a plan, in this phase."""
    segments = target(plan).segments if plan is not None else {}
    observed = Observed(
        segments={name: ObservedSegment(**segment.model_dump(), phase=phase) for name, segment in segments.items()},
        serving=target(plan).route if plan is not None and serves else None,
    )
    return with_room(observed, problem.snapshot)


def inputs(problem: Problem, plan: Plan | None = None, **more: Any) -> PassInputs:
    serving = () if plan is None else tuple((s.start, s.end, s.node) for s in plan.segments)
    facts = DecisionInputs(now=START, problem=problem.model_copy(update={"serving": serving}), spec_digest="s", serving=plan)
    given: dict[str, Any] = {
        "observed": observing(problem, plan),
        "strategy": Strategy.SURGE,
        "course": course(plan) if plan is not None else None,
        "nodes": problem.snapshot.nodes,
        "stops_exposed": True,
        "question": Question(facts, Policy(), Memory(), Limits(seconds=1)),
    }
    return PassInputs(**{**given, **more})


def test_at_rest_nothing_is_done_and_the_same_inputs_give_the_same_plan():
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    plan = a_plan("a[0:2] b[2:4]", problem)
    given = inputs(problem, plan)
    before = copy.deepcopy(given)
    first, second = plan_pass(given, Exhaustive(), course), plan_pass(given, Exhaustive(), course)
    assert first == second
    assert given == before
    assert (first.steps, first.in_transition, first.course) == (Done(), False, given.course)
    assert isinstance(first.decision, Keep)


def test_a_first_plan_is_adopted_with_the_steps_towards_it():
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    made = plan_pass(inputs(problem), Exhaustive(), course)
    assert isinstance(made.decision, Adopt)
    assert made.course == course(made.decision.plan)
    assert isinstance(made.steps, Steps)
    assert sorted(action.segment.node for action in made.steps.actions if isinstance(action, CreateSegment)) == ["a", "b"]
    assert made.in_transition


def test_while_what_is_asked_cannot_be_worked_with_the_walk_goes_on():
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    plan = a_plan("a[0:2] b[2:4]", problem)
    made = plan_pass(inputs(problem, plan, question=None, observed=observing(problem, plan, serves=False)), Exhaustive(), course)
    assert (made.decision, made.memory) == (None, None)
    assert made.steps == Steps(actions=(Cutover(route=target(plan).route),))


def test_a_plan_whose_model_cannot_be_read_has_no_steps_and_is_no_missing_plan():
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    plan = a_plan("a[0:2] b[2:4]", problem)
    made = plan_pass(inputs(problem, plan, course=Course(plan, None, "s")), Exhaustive(), course)
    assert made.steps is None
    assert not made.in_transition
    assert isinstance(made.decision, Keep), "the plan in force stays"


@pytest.mark.parametrize(("left_mib", "fits"), [(250, True), (199, False)])
def test_an_adoption_is_confirmed_by_the_memory_that_is_left_now(left_mib: int, fits: bool):
    """Another resource's plan may have taken it since the snapshot was read."""
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    given = inputs(problem)
    made = plan_pass(given, Exhaustive(), course)
    now = a_problem(a_node("a", mib=left_mib), a_node("b", mib=250)).snapshot
    after = confirmed(made, given, now)
    if fits:
        assert after == made
        return
    assert isinstance(after.decision, Keep)
    assert after.decision.reason is Kept.OVERTAKEN
    assert "another resource's plan took the memory" in after.decision.message
    assert (after.course, after.steps) == (None, None)


def test_a_confirmed_adoption_takes_its_steps_with_the_room_of_now():
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    given = inputs(problem)
    made = plan_pass(given, Exhaustive(), course)
    gone = a_problem(a_node("a", mib=250, ready=False), a_node("b", mib=250)).snapshot
    after = confirmed(made, given, gone)
    assert isinstance(made.steps, Steps)
    assert after.steps != made.steps


@pytest.mark.parametrize(("trusted", "stops", "cuts_over"), [(True, True, True), (False, False, True), (False, True, False)])
def test_no_route_is_written_that_breaks_a_rule_of_the_plan_where_none_may(trusted: bool, stops: bool, cuts_over: bool):
    labels = {"trusted": "true"} if trusted else {}
    problem = a_problem(a_node("a", mib=250, labels=labels), a_node("b", mib=250))
    plan = a_plan("a[0:2] b[2:4]", problem)
    proven = observing(problem, plan, serves=False)
    made = plan_pass(inputs(problem, question=None, course=course(plan, RULES), observed=proven, stops_exposed=stops), Exhaustive(), course)
    assert isinstance(made.steps, Steps)
    assert bool(made.steps.actions) is cuts_over
    assert bool(made.exposed) is not cuts_over
    assert made.steps.waiting == made.exposed


def test_a_segment_that_starts_on_a_lost_node_is_hoped_for_only_while_the_plan_has_it():
    """A new plan without it does not wait for it, nor count it in what serves."""
    problem = a_problem(a_node("a", mib=250, ready=False), a_node("b", mib=250), a_node("c", mib=250))
    plan = a_plan("a[0:2] b[2:4]", problem)
    starting = observing(problem, plan, phase=Phase.STARTING)
    made = plan_pass(inputs(problem, plan, observed=starting), Exhaustive(), course)
    assert isinstance(made.decision, Adopt)
    assert "a[" not in text_of(made.decision.plan)
    assert not isinstance(made.steps, Blocked)


def test_a_withdrawn_route_serves_nothing_and_drains_nothing():
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    observed = observing(problem, a_plan("a[0:2] b[2:4]", problem))
    assert without_route(observed).serving is None
    assert without_route(observed).segments == observed.segments


def test_the_simulation_rebuilds_nothing_of_a_pass():
    tree = ast.parse(Path(operator_pass.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert "plan_pass" in imported
    assert not imported & {"decide", "next_steps", "dry_run"}


def test_nothing_of_the_function_reads_a_clock_or_writes():
    """Times are those of the facts."""
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250))
    given = inputs(problem)
    assert given.question is not None
    later = given.question.facts.model_copy(update={"now": START + timedelta(hours=5)})
    made = plan_pass(
        PassInputs(**{**given.__dict__, "question": Question(later, Policy(), Memory(), Limits(seconds=1))}), Exhaustive(), course
    )
    assert isinstance(made.decision, Adopt)
    imports = {node.module for node in ast.walk(ast.parse(Path(module.__file__).read_text())) if isinstance(node, ast.ImportFrom)}
    assert all(
        name is not None and (name.startswith("splitinference.core.") or name in ("collections.abc", "dataclasses")) for name in imports
    )


def test_room_counts_the_devices_of_ready_nodes():
    cpu = Processor(name="", flops_per_s=1.0, memory_bandwidth_bytes_per_s=1.0, memory_free_bytes=1)
    places = (cpu, *(cpu.model_copy(update={"name": f"x.y/gpu/{n}", "resource": "x.y/gpu"}) for n in range(2)))
    nodes = (a_node("a", processors=places), a_node("b"), a_node("c", ready=False, processors=places))
    assert with_room(Observed(), Snapshot(nodes=nodes)).room_devices == {"a": {"x.y/gpu": 2}}
