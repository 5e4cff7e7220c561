"""Thresholds and times that the documentation promises: just below, at, and just above each."""

import math
from datetime import timedelta
from typing import Any

import pytest

from splitinference.core.cost import objective_value, predict
from splitinference.core.decide.base.compare import figures, gain, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Obstacle, Policy, Slowed, StageTime, Watch
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.decide.decide import decide
from splitinference.core.decide.early_load_signal import with_early_load
from splitinference.core.decide.feasibility.capacity_memory import memory_limits, update_obstacles
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem, Slo
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Outcome
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs, text_of

POLICY = Policy(window=timedelta(seconds=60), confirmations=3, cooldown=timedelta(seconds=60), review=timedelta(hours=1))
IDLE = a_problem(a_node("a"), a_node("b"), a_node("c"))
BUSY = a_problem(a_node("a"), a_node("b", utilization=0.9), a_node("c"))
PLAN = a_plan("a[0:2] b[2:4]", IDLE)


def ago(seconds: float, now: float = 10_000.0):
    return START + timedelta(seconds=now - seconds)


def looked(memory: Memory, problem: Problem = IDLE, policy: Policy = POLICY, now: float = 10_000.0, **more: Any) -> Reason | None:
    found, _ = check(inputs(problem, PLAN, now, **more), policy, memory)
    return None if found is None else found.reason


# --- how often the operator searches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "due"), [(19.9, False), (20, True), (20.1, True)])
def test_while_a_better_plan_is_confirmed_the_search_comes_with_each_share_of_the_window(seconds, due):
    watches = {Reason.BETTER_PLAN: Watch(since=ago(30), confirmations=1, last=ago(30))}
    assert looked(Memory(reviewed=ago(seconds), watches=watches)) == (Reason.BETTER_PLAN if due else None)


@pytest.mark.parametrize(("seconds", "due"), [(3599.9, False), (3600, True)])
def test_without_one_it_comes_once_in_the_time_of_a_review(seconds, due):
    assert looked(Memory(reviewed=ago(seconds))) == (Reason.BETTER_PLAN if due else None)


HELD = {f"{Reason.UTILIZATION_SHIFTED}/b": Watch(since=ago(100), confirmations=5, last=ago(1))}


@pytest.mark.parametrize(("seconds", "due"), [(14.9, False), (15, True)])
def test_a_reason_that_holds_is_looked_at_again_after_15_seconds(seconds, due):
    assert looked(Memory(reviewed=ago(seconds), watches=HELD), BUSY) == (Reason.UTILIZATION_SHIFTED if due else None)


@pytest.mark.parametrize(("seconds", "due"), [(4.9, False), (5, True)])
def test_or_sooner_where_a_better_plan_is_confirmed_in_smaller_shares(seconds, due):
    policy = POLICY.model_copy(update={"window": timedelta(seconds=15)})
    watches = {**HELD, Reason.BETTER_PLAN: Watch(since=ago(6), confirmations=1, last=ago(6))}
    assert looked(Memory(reviewed=ago(seconds), watches=watches), BUSY, policy) == (Reason.UTILIZATION_SHIFTED if due else None)


def test_a_reason_that_holds_and_must_wait_is_not_hidden_by_a_review():
    assert looked(Memory(reviewed=ago(10), watches=HELD), BUSY, POLICY.model_copy(update={"review": timedelta(seconds=5)})) is None


# --- a transition that is blocked -----------------------------------------------------------------------------------------------------

STUCK = {"blocked": Blocked(why="b has no room"), "in_transition": True}
BLOCKED_LONG = {Reason.TRANSITION_BLOCKED: Watch(since=ago(100), confirmations=1, last=ago(1))}


@pytest.mark.parametrize(
    ("seconds", "served", "given_up"),
    [(59.9, True, False), (60, True, True), (14.9, False, False), (15, False, True), (59.9, False, True)],
)
def test_a_transition_is_abandoned_once_in_a_cooldown_and_sooner_where_nobody_is_served(seconds, served, given_up):
    memory = Memory(watches=BLOCKED_LONG, detoured=ago(seconds))
    assert looked(memory, served=served, **STUCK) == (Reason.TRANSITION_BLOCKED if given_up else None)


@pytest.mark.parametrize(("moves", "served", "given_up"), [(5, True, True), (6, True, False), (7, True, False), (6, False, True)])
def test_and_within_the_moves_of_an_hour_unless_nobody_is_served(moves, served, given_up):
    made = tuple(ago(3000 - number) for number in range(moves))
    assert looked(Memory(watches=BLOCKED_LONG), moves=made, served=served, **STUCK) == (Reason.TRANSITION_BLOCKED if given_up else None)


@pytest.mark.parametrize(("seconds", "known"), [(599.9, True), (600, False), (600.1, False)])
def test_a_node_that_was_in_the_way_counts_as_full_for_ten_minutes(seconds, known):
    memory = Memory(obstacles={"b": Obstacle(at=ago(seconds), free_bytes=7)})
    assert ("b" in update_obstacles(memory, inputs(IDLE, PLAN, 10_000), POLICY).obstacles) is known


@pytest.mark.parametrize(("held", "most"), [({}, 7), ({"b": 6}, 7), ({"b": 7}, 7), ({"b": 8}, 8), ({"c": 8}, 7)])
def test_but_what_our_segments_hold_there_is_never_taken_from_them(held, most):
    assert memory_limits({"b": Obstacle(at=START, free_bytes=7)}, inputs(IDLE, PLAN, held_bytes=held)) == {"b": most}


# --- decode steps before metrics ------------------------------------------------------------------------------------------------------

ALONE_MS = 2.0
"""Of two layers on an idle node of 100 GFLOP/s."""


def stepped(
    ratio: float, used: float, was: Slowed | None, *, alone_ms: float = ALONE_MS, **more: Any
) -> tuple[float | None, Slowed | None]:
    """What counts as used of b, and what is remembered of it, after steps that took so many times what is predicted at this use."""
    problem = a_problem(a_node("a"), a_node("b", utilization=used), a_node("c"))
    given = {"node": "b", "start": 2, "end": 4, "alone_ms": ratio * ALONE_MS / (1 - used), "steps": 3, "age_seconds": 1.0, **more}
    known: DecisionInputs = inputs(problem, PLAN, 10_000, stages=(StageTime(**given),))
    found, memory = with_early_load(known, Memory(slowed={} if was is None else {"b": was}))
    return next(node.utilization for node in found.problem.snapshot.nodes if node.name == "b"), memory.slowed.get("b")


def seen(observations: int = 2, *, since: float = 10.0, last: float = 5.0, metric: float = 0.0) -> Slowed:
    return Slowed(since=ago(since), last=ago(last), observations=observations, metric=metric, implied=0.5)


@pytest.mark.parametrize(("ratio", "sign"), [(1.499, False), (1.501, True)])
def test_the_first_sign_is_half_as_much_again(ratio, sign):
    assert (stepped(ratio, 0.0, None)[1] is not None) is sign


@pytest.mark.parametrize(("ratio", "sign"), [(1.199, False), (1.201, True)])
def test_from_the_second_look_on_a_fifth_more_is_enough(ratio, sign):
    assert (stepped(ratio, 0.0, seen())[1] is not None) is sign


@pytest.mark.parametrize(("observations", "counts"), [(1, False), (2, True), (3, True)])
def test_three_looks_in_a_row_count(observations, counts):
    used, _ = stepped(3.0, 0.1, seen(observations))
    assert ((used or 0.0) > 0.1) is counts


@pytest.mark.parametrize(("last", "observations"), [(1.9, 2), (2.0, 3), (14.9, 3), (15.0, 1), (-0.1, 1)])
def test_looks_are_two_seconds_apart_at_least_and_without_a_gap_of_15(last, observations):
    _, found = stepped(3.0, 0.1, seen(last=last))
    assert found is not None
    assert found.observations == observations


@pytest.mark.parametrize(("risen", "counts"), [(0.029, False), (0.031, True)])
def test_metrics_must_have_begun_to_rise(risen, counts):
    used, _ = stepped(3.0, 0.2 + risen, seen(metric=0.2))
    assert ((used or 0.0) > 0.2 + risen) is counts


@pytest.mark.parametrize(("since", "counts"), [(89.9, True), (90.0, False), (90.1, False)])
def test_after_90_seconds_metrics_count_alone(since, counts):
    used, _ = stepped(3.0, 0.1, seen(since=since))
    assert ((used or 0.0) > 0.1) is counts


@pytest.mark.parametrize(
    ("more", "sign"), [({"steps": 2}, False), ({"steps": 3}, True), ({"age_seconds": 15.0}, True), ({"age_seconds": 15.1}, False)]
)
def test_too_few_and_too_old_steps_are_no_sign(more, sign):
    assert (stepped(3.0, 0.1, None, **more)[1] is not None) is sign


@pytest.mark.parametrize(("seconds", "kept"), [(89.9, True), (90.0, False)])
def test_a_node_that_was_left_counts_as_busy_for_90_seconds_more(seconds, kept):
    known = inputs(IDLE, a_plan("a[0:2] c[2:4]", IDLE), 10_000)
    _, memory = with_early_load(known, Memory(slowed={"b": seen(3, last=seconds, since=seconds + 5)}))
    assert ("b" in memory.slowed) is kept


@pytest.mark.parametrize(("observations", "kept"), [(2, False), (3, True)])
def test_only_a_node_that_counted_is_kept_in_mind(observations, kept):
    known = inputs(IDLE, a_plan("a[0:2] c[2:4]", IDLE), 10_000)
    _, memory = with_early_load(known, Memory(slowed={"b": seen(observations)}))
    assert ("b" in memory.slowed) is kept


def test_what_steps_imply_is_the_share_that_others_must_have():
    used, found = stepped(4.0, 0.2, seen())
    assert used == pytest.approx(1 - 0.8 / 4)
    assert found is not None
    assert found.implied == used


# --- gains ----------------------------------------------------------------------------------------------------------------------------


def test_a_move_of_60_seconds_costs_a_tenth():
    """Its start takes the time; nothing has to be loaded twice as fast."""
    plan = a_plan("a[0:2] c[2:4]")
    problem = inputs(IDLE, PLAN).problem
    policy = Policy(start_seconds=60.0, start_core_seconds=0.0, load_bytes_per_s=1e18)
    gained = gain(objective_value(PLAN, problem), objective_value(plan, problem), problem)
    assert gained - net_gain(PLAN, plan, problem, policy) == pytest.approx(0.1, abs=1e-6)


def test_of_nothing_there_is_no_share_to_gain():
    assert gain(0.0, 1.0, IDLE) == 0.0
    assert gain(2.0, 1.0, IDLE) == 0.5


def test_budgets_are_said_with_what_the_plan_takes():
    nodes = (node.model_copy(update={"cost_per_hour": 2.0, "idle_watts": 10.0, "busy_watts": 60.0}) for node in IDLE.snapshot.nodes)
    problem = a_problem(*nodes, constraints=Constraints(max_cost_per_hour=5.5, max_watts=150))
    p = predict(PLAN, problem)
    assert figures(PLAN, problem) == (
        f"predicted {p.time_to_first_token_ms:.0f} ms to the first token, {p.time_per_output_token_ms:.1f} ms per token, "
        f"4 of at most 5.5 per hour, {p.watts:.4g} of at most 150 W while it works, {p.energy_joules_per_token:.3g} J per token"
    )
    assert "hour" not in figures(PLAN, IDLE)
    assert " W " not in figures(PLAN, IDLE)


# --- an optional move without a plan that keeps the SLO -------------------------------------------------------------------------------

SMALL = {"mib": 250}
NOW = a_problem(a_node("a", **SMALL), a_node("b", utilization=0.93, **SMALL), a_node("c", **SMALL), slo=Slo(time_per_output_token_ms=0.001))


def optional(problem: Problem, solve=None) -> Adopt | Keep:
    key = f"{Reason.UTILIZATION_SHIFTED}/b"
    memory = Memory(reviewed=START, watches={key: Watch(since=ago(100), confirmations=5, last=ago(1))})
    policy = POLICY.model_copy(update={"load_bytes_per_s": 1e9})
    return decide(inputs(problem, PLAN, 10_000), policy, memory, solve or Exhaustive(), Limits(seconds=1))[0]


def test_where_no_plan_keeps_the_slo_the_best_one_is_taken_all_the_same():
    found = optional(NOW)
    assert isinstance(found, Adopt)
    assert text_of(found.plan) == "a[0:2] c[2:4]"


def test_where_the_solver_finds_none_the_reason_to_move_and_why_are_said():
    def nothing(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        return Infeasible(reasons=(BindingConstraint(name="x", message="nothing fits", relaxation="more memory"),))

    found = optional(NOW.model_copy(update={"slo": Slo()}), nothing)
    assert isinstance(found, Keep)
    assert found.reason is Kept.INFEASIBLE
    assert found.trigger is not None
    assert found.trigger.reason is Reason.UTILIZATION_SHIFTED
    assert found.message == f"{found.trigger.message}; nothing fits (more memory)"


def test_a_plan_that_keeps_the_slo_by_new_cuts_wins_over_a_move_that_does_not():
    """c is slow: two layers on it take longer than the limit, one does not."""
    nodes = (a_node("a", mib=350, gflops=200), a_node("b", mib=250, utilization=0.93), a_node("c", mib=250, gflops=50))
    free = a_problem(*nodes)
    moved, cut = (predict(a_plan(text), free).time_per_output_token_ms for text in ("a[0:2] c[2:4]", "a[0:3] c[3:4]"))
    assert cut < moved
    found = optional(free.model_copy(update={"slo": Slo(time_per_output_token_ms=(cut + moved) / 2)}))
    assert isinstance(found, Adopt)
    assert text_of(found.plan) in ("a[0:3] c[3:4]", "c[0:1] a[1:4]")
    assert math.isfinite(found.before_ms or math.nan)


def test_of_several_mandatory_reasons_on_one_node_the_first_of_the_list_is_named():
    everything = {name: {"b": "x"} for name in ("distrusted", "quarantined", "preempted", "pressured")}
    for reason in (Reason.VERIFICATION_FAILED, Reason.SEGMENT_FAILED, Reason.PREEMPTED, Reason.MEMORY_PRESSURE):
        assert looked(Memory(), IDLE, **everything) is reason
        del everything[next(iter(everything))]
