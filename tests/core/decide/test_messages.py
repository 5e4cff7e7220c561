"""Every message of core/decide and core/transition, word for word: they are what an operator on call reads."""

from datetime import timedelta

import pytest

from splitinference.core.decide.base.compare import before_after, figures, moving
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Memory, Mode, Policy, StageTime, Traffic, Watch
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.decide.base.validated_solver import Solver, always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.planner.process import SolverError
from splitinference.core.transition.dry_run import dry_run
from splitinference.core.transition.state import OldRoute, Phase
from splitinference.core.transition.steps import Blocked, DeleteSegment, Done, Steps, Strategy, next_steps
from splitinference.core.values.cluster import Link, LinkQuality, Network
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Slo, TrustRule
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Solved, TimedOut
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs
from tests.core.transition.pretend_cluster import Cluster, a_target, serving

POLICY = Policy(
    window=timedelta(seconds=20), confirmations=3, cooldown=timedelta(seconds=60), review=timedelta(hours=1), load_bytes_per_s=1e9
)
LIMITS = Limits(seconds=2.5)
SMALL = {"mib": 250}
IDLE = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", **SMALL))
PLAN = a_plan("a[0:2] b[2:4]", IDLE)
BUSY = a_problem(a_node("a", **SMALL), a_node("b", utilization=0.93, **SMALL), a_node("c", **SMALL))
BUSY_B = "stage 1 on b: 93 % used by others for 20 s (limit 70 %)"
MOVE = "predicted 33.6 ms → 7.1 ms per token, latency 3954.0 → 526.3 ms, moving 200 MiB takes about 8 s"


def last(problem, plan=PLAN, policy=POLICY, *, steps=5, dry=always_reachable, **more) -> Adopt | Keep:
    """The decision after so many passes, five seconds apart."""
    memory, decision = Memory(reviewed=START), Keep(reason=Kept.STEADY)
    for step in range(steps):
        decision, memory = decide(inputs(problem, plan, 100 + 5 * step, **more), policy, memory, Exhaustive(), LIMITS, dry_run=dry)
    return decision


def trigger(problem, plan=PLAN, memory=None, seconds=0.0, **more) -> str:
    found, _ = check(inputs(problem, plan, seconds, **more), POLICY, memory or Memory(reviewed=START))
    return "" if found is None else found.message


# --- reasons to plan again ------------------------------------------------------------------------------------------------------------


def test_mandatory_reasons():
    a, b, c = a_node("a"), a_node("b"), a_node("c")
    label = TrustRule(start=0, end=1, labels={"trusted": "true"})
    assert trigger(IDLE, None) == "there is no plan yet"
    assert trigger(IDLE, spec_digest="new") == "the spec has changed since the plan was made"
    assert trigger(a_problem(a, c)) == "stage 1 runs on b, which cannot be used: it no longer exists"
    assert trigger(a_problem(c)) == (
        "stage 0 runs on a, which cannot be used: it no longer exists; stage 1 runs on b, which cannot be used: it no longer exists"
    )
    assert trigger(IDLE, quarantined={"b": "3 failures"}) == "stage 1 on b keeps failing: 3 failures"
    assert trigger(IDLE, pressured={"a": "it runs out"}) == "stage 0 on a: it runs out"
    assert trigger(IDLE, quarantined={"b": "x"}, distrusted={"b": "a wrong output"}) == "stage 1 on b cannot be trusted: a wrong output"
    assert trigger(IDLE, preempted={"a": "team/chat needs 2 GiB", "b": "so does team/code"}) == (
        "stage 0 on a gives way: team/chat needs 2 GiB; stage 1 on b gives way: so does team/code"
    )
    assert trigger(IDLE, preempted={"c": "a node that the plan does not use"}) == ""
    assert trigger(a_problem(a, b, c, constraints=Constraints(trust=(label,)))) == "stage 0 on a: trust: layers 0 to 1 need trusted=true"


def test_stages_of_several_pipelines_are_named_with_their_pipeline():
    two = PLAN.model_copy(update={"pipelines": (*PLAN.pipelines, *a_plan("c[0:4]").pipelines)})
    assert trigger(IDLE, two, quarantined={"c": "it fails"}) == "pipeline 1 stage 0 on c keeps failing: it fails"


def test_a_blocked_transition():
    memory = Memory(reviewed=START, watches={Reason.TRANSITION_BLOCKED: Watch(since=START, confirmations=1, last=START)})
    found = trigger(IDLE, memory=memory, seconds=15, blocked=Blocked(why="b has no room"), in_transition=True)
    assert found == "the transition has been blocked for 15 s: b has no room"


def held(key: str) -> Memory:
    """A reason that has held for 20 s and was confirmed often enough."""
    return Memory(reviewed=START, watches={key: Watch(since=START, confirmations=3, last=START)})


def test_optional_reasons():
    utilization, slo = held("UtilizationShifted/b"), Slo(time_to_first_token_ms=100, time_per_output_token_ms=10)
    assert trigger(BUSY, memory=utilization, seconds=20) == BUSY_B
    waiting = a_problem(a_node("a"), a_node("b", utilization=0.93, waiting=0.93), a_node("c"))
    assert trigger(waiting, memory=utilization, seconds=20) == "stage 1 on b: 93 % lost to waiting for a processor for 20 s (limit 70 %)"
    limited = IDLE.model_copy(update={"slo": slo})
    slow = Traffic(requests=1, time_to_first_token_ms=250, time_per_output_token_ms=5)
    found = trigger(limited, memory=held("SloViolated/time to first token"), seconds=20, traffic=slow)
    assert found == "p95 time to first token 250 ms for 20 s (limit 100 ms)"
    slow = Traffic(requests=1, time_to_first_token_ms=50, time_per_output_token_ms=41)
    found = trigger(limited, memory=held("SloViolated/time per output token"), seconds=20, traffic=slow)
    assert found == "p95 time per output token 41 ms for 20 s (limit 10 ms)"


def test_a_degraded_link():
    slow = LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=20.0)
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5), links=(Link(source="a", target="b", quality=slow),))
    now = a_problem(a_node("a"), a_node("b"), a_node("c"), network=network)
    found = trigger(now, memory=held("LinkDegraded/0/a"), seconds=20)
    assert found == "the link after stage 0 on a takes 10.3 ms per token for 20 s (planned 0.5 ms)"


def test_the_review():
    assert trigger(IDLE, memory=Memory(), seconds=1) == "the review for a better plan is due, every 3600 s"


# --- decisions ------------------------------------------------------------------------------------------------------------------------


def test_a_move_that_pays():
    assert last(BUSY).message == f"{BUSY_B}; {MOVE}: net gain 85%"


def test_a_move_that_does_not_pay():
    strict = POLICY.model_copy(update={"min_gain": 0.9})
    assert last(BUSY, policy=strict).message == f"{BUSY_B}; {MOVE}: net gain 85%, required are more than 90%"


def test_no_better_plan():
    now = a_problem(a_node("a", **SMALL), a_node("b", utilization=0.93, **SMALL))
    assert last(now, a_plan("a[0:2] b[2:4]", now)).message == f"{BUSY_B}; no other plan is better"


def test_advisory():
    advisory = POLICY.model_copy(update={"mode": Mode.ADVISORY})
    assert last(BUSY, policy=advisory).message == f"{BUSY_B}; {MOVE}: net gain 85%; mode Advisory: the plan would be a[0:2] c[2:4]"


def test_unknown_metrics():
    now = a_problem(a_node("a", utilization=None, **SMALL), a_node("b", utilization=0.93, **SMALL), a_node("c", **SMALL))
    assert last(now).message == f"{BUSY_B}; nothing moves while the utilization of a is unknown"


def test_an_optional_plan_that_cannot_be_reached():
    found = last(BUSY, dry=lambda _: Blocked(why="c has no room"))
    assert (found.reason, found.message) == (Kept.BLOCKED, f"{BUSY_B}; {MOVE}: net gain 85%; the plan cannot be reached: c has no room")


def test_a_mandatory_move():
    now = a_problem(a_node("a", **SMALL), a_node("c", **SMALL))
    assert last(now, steps=1).message == (
        "stage 1 runs on b, which cannot be used: it no longer exists; predicted 519 ms to the first token, 7.1 ms per token; "
        "moving 200 MiB takes about 8 s"
    )


def test_a_first_plan_says_nothing_of_a_move():
    assert last(IDLE, None, steps=1).message == "there is no plan yet; predicted 519 ms to the first token, 7.1 ms per token"


def test_a_changed_spec_that_keeps_the_plan():
    assert last(IDLE, steps=1, spec_digest="new").message == (
        "the spec has changed since the plan was made; the plan stays: no other plan is better by more than 10%"
    )


def test_no_plan_is_possible_and_a_node_is_avoided():
    found = last(a_problem(a_node("a", **SMALL), a_node("b", **SMALL)), None, steps=1, quarantined={"b": "it fails"})
    assert found.message == "there is no plan yet; the model needs 400 MiB and no set of nodes holds it; b is not used: it fails"


def test_no_plan_meets_the_slo():
    found = last(IDLE.model_copy(update={"slo": Slo(time_per_output_token_ms=0.001)}), None, steps=1)
    assert isinstance(found, Adopt)
    assert found.message.startswith("there is no plan yet; no plan meets the SLO: the model needs 400 MiB")


def test_no_plan_can_be_reached():
    new = {"spec_digest": "new", "serving": PLAN}
    other = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", **SMALL), constraints=Constraints(min_segments=3))
    found = last(other, steps=1, dry=lambda _: Blocked(why="c has no room"), **new)
    assert found.message == "the spec has changed since the plan was made; no plan can be reached from the serving segments: c has no room"
    assert found.reason is Kept.BLOCKED


def test_the_best_reachable_plan():
    """The idle node has no room; so the segment goes to a busier one."""
    now = a_problem(a_node("a", **SMALL), a_node("c", **SMALL), a_node("d", utilization=0.5, **SMALL))

    def ends(plan: Plan) -> Done | Blocked:
        return Blocked(why="c has no room") if any(s.node == "c" for s in plan.segments) else Done()

    found = last(now, steps=1, dry=ends, serving=PLAN, held_bytes={"a": 200 * 1024 * 1024})
    assert found.message.startswith(
        "stage 1 runs on b, which cannot be used: it no longer exists; "
        "this is the best reachable plan; the best of all cannot be reached: c has no room; predicted "
    )


# --- the solver -----------------------------------------------------------------------------------------------------------------------


def kept(outcome) -> Keep:
    def solve(problem, limits, hint=None):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    found = Solver(solve, LIMITS).best(IDLE, None)
    assert isinstance(found, Keep)
    return found


def test_what_the_solver_says():
    assert kept(SolverError("exit status 9")) == Keep(reason=Kept.SOLVER_FAILED, message="the solver failed: exit status 9")
    late = Keep(reason=Kept.SOLVE_TIMED_OUT, message="the solver found no plan within 2.5 s")
    assert kept(TimedOut(best=None, bound=0.0)) == late
    reasons = (
        BindingConstraint(name="memory", message="too large", relaxation="more memory"),
        BindingConstraint(name="pins", message="pinned", relaxation=""),
    )
    assert kept(Infeasible(reasons=reasons)) == Keep(reason=Kept.INFEASIBLE, message="too large (more memory); pinned")
    wrong = Solved(plan=a_plan("a[0:4]"), bound=0.0, gap=0.0, optimal=True, seconds=0.0, explanation=())
    assert kept(wrong).reason is Kept.PLAN_REJECTED
    assert kept(wrong).message.startswith("the solver's plan violates: a: 441 MiB needed, 250 MiB free")


# --- figures --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "unit"),
    [(Goal.LATENCY, "ms"), (Goal.BOTTLENECK, "ms"), (Goal.THROUGHPUT, "tokens/s"), (Goal.COST, "per hour"), (Goal.MOVE, "GiB")],
)
def test_figures_have_the_unit_of_the_goal(goal: Goal, unit: str):
    problem = BUSY.model_copy(update={"objective": Objective(goal=goal)})
    text = before_after(PLAN, a_plan("a[0:2] c[2:4]"), problem)
    assert text.startswith(f"predicted 33.6 ms → 7.1 ms per token, {goal} ")
    assert text.endswith(f" {unit}")


def test_figures_of_one_plan_and_of_a_move():
    assert figures(PLAN, IDLE) == "predicted 519 ms to the first token, 7.1 ms per token"
    serves = inputs(IDLE, PLAN).problem
    assert moving(PLAN, serves, POLICY) == "no weights have to move"
    assert moving(a_plan("a[0:2] c[2:4]"), serves, POLICY) == "moving 200 MiB takes about 8 s"


# --- transitions ----------------------------------------------------------------------------------------------------------------------


def blocked(cluster: Cluster, target: str, strategy=Strategy.SURGE) -> str:
    found = next_steps(a_target(target), cluster.observed(), strategy)
    assert isinstance(found, Blocked)
    return found.why


def steps(cluster: Cluster, target: str, strategy=Strategy.SURGE) -> Steps:
    found = next_steps(a_target(target), cluster.observed(), strategy)
    assert isinstance(found, Steps)
    return found


def test_a_node_without_memory():
    cluster = serving("a[0:4] b[4:8]", {"a": 60, "b": 60})
    assert blocked(cluster, "a[0:3] b[3:8]") == (
        "segment [0, 3) needs 30 MiB, but a has 20 MiB free beside 40 MiB of present segments; "
        "segment [3, 8) needs 50 MiB, but b has 20 MiB free beside 40 MiB of present segments; "
        "the strategy BreakFirst would delete the old segments first, one node at a time"
    )


def test_a_node_without_cores_and_one_that_cannot_be_used():
    cluster = Cluster({"a": 100, "b": 100}, room_segments={"a": 0})
    assert blocked(cluster, "a[0:8]") == "segment [0, 8) requests 0.1 cores, but a has 0.05 free beside 0 of present segments"
    assert blocked(cluster, "z[0:8]") == "segment [0, 8) needs 80 MiB on z, but that node cannot be used now"


def test_sizes_are_rounded_to_the_safe_side():
    """What is needed is rounded up, what is free is rounded down: a message never says that 40 MiB do not fit in 40."""
    target, cluster = a_target("a[0:4]"), Cluster({"a": 40})
    observed = cluster.observed().model_copy(update={"room_bytes": {"a": 40 * 1024 * 1024 - 1}})
    found = next_steps(target, observed)
    assert isinstance(found, Blocked)
    assert found.why == "segment [0, 4) needs 40 MiB, but a has 39 MiB free beside 0 MiB of present segments"


def test_what_a_transition_waits_for():
    cluster = Cluster(dict.fromkeys("abcd", 100))
    target = "a[0:2] b[2:4] c[4:6] d[6:8]"
    for action in steps(cluster, target).actions:
        cluster.apply(action)
    cluster.set("m-2-4-b", Phase.READY)
    cluster.set("m-4-6-c", Phase.LEAVING)
    cluster.set("m-6-8-d", Phase.FAILED)
    cluster.segments["m-0-2-a"] = cluster.segments["m-0-2-a"].model_copy(update={"why": "the image is pulled"})
    found = steps(cluster, target)
    assert found.waiting == (
        "m-0-2-a on a is starting: the image is pulled",
        "m-2-4-b on b is ready, and its probe is outstanding",
        "m-4-6-c on c is being deleted and will be created again",
        "m-6-8-d on d failed",
    )
    assert found.actions == (DeleteSegment(name="m-6-8-d", why="it failed: no reason is known"),)


def test_why_segments_are_deleted_and_what_drains():
    cluster = serving("a[0:8]", {"a": 100, "b": 100})
    old = cluster.serving
    assert old is not None
    for action in steps(cluster, "b[0:8]").actions:
        cluster.apply(action)
    cluster.set("m-0-8-b", Phase.PROVEN)
    for action in steps(cluster, "b[0:8]").actions:
        cluster.apply(action)
    observed = cluster.observed()
    in_flight = OldRoute(revision=old.revision, names=old.names, in_flight=True, why="2 in flight")
    found = next_steps(a_target("b[0:8]"), observed.model_copy(update={"old_routes": (in_flight,)}))
    assert found == Steps(waiting=(f"m-0-8-a on a drains: route {old.revision} (2 in flight)",))
    found = next_steps(a_target("b[0:8]"), observed.model_copy(update={"old_routes": ()}))
    assert found == Steps(actions=(DeleteSegment(name="m-0-8-a", why="neither the plan nor a route in use needs it"),))


def test_why_break_first_deletes():
    cluster = serving("a[0:4] b[4:8]", {"a": 60, "b": 60})
    found = steps(cluster, "a[0:3] b[3:8]", Strategy.BREAK_FIRST)
    assert found.actions == (DeleteSegment(name="m-0-4-a", why="a cannot hold it beside its successor, and the strategy is BreakFirst"),)


def test_why_a_lost_route_gives_its_room():
    cluster = serving("a[0:4] b[4:8]", {"a": 60, "b": 60})
    cluster.set("m-4-8-b", None)
    found = steps(cluster, "a[0:3] b[3:8]")
    while not any(isinstance(action, DeleteSegment) for action in found.actions):
        for action in found.actions:
            cluster.apply(action)
        cluster.progress()
        found = steps(cluster, "a[0:3] b[3:8]")
    assert found.actions == (
        DeleteSegment(name="m-0-4-a", why="the serving route has lost m-4-8-b and serves nothing; a needs the room for a new segment"),
    )


def test_a_dry_run_without_an_end(monkeypatch: pytest.MonkeyPatch):
    """A step that changes nothing would go on for ever."""
    monkeypatch.setattr("splitinference.core.transition.dry_run.next_steps", lambda *_: Steps(waiting=("nothing",)))
    found = dry_run(a_target("a[0:8]"), Cluster({"a": 100}).observed(), Strategy.SURGE)
    assert found == Blocked(why="the transition does not end within 200 steps")


def test_the_clock_of_step_times_is_not_in_messages():
    """Early load raises the utilization that the message names; it does not add words of its own."""
    stage = StageTime(node="b", start=2, end=4, alone_ms=30.0, steps=9, age_seconds=1)
    assert trigger(BUSY, memory=held("UtilizationShifted/b"), seconds=20, stages=(stage,)) == BUSY_B
