"""Decisions about several pipelines, with the real solver: as many as fit, and those that work stay."""

import pytest

from splitinference.core.cost import predict, violations
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.decide.pipelines import aligned, beside, counting, joined, most_possible, parts
from splitinference.core.planner.solver import solve
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem, Slo, TrustRule
from splitinference.core.values.result import Limits
from tests.core.planning import START, a_node, a_plan, a_problem, text_of

LIMITS = Limits(seconds=8.0, cpu_time=True)
"""Of the processor's time: how busy the machine is decides nothing."""


def six(pipelines: int, mib: int = 310, **constraints: object) -> Problem:
    """Six nodes that hold two of the four layers each: room for three pipelines."""
    return a_problem(*(a_node(name, mib=mib) for name in "abcdef"), constraints=Constraints(pipelines=pipelines, **constraints))


def of(text: str, problem: Problem) -> Plan:
    """`a[0:2] b[2:4] | c[0:4]`, with its prediction."""
    plan = joined([a_plan(part) for part in text.split("|")])
    return plan.model_copy(update={"prediction": predict(plan, counting(problem, len(plan.pipelines)))})


def texts(plan: Plan) -> list[str]:
    return [text_of(part) for part in parts(plan)]


def nodes(plan: Plan) -> list[set[str]]:
    return [{segment.node for segment in pipeline.segments} for pipeline in plan.pipelines]


def decided(problem: Problem, plan: Plan | None, memory: Memory | None = None, dry_run=always_reachable, **more):
    serving = () if plan is None else tuple((s.start, s.end, s.node) for s in plan.segments)
    given = {"plan_spec_digest": "s", "spec_digest": "s", "now": START, **more}
    inputs = DecisionInputs(problem=problem.model_copy(update={"serving": serving}), plan=plan, **given)
    return decide(inputs, Policy(), memory or Memory(), solve, LIMITS, dry_run=dry_run)


def adopted(problem: Problem, plan: Plan | None, **more) -> Adopt:
    decision, _ = decided(problem, plan, **more)
    assert isinstance(decision, Adopt), decision
    assert violations(decision.plan, counting(problem, len(decision.plan.pipelines))) == ()
    return decision


def without_nodes(problem: Problem, *names: str) -> Problem:
    there = tuple(n.model_copy(update={"ready": n.name not in names}) for n in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": there})})


def after_a_while(problem: Problem, plan: Plan) -> Adopt:
    """The plan that is adopted when things stay as they are for some minutes."""
    memory, serving = Memory(), tuple((s.start, s.end, s.node) for s in plan.segments)
    for seconds in range(0, 200, 10):
        now = START.replace(minute=seconds // 60, second=seconds % 60)
        moved = problem.model_copy(update={"serving": serving})
        inputs = DecisionInputs(now=now, problem=moved, plan=plan, plan_spec_digest="s", spec_digest="s")
        decision, memory = decide(inputs, Policy(), memory, solve, LIMITS)
        if isinstance(decision, Adopt):
            return decision
    raise AssertionError(decision)


def test_a_first_plan_has_as_many_pipelines_as_are_asked_for_on_nodes_of_their_own():
    plan = adopted(six(3), None).plan
    assert len(plan.pipelines) == 3
    used = [name for pipeline in nodes(plan) for name in pipeline]
    assert sorted(used) == list("abcdef")


def test_more_than_fit_are_as_many_as_fit_and_the_numbers_are_said():
    decision = adopted(six(5), None)
    assert len(decision.plan.pipelines) == 3
    assert "5 pipelines are requested, 3 fit: " in decision.message
    assert "pipelines 3 instead of 4" in decision.message


def test_to_scale_up_adds_a_pipeline_and_leaves_the_others_alone():
    problem = six(2)
    plan = of("a[0:2] b[2:4]", problem)
    decision = adopted(problem, plan, spec_digest="t")
    assert texts(decision.plan)[0] == "a[0:2] b[2:4]"
    assert len(decision.plan.pipelines) == 2
    assert not nodes(decision.plan)[0] & nodes(decision.plan)[1]
    assert (decision.reason, decision.change) == (Reason.SPEC_CHANGED, Change.SCALING)


def test_a_better_plan_for_all_is_no_reason_to_move_a_pipeline_while_another_one_is_added():
    """The first pipeline has the two quick nodes; with one for each, the slowest of both would be quicker. That may come later."""
    there = [a_node(n, mib=310, gflops=100 if n in "ab" else 30) for n in "abcd"]
    problem = a_problem(*there, constraints=Constraints(pipelines=2))
    plan = of("a[0:2] b[2:4]", problem)
    both = adopted(problem, plan, spec_digest="t").plan
    assert texts(both)[0] == "a[0:2] b[2:4]"
    better = after_a_while(problem, both)
    assert better.reason is Reason.BETTER_PLAN
    assert all(len(used & {"a", "b"}) == 1 for used in nodes(better.plan))
    assert (better.plan.value or 0.0) < 0.9 * (both.value or 0.0)


@pytest.mark.parametrize("asked", [2, 9], ids=["back to what serves", "beyond capacity"])
def test_another_number_alone_moves_no_pipeline_although_a_plan_of_all_would_be_better(asked: int):
    """The first pipeline has both quick nodes. Who changes more than the number may get the better plan at once."""
    there = [a_node(n, mib=310, gflops=100 if n in "ab" else 30) for n in "abcd"]
    problem = a_problem(*there, constraints=Constraints(pipelines=asked))
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem)
    decision = adopted(problem, plan, spec_digest="t", only_scaled=True)
    assert (decision.plan.revision, decision.change) == (plan.revision, Change.KEEP)
    if asked == 2:
        assert adopted(problem, plan, spec_digest="t").plan.revision != plan.revision


def test_to_scale_down_takes_the_worst_pipeline_away_and_leaves_the_others_alone():
    problem = a_problem(*(a_node(n, mib=310, gflops=20 if n in "cd" else 100) for n in "abcdef"), constraints=Constraints(pipelines=2))
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4] | e[0:2] f[2:4]", problem)
    assert texts(adopted(problem, plan, spec_digest="t").plan) == ["a[0:2] b[2:4]", "e[0:2] f[2:4]"]


def test_beyond_capacity_what_serves_stays_and_is_asked_for_again_only_when_something_changes():
    problem = six(5)
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4] | e[0:2] f[2:4]", problem)
    decision = adopted(problem, plan, spec_digest="t")
    assert (decision.plan.revision, decision.change) == (plan.revision, Change.KEEP)
    assert "5 pipelines are requested, 3 fit: " in decision.message
    again, memory = decided(problem, plan)
    assert isinstance(again, Keep)
    assert again.trigger is not None
    assert (again.trigger.reason, again.trigger.message) == (Reason.PIPELINES_MISSING, "the plan has 3 of 5 pipelines")
    asked: list[Problem] = []

    def counted(problem, limits, hint=None):
        asked.append(problem)
        return solve(problem, limits, hint)

    inputs = DecisionInputs(now=START, problem=problem, plan=plan, plan_spec_digest="s", spec_digest="s", may_review=False)
    kept, _ = decide(inputs, Policy(), memory, counted, LIMITS)
    assert isinstance(kept, Keep)
    assert asked == [], "nothing changed, so nothing is solved"
    assert kept.message == again.message, "and why is still said"


def test_a_request_far_beyond_capacity_does_not_try_every_number():
    """Six nodes: their memory says that there are at most four pipelines, and of three and four is found out which fit."""
    asked: list[int] = []

    def counted(problem, limits, hint=None):
        asked.append(problem.constraints.pipelines)
        return solve(problem, limits, hint)

    inputs = DecisionInputs(now=START, problem=six(16), plan_spec_digest="s", spec_digest="s")
    decision, _ = decide(inputs, Policy(), Memory(), counted, LIMITS)
    assert isinstance(decision, Adopt)
    assert len(decision.plan.pipelines) == 3
    assert max(asked) <= most_possible(six(16)) == 4
    assert most_possible(six(16, min_segments=2)) == 3
    assert most_possible(six(16, max_nodes=2)) == 2


def test_where_memory_cannot_do_for_one_more_nothing_is_solved_to_say_so():
    """Also where the memory of nodes changes all the time, so that another attempt is due again and again."""
    problem = six(5, mib=230)
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4] | e[0:2] f[2:4]", problem)

    def never(*_):
        raise AssertionError("nothing is to be solved")

    given = {"plan": plan, "plan_spec_digest": "s", "spec_digest": "s", "may_review": False}
    kept, _ = decide(DecisionInputs(now=START, problem=problem, **given), Policy(), Memory(), never, LIMITS)
    assert isinstance(kept, Keep)
    assert "5 pipelines are required, and there can be at most 3; the model needs 441 MiB" in kept.message


def test_missing_pipelines_come_once_there_is_room():
    problem = six(3)
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem)
    decision = adopted(problem, plan)
    assert decision.reason is Reason.PIPELINES_MISSING
    assert texts(decision.plan)[:2] == ["a[0:2] b[2:4]", "c[0:2] d[2:4]"]
    assert nodes(decision.plan)[2] == {"e", "f"}


def test_missing_pipelines_wait_for_the_end_of_a_transition():
    problem = six(3)
    decision, _ = decided(problem, of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem), in_transition=True)
    assert decision == Keep(reason=Kept.STEADY)


def test_a_plan_with_fewer_pipelines_still_answers_to_load():
    """With no room for the missing one, a busy node of a pipeline is left all the same."""
    there = [a_node(n, mib=310, gflops=100, utilization=0.9 if n == "b" else 0.0) for n in "abc"]
    problem = a_problem(*there, constraints=Constraints(pipelines=2))
    plan = of("a[0:2] b[2:4]", problem)
    busy = Memory()
    decision: Adopt | Keep
    for seconds in range(0, 200, 10):
        given = {"plan": plan, "plan_spec_digest": "s", "spec_digest": "s"}
        moved = problem.model_copy(update={"serving": ((0, 2, "a"), (2, 4, "b"))})
        decision, busy = decide(
            DecisionInputs(now=START.replace(minute=seconds // 60, second=seconds % 60), problem=moved, **given),
            Policy(),
            busy,
            solve,
            LIMITS,
        )
        if isinstance(decision, Adopt):
            break
    assert isinstance(decision, Adopt), decision
    assert nodes(decision.plan) == [{"a", "c"}]


def test_a_lost_node_changes_the_pipeline_that_it_concerns():
    problem = without_nodes(six(2), "d")
    decision = adopted(problem, of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem))
    assert decision.reason is Reason.NODE_LOST
    assert texts(decision.plan)[0] == "a[0:2] b[2:4]"
    moved = decision.plan.pipelines[1].segments
    assert moved[0].node == "c", "what still runs of the broken pipeline stays, too"
    assert moved[1].node in "ef"


def test_a_pipeline_that_cannot_be_mended_is_given_up_and_the_others_serve_on():
    problem = without_nodes(six(3), "d")
    decision = adopted(problem, of("a[0:2] b[2:4] | c[0:2] d[2:4] | e[0:2] f[2:4]", problem))
    assert texts(decision.plan) == ["a[0:2] b[2:4]", "e[0:2] f[2:4]"]
    assert "3 pipelines are requested, 2 fit: " in decision.message
    assert decision.change is Change.SCALING


def test_two_broken_pipelines_are_each_mended():
    problem = a_problem(*(a_node(n, mib=310) for n in "abcdefgh"), constraints=Constraints(pipelines=3))
    problem = without_nodes(problem, "b", "d")
    plan = adopted(problem, of("a[0:2] b[2:4] | c[0:2] d[2:4] | e[0:2] f[2:4]", problem)).plan
    assert texts(plan)[2] == "e[0:2] f[2:4]"
    assert nodes(plan)[0] in ({"a", "g"}, {"a", "h"})
    assert nodes(plan)[1] in ({"c", "g"}, {"c", "h"})


def test_a_rule_of_privacy_changes_the_pipeline_that_it_concerns():
    there = [a_node(n, mib=310, labels={"trusted": "yes"} if n in "aef" else {}) for n in "abcdef"]
    rules = Constraints(pipelines=2, trust=(TrustRule(start=0, end=1, labels={"trusted": "yes"}),))
    problem = a_problem(*there, constraints=rules)
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem)
    decision = adopted(problem, plan)
    assert decision.reason is Reason.PRIVACY_CHANGED
    assert texts(decision.plan)[0] == "a[0:2] b[2:4]"
    assert decision.plan.pipelines[1].segments[0].node in "ef"


def test_where_the_new_pipeline_needs_the_room_of_another_all_are_planned_anew():
    """One node holds all, but is taken by the pipeline's small part: only another cut of both lets two pipelines exist."""
    there = [a_node("a", mib=450), a_node("b", mib=450), a_node("c", mib=130), a_node("d", mib=130)]
    problem = a_problem(*there, constraints=Constraints(pipelines=2))
    plan = of("a[0:2] b[2:4]", problem)
    decision = adopted(problem, plan, spec_digest="t")
    assert len(decision.plan.pipelines) == 2


def test_a_plan_that_cannot_be_reached_gives_way_to_one_with_fewer_pipelines():
    problem = six(3)
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem)

    def dry_run(wanted: Plan) -> Blocked | None:
        return Blocked(why="e has no room") if {"e", "f"} & {s.node for s in wanted.segments} else always_reachable(wanted)

    decision, _ = decided(problem, plan, spec_digest="t", dry_run=dry_run)
    assert isinstance(decision, Adopt)
    assert decision.plan.revision == plan.revision
    assert "e has no room" in decision.message


def test_an_slo_that_all_pipelines_together_miss_gives_fewer_that_keep_it():
    there = [a_node(n, mib=310, gflops=100 if n in "abcd" else 5) for n in "abcdef"]
    problem = a_problem(*there, constraints=Constraints(pipelines=3), slo=Slo(time_per_output_token_ms=30))
    decision = adopted(problem, None)
    assert len(decision.plan.pipelines) == 2
    assert nodes(decision.plan)[0] | nodes(decision.plan)[1] == set("abcd")


def test_the_most_nodes_hold_for_all_pipelines_together():
    decision = adopted(six(3, max_nodes=4), None)
    assert len(decision.plan.pipelines) == 2
    assert beside(six(3, max_nodes=4), [a_plan("a[0:2] b[2:4]"), a_plan("c[0:2] d[2:4]")]) is None


def test_the_slowest_pipeline_moves_and_the_others_stay():
    there = [a_node(n, mib=310, gflops=100, utilization=0.9 if n == "d" else 0.0) for n in "abcde"]
    problem = a_problem(*there, constraints=Constraints(pipelines=2))
    plan = of("a[0:2] b[2:4] | c[0:2] d[2:4]", problem)
    decision = after_a_while(problem, plan)
    assert texts(decision.plan)[0] == "a[0:2] b[2:4]"
    assert nodes(decision.plan)[1] == {"c", "e"}


@pytest.mark.parametrize(
    ("new", "old", "expected"),
    [
        ("c[0:4] | a[0:4]", "a[0:4] | b[0:4]", ["a[0:4]", "c[0:4]"]),
        ("b[0:4]", "a[0:4] | b[0:4]", ["b[0:4]"]),
        ("c[0:4] | b[0:4] | a[0:4]", "a[0:4] | b[0:4]", ["a[0:4]", "b[0:4]", "c[0:4]"]),
        ("c[0:4] | d[0:4]", "a[0:4] | b[0:4]", ["c[0:4]", "d[0:4]"]),
    ],
)
def test_pipelines_keep_their_numbers(new, old, expected):
    wide = a_problem(*(a_node(n) for n in "abcd"))
    assert texts(aligned(of(new, wide), of(old, wide))) == expected
