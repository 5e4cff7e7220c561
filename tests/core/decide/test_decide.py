"""Keep, migrate, re-split: decisions over small problems, with a solver that tries every plan."""

from datetime import timedelta

import pytest

from splitinference.core.cost import objective_value
from splitinference.core.decide.base.compare import Change, gain, move_seconds, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Memory, Mode, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.transition.steps import Blocked, Done
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem, Slo
from splitinference.core.values.result import Limits, Outcome, Solved, TimedOut
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, a_profile, inputs, text_of

POLICY = Policy(
    window=timedelta(seconds=20), confirmations=3, cooldown=timedelta(seconds=60), review=timedelta(hours=1), load_bytes_per_s=1e9
)
LIMITS = Limits(seconds=1)
SMALL = {"mib": 250}
IDLE = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", **SMALL))
PLAN = a_plan("a[0:2] b[2:4]", IDLE)


def after(problem: Problem, plan: Plan | None, policy: Policy = POLICY, steps: int = 6, solve=None, **more):
    """The last decision after so many looks, five seconds apart, and the solver."""
    memory, solver = Memory(reviewed=START), solve or Exhaustive()
    decision: Adopt | Keep | None = None
    for step in range(steps):
        decision, memory = decide(inputs(problem, plan, 100 + 5 * step, **more), policy, memory, solver, LIMITS)
        if isinstance(decision, Adopt):
            break
    return decision


def busy_b(share: float | None, *others):
    return a_problem(a_node("a", **SMALL), a_node("b", utilization=share, **SMALL), a_node("c", **SMALL), *others)


def test_the_first_plan():
    found = after(IDLE, None)
    assert isinstance(found, Adopt)
    assert (found.reason, found.change) == (Reason.NO_PLAN, Change.FIRST)
    assert found.plan.optimal


def test_nothing_to_say_keeps_the_plan_and_does_not_solve():
    solver = Exhaustive()
    found, _ = decide(inputs(IDLE, PLAN, 1), POLICY, Memory(reviewed=START), solver, LIMITS)
    assert found == Keep(reason=Kept.STEADY)
    assert solver.asked == []


def test_a_busy_node_loses_its_segment_to_an_idle_one_with_the_same_cuts():
    found = after(busy_b(0.93), PLAN)
    assert isinstance(found, Adopt)
    assert text_of(found.plan) == "a[0:2] c[2:4]"
    assert found.change is Change.MIGRATION
    assert found.reason is Reason.UTILIZATION_SHIFTED
    assert found.message.startswith("stage 1 on b: 93 % used by others for 20 s (limit 70 %); predicted ")
    assert "ms per token" in found.message
    assert "moving 200 MiB takes about 8 s" in found.message


def test_the_model_is_cut_anew_when_moving_does_not_pay():
    """Nothing is idle, so moving gains nothing; but a can take more of the layers than b."""
    now = a_problem(a_node("a", mib=350), a_node("b", mib=350, utilization=0.9))
    found = after(now, a_plan("a[0:2] b[2:4]", now))
    assert isinstance(found, Adopt)
    assert found.change is Change.RESPLIT
    assert text_of(found.plan) in ("a[0:3] b[3:4]", "b[0:1] a[1:4]")


def test_new_cuts_that_cannot_be_reached_do_not_stand_in_the_way_of_a_migration_that_can():
    """d alone would be best; but there may be no room for all of it beside what serves."""
    now = busy_b(0.93, a_node("d", gflops=120, mib=1000))

    def migrations(plan: Plan) -> Done | Blocked:
        return Done() if plan.pipelines[0].split_points == (2,) else Blocked(why="no room")

    def last(ends) -> Adopt | Keep | None:
        memory, decision = Memory(reviewed=START), None
        for step in range(6):
            decision, memory = decide(inputs(now, PLAN, 100 + 5 * step), POLICY, memory, Exhaustive(), LIMITS, dry_run=ends)
            if isinstance(decision, Adopt):
                break
        return decision

    freely, bound = last(always_reachable), last(migrations)
    assert isinstance(freely, Adopt)
    assert isinstance(bound, Adopt)
    assert (freely.change, text_of(freely.plan)) == (Change.RESPLIT, "d[0:4]")
    assert (bound.change, text_of(bound.plan)) == (Change.MIGRATION, "a[0:2] d[2:4]")


def test_a_gain_that_does_not_pay_for_the_move_keeps_the_plan():
    slow_disk = POLICY.model_copy(update={"load_bytes_per_s": 1e5})
    found = after(busy_b(0.93), PLAN, slow_disk, steps=5)
    assert isinstance(found, Keep)
    assert found.reason is Kept.GAIN_TOO_SMALL
    assert "net gain" in found.message


def test_a_busy_node_without_a_better_place_keeps_the_plan():
    now = a_problem(a_node("a", **SMALL), a_node("b", utilization=0.93, **SMALL))
    plan = a_plan("a[0:2] b[2:4]", now)
    found = after(now, plan, steps=5)
    assert isinstance(found, Keep)
    assert found.reason in (Kept.GAIN_TOO_SMALL, Kept.STEADY)


def test_advisory_says_what_it_would_do():
    found = after(busy_b(0.93), PLAN, POLICY.model_copy(update={"mode": Mode.ADVISORY}), steps=5)
    assert isinstance(found, Keep)
    assert found.reason is Kept.ADVISED
    assert found.proposal is not None
    assert found.proposal.revision != PLAN.revision, "what would be done is another plan"
    assert found.message.endswith("mode Advisory: the plan would be a[0:2] c[2:4]")


def test_frozen_mends_and_nothing_else():
    frozen = POLICY.model_copy(update={"mode": Mode.FROZEN})
    assert after(busy_b(0.93), PLAN, frozen) == Keep(reason=Kept.STEADY)
    found = after(a_problem(a_node("a", **SMALL), a_node("c", **SMALL)), PLAN, frozen)
    assert isinstance(found, Adopt)
    assert found.reason is Reason.NODE_LOST


def test_an_unknown_node_is_never_a_target_of_an_optional_move():
    now = a_problem(a_node("a", **SMALL), a_node("b", utilization=0.93, **SMALL), a_node("c", utilization=None, **SMALL))
    found = after(now, PLAN)
    assert not isinstance(found, Adopt) or "c" not in text_of(found.plan)


def test_without_metrics_a_better_plan_is_not_taken():
    policy = POLICY.model_copy(update={"review": timedelta(seconds=1)})
    now = a_problem(
        a_node("a", utilization=None, **SMALL), a_node("b", utilization=None, **SMALL), a_node("c", gflops=900, utilization=None)
    )
    found = after(now, PLAN, policy, steps=20)
    assert isinstance(found, Keep)
    assert found.reason is Kept.UNKNOWN_METRICS
    assert found.message == "the review for a better plan is due, every 1 s; nothing moves while the utilization of a, b is unknown"


def test_a_better_plan_must_be_better_for_the_window_and_again_and_again():
    policy = POLICY.model_copy(update={"review": timedelta(seconds=5)})
    now = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", gflops=900, mib=1000))
    memory, solver, decisions = Memory(reviewed=START), Exhaustive(), []
    for step in range(8):
        found, memory = decide(inputs(now, PLAN, 100 + 5 * step), policy, memory, solver, LIMITS)
        decisions.append(found)
        if isinstance(found, Adopt):
            break
    assert isinstance(decisions[-1], Adopt)
    assert decisions[-1].reason is Reason.BETTER_PLAN
    assert len(decisions) >= 5, "the window was not waited for"
    assert all(isinstance(d, Keep) and d.reason in (Kept.CONFIRMING, Kept.STEADY) for d in decisions[:-1])


def test_a_lost_node_is_left_with_the_same_cuts_where_they_fit():
    found = after(a_problem(a_node("a", **SMALL), a_node("c", **SMALL)), PLAN)
    assert isinstance(found, Adopt)
    assert found.change is Change.MIGRATION
    assert text_of(found.plan) == "a[0:2] c[2:4]"


@pytest.mark.parametrize(("gflops", "expected"), [(105, "a[0:2] c[2:4]"), (300, "c[0:2] d[2:4]")])
def test_what_still_runs_stays_when_a_node_is_lost_unless_leaving_it_pays(gflops, expected):
    """c and d are both better than a: a little, or so much that the longer move is worth it."""
    found = after(a_problem(a_node("a", **SMALL), a_node("c", gflops=gflops, **SMALL), a_node("d", gflops=gflops, **SMALL)), PLAN)
    assert isinstance(found, Adopt)
    assert found.reason is Reason.NODE_LOST
    assert set(text_of(found.plan).split()) <= {*expected.split(), *expected.translate(str.maketrans("cd", "dc")).split()}
    assert text_of(found.plan).startswith("a") is expected.startswith("a")


def test_a_lost_node_means_new_cuts_where_the_old_do_not_fit():
    found = after(a_problem(a_node("a", mib=1000)), PLAN)
    assert isinstance(found, Adopt)
    assert found.change is Change.RESPLIT
    assert text_of(found.plan) == "a[0:4]"


def test_what_cannot_be_planned_keeps_the_plan_says_why_and_is_not_tried_at_every_pass():
    solver = Exhaustive()
    small = a_problem(a_node("a", mib=100))
    first, memory = decide(inputs(small, PLAN, 0), POLICY, Memory(), solver, LIMITS)
    assert isinstance(first, Keep)
    assert first.reason is Kept.INFEASIBLE
    assert (
        first.message
        == "stage 1 runs on b, which cannot be used: it no longer exists; the model needs 400 MiB and no set of nodes holds it"
    )
    asked = len(solver.asked)
    again, memory = decide(inputs(small, PLAN, 1), POLICY, memory, solver, LIMITS)
    assert again == first
    assert len(solver.asked) == asked
    more, memory = decide(inputs(a_problem(a_node("a", mib=1000)), PLAN, 6), POLICY, memory, solver, LIMITS)
    assert isinstance(more, Adopt)


def test_an_unchanged_problem_is_tried_again_after_a_while():
    solver = Exhaustive()
    small = a_problem(a_node("a", mib=100))
    _, memory = decide(inputs(small, PLAN, 0), POLICY, Memory(), solver, LIMITS)
    asked = len(solver.asked)
    decide(inputs(small, PLAN, 16), POLICY, memory, solver, LIMITS)
    assert len(solver.asked) > asked


def test_an_slo_that_no_plan_keeps_is_said_and_the_best_plan_is_taken():
    found = after(a_problem(a_node("a"), slo=Slo(time_per_output_token_ms=0.001)), None)
    assert isinstance(found, Adopt)
    assert "no plan meets the SLO" in found.message


def test_a_changed_specification_that_the_plan_still_meets_keeps_it():
    found = after(IDLE, PLAN, spec_digest="other")
    assert isinstance(found, Adopt)
    assert found.change is Change.KEEP
    assert found.plan.revision == PLAN.revision


def test_a_changed_specification_that_the_plan_breaks_gives_another():
    one = a_problem(a_node("a"), a_node("b"), constraints=Constraints(max_segments=1))
    found = after(one, PLAN, spec_digest="other")
    assert isinstance(found, Adopt)
    assert found.change is Change.RESPLIT
    assert len(found.plan.segments) == 1


def test_another_model_is_a_first_plan():
    other = a_problem(a_node("a"), a_node("b"), profile=a_profile(digest="fedcba9876543210"))
    found = after(other, PLAN, spec_digest="other")
    assert isinstance(found, Adopt)
    assert found.change is Change.FIRST


def test_a_quarantined_node_is_not_planned_on():
    found = after(IDLE, PLAN, quarantined={"b": "3 failures"})
    assert isinstance(found, Adopt)
    assert found.reason is Reason.SEGMENT_FAILED
    assert "b[" not in text_of(found.plan)


def test_a_solver_that_runs_out_of_time_keeps_the_plan():
    def slow(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        return TimedOut(best=None, bound=0.0)

    found = after(IDLE, None, solve=slow)
    assert isinstance(found, Keep)
    assert (found.reason, found.message) == (Kept.SOLVE_TIMED_OUT, "there is no plan yet; the solver found no plan within 1 s")


def test_the_best_of_a_solver_that_ran_out_of_time_is_good_enough():
    def slow(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        return TimedOut(best=a_plan("a[0:2] b[2:4]"), bound=0.0)

    assert isinstance(after(IDLE, None, solve=slow), Adopt)


def test_a_plan_that_breaks_a_constraint_is_never_adopted_whatever_the_solver_says():
    def wrong(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        return Solved(plan=a_plan("a[0:4]"), bound=0.0, gap=0.0, optimal=True, seconds=0.0, explanation=())

    found = after(IDLE, None, solve=wrong)
    assert isinstance(found, Keep)
    assert found.reason is Kept.PLAN_REJECTED


@pytest.mark.parametrize("period", [1, 2, 3, 5, 8])
def test_a_load_that_swings_around_the_limit_moves_at_most_once(period):
    """Five minutes, a look each second."""
    policy = POLICY.model_copy(update={"review": timedelta(seconds=30)})
    plan, memory, solver, moves = PLAN, Memory(reviewed=START), Exhaustive(), []
    for second in range(300):
        share = 0.75 if (second // period) % 2 else 0.65
        found, memory = decide(inputs(busy_b(share), plan, second, moves=tuple(moves)), policy, memory, solver, LIMITS)
        if isinstance(found, Adopt):
            plan = found.plan
            moves.append(inputs(IDLE, plan, second).now)
    assert len(moves) <= 1


TWO_BUSY = a_problem(
    a_node("a", utilization=0.9, **SMALL), a_node("b", utilization=0.9, **SMALL), a_node("c", **SMALL), a_node("d", gflops=120.0, **SMALL)
)
BOTH = a_plan("a[0:2] b[2:4]", TWO_BUSY)


def moved_segments(plan: Plan) -> int:
    return len({(s.start, s.end, s.node) for s in plan.segments} - {(s.start, s.end, s.node) for s in BOTH.segments})


def looking(reaches, seconds=(100, 105, 110, 115, 120)) -> tuple[Adopt | Keep, Memory]:
    """The decision when only plans that `reaches` says can be walked to, and the memory after it."""

    def ends(plan: Plan) -> Done | Blocked:
        return Done() if reaches(plan) else Blocked(why="b has no room")

    memory = Memory(reviewed=START)
    for at in seconds:
        decision, memory = decide(inputs(TWO_BUSY, BOTH, at), POLICY, memory, Exhaustive(), LIMITS, dry_run=ends)
    return decision, memory


def test_where_the_best_plan_has_no_room_the_best_single_move_is_made():
    best, _ = looking(lambda plan: True)
    assert isinstance(best, Adopt)
    assert moved_segments(best.plan) == 2
    found, memory = looking(lambda plan: moved_segments(plan) <= 1)
    assert isinstance(found, Adopt)
    assert moved_segments(found.plan) == 1
    assert "d" in [s.node for s in found.plan.segments], "the better of the two free nodes"
    assert memory.watches == {}


def test_a_plan_without_any_way_to_it_does_not_make_the_reasons_be_forgotten():
    found, memory = looking(lambda plan: False)
    assert isinstance(found, Keep)
    assert found.reason is Kept.BLOCKED
    assert found.message.endswith("; the plan cannot be reached: b has no room")
    assert f"{Reason.UTILIZATION_SHIFTED}/a" in memory.watches
    assert Reason.BETTER_PLAN not in memory.watches


A_FASTER_C = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", gflops=150, **SMALL))


@pytest.mark.parametrize(("above", "expected"), [(-1e-6, Change.MIGRATION), (0.0, Change.KEEP), (1e-6, Change.KEEP)])
def test_a_changed_specification_keeps_the_plan_unless_another_is_better_by_more_than_the_least_gain(above, expected):
    """The least gain lies this much above what the best other plan gains."""
    here, there = (objective_value(a_plan(text), A_FASTER_C) for text in ("a[0:2] b[2:4]", "a[0:2] c[2:4]"))
    found = after(A_FASTER_C, PLAN, POLICY.model_copy(update={"min_gain": (here - there) / here + above}), spec_digest="other")
    assert isinstance(found, Adopt)
    assert found.change is expected


LARGER_E = busy_b(0.93, a_node("e", gflops=130, mib=350))
SLOW_LOAD = POLICY.model_copy(update={"load_bytes_per_s": 2e7})


@pytest.mark.parametrize(("above", "expected"), [(-1e-6, Change.RESPLIT), (0.0, Change.MIGRATION), (1e-6, Change.MIGRATION)])
def test_new_cuts_must_be_better_than_moving_by_more_than_the_gain_of_a_re_split_with_their_longer_move_taken_off(above, expected):
    """The gain that a re-split must have lies this much above what it has."""
    problem = inputs(LARGER_E, PLAN).problem
    moved, cut = a_plan("a[0:2] e[2:4]"), a_plan("a[0:1] e[1:4]")
    further = gain(objective_value(moved, problem), objective_value(cut, problem), problem)
    longer = move_seconds(cut, problem, SLOW_LOAD) - move_seconds(moved, problem, SLOW_LOAD)
    assert longer > 0
    found = after(LARGER_E, PLAN, SLOW_LOAD.model_copy(update={"resplit_gain": further - longer / 600.0 + above}))
    assert isinstance(found, Adopt)
    assert found.change is expected


@pytest.mark.parametrize(("above", "moves"), [(-1e-6, True), (0.0, False), (1e-6, False)])
def test_an_optional_move_must_gain_more_than_the_least_gain_with_its_cost_taken_off(above, moves):
    """The least gain lies this much above what the move gains."""
    problem = inputs(busy_b(0.93), PLAN).problem
    net = net_gain(PLAN, a_plan("a[0:2] c[2:4]"), problem, POLICY)
    found = after(busy_b(0.93), PLAN, POLICY.model_copy(update={"min_gain": net + above}), steps=5)
    assert isinstance(found, Adopt) is moves
    assert found.reason is (Reason.UTILIZATION_SHIFTED if moves else Kept.GAIN_TOO_SMALL)


@pytest.mark.parametrize(("above", "expected"), [(-1e-6, "c[0:2] d[2:4]"), (0.0, "a[0:2] c[2:4]"), (1e-6, "a[0:2] c[2:4]")])
def test_what_still_runs_is_left_only_for_more_than_the_least_gain_with_the_longer_move_taken_off(above, expected):
    """b is lost, and a still runs. The least gain lies this much above what leaving a gains."""
    now = a_problem(a_node("a", **SMALL), a_node("c", gflops=300, **SMALL), a_node("d", gflops=300, **SMALL))
    problem = inputs(now, PLAN).problem
    least, best = a_plan("a[0:2] c[2:4]"), a_plan("c[0:2] d[2:4]")
    further = gain(objective_value(least, problem), objective_value(best, problem), problem)
    longer = move_seconds(best, problem, SLOW_LOAD) - move_seconds(least, problem, SLOW_LOAD)
    assert longer > 0
    found = after(now, PLAN, SLOW_LOAD.model_copy(update={"min_gain": further - longer / 600.0 + above}))
    assert isinstance(found, Adopt)
    assert text_of(found.plan) == expected
