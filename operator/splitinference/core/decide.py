"""What to do now: keep → migrate → re-split. Composes triggers, the solver and the judge of plans; a decision is a value with its reason.

Same cuts come first: a segment that moves is cheaper than a model that is cut anew. New cuts are taken only when moving cannot keep the SLO
or does not pay, or when they are better than moving by more than a threshold. Staying wins ties.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Protocol

from splitinference.core.adaptation import Facts, Memory, Mode, Policy, sustained
from splitinference.core.compare import Change, before_after, change, figures, gain, move_seconds, moving, net_gain
from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.cost.eligible import forbidden, unusable
from splitinference.core.plan import Plan
from splitinference.core.problem import Pin, Problem, Slo
from splitinference.core.solve.child import SolverFailed
from splitinference.core.solve.outcome import Infeasible, Limits, Outcome, Solved, TimedOut
from splitinference.core.triggers import Reason, Trigger, check
from splitinference.core.value import Value


class Adopt(Value):
    """Make this the plan. `before_ms`: time per output token predicted for the old plan, as things are now; None for a mandatory change."""

    plan: Plan
    before_ms: float | None = None
    change: Change
    reason: Reason
    message: str
    mandatory: bool


class Kept(StrEnum):
    """Why a plan is kept although something spoke for another."""

    STEADY = "Steady"
    INFEASIBLE = "Infeasible"
    SOLVE_TIMED_OUT = "SolveTimedOut"
    SOLVER_FAILED = "SolverFailed"
    PLAN_REJECTED = "PlanRejected"
    GAIN_TOO_SMALL = "GainTooSmall"
    CONFIRMING = "Confirming"
    UNKNOWN_METRICS = "UnknownMetrics"
    ADVISED = "Advised"
    BLOCKED = "Blocked"
    OVERTAKEN = "Overtaken"


class Keep(Value):
    """Leave the plan as it is (None: there still is none). `trigger`: what spoke for another, if anything did."""

    reason: Kept
    message: str = ""
    trigger: Trigger | None = None


class Solve(Protocol):
    """The solver, as `splitinference.core.solve.solve`."""

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        """Solve within the limits; `hint` is a plan to start from."""


def decide(
    facts: Facts, policy: Policy, memory: Memory, solve: Solve, limits: Limits, *, reachable: Callable[[Plan], bool] = lambda _: True
) -> tuple[Adopt | Keep, Memory]:
    """The decision, and the memory after it. `reachable`: whether a walk to a plan would arrive; optional moves prefer one that does."""
    trigger, memory = check(facts, policy, memory)
    if trigger is None:
        return Keep(reason=Kept.STEADY), memory
    if trigger.mandatory:
        return _mandatory(facts, policy, memory, _Solver(solve, limits), trigger)
    return _optional(facts, policy, memory.model_copy(update={"reviewed": facts.now}), _Solver(solve, limits, reachable), trigger)


class _Solver:
    """The solver with its limits, and the judge after it."""

    def __init__(self, solve: Solve, limits: Limits, reachable: Callable[[Plan], bool] = lambda _: True) -> None:
        self._solve = solve
        self._limits = limits
        self.reaches = reachable

    def best(self, problem: Problem, hint: Plan | None) -> Plan | Keep:
        """The best valid plan; or why there is none."""
        try:
            outcome = self._solve(problem, self._limits, hint)
        except SolverFailed as error:
            return Keep(reason=Kept.SOLVER_FAILED, message=f"the solver failed: {error}")
        late = Keep(reason=Kept.SOLVE_TIMED_OUT, message=f"no plan was found within {self._limits.seconds:g} s")
        match outcome:
            case Solved(plan=plan):
                proof = {"bound": outcome.bound, "gap": outcome.gap, "optimal": outcome.optimal, "explanation": outcome.explanation}
                found = plan.model_copy(update=proof)
            case TimedOut(best=plan):
                if plan is None or violations(plan, problem):
                    return late
                found = plan
            case Infeasible(reasons=reasons):
                said = (f"{reason.message} ({reason.relaxation})" if reason.relaxation else reason.message for reason in reasons)
                return Keep(reason=Kept.INFEASIBLE, message="; ".join(said))
        wrong = violations(found, problem)
        if wrong:
            return Keep(reason=Kept.PLAN_REJECTED, message="the solver's plan breaks: " + "; ".join(v.message for v in wrong))
        return found.model_copy(update={"prediction": predict(found, problem), "value": objective_value(found, problem)})


# --- mandatory -----------------------------------------------------------------------------------------------------------------------


def _mandatory(facts: Facts, policy: Policy, memory: Memory, solver: _Solver, trigger: Trigger) -> tuple[Adopt | Keep, Memory]:
    problem = _without(facts.problem, [*facts.quarantined, *facts.pressured])
    key = _content(problem, facts.asked, trigger.reason)
    if key == memory.tried and memory.tried_at is not None and facts.now - memory.tried_at < policy.retry:
        return Keep(reason=Kept(memory.tried_reason), message=memory.tried_message, trigger=trigger), memory
    current = facts.plan
    found: Plan | Keep | None = None
    if current is not None and trigger.reason is not Reason.SPEC_CHANGED:
        same = _same_cuts(problem, current)
        found = _mended(same, current, policy, solver) if same is not None else None
    if not isinstance(found, Plan):
        found = solver.best(problem, None)
    notes: list[str] = []
    if isinstance(found, Keep) and problem.slo != Slo():
        relaxed = solver.best(problem.model_copy(update={"slo": Slo()}), None)
        if isinstance(relaxed, Plan):
            notes.append(f"the SLO cannot be kept: {found.message}")
            found = relaxed
    if isinstance(found, Keep):
        message = f"{trigger.message}; {found.message}"
        update = {"tried": key, "tried_at": facts.now, "tried_reason": found.reason.value, "tried_message": message}
        return Keep(reason=found.reason, message=message, trigger=trigger), memory.model_copy(update=update)
    if trigger.reason is Reason.SPEC_CHANGED and current is not None and _good_enough(current, found, problem, policy):
        kept = current.model_copy(update={"prediction": predict(current, problem), "value": objective_value(current, problem)})
        message = f"{trigger.message}; the plan stays: another is not better by {policy.min_gain:.0%}"
        return Adopt(plan=kept, change=Change.KEEP, reason=trigger.reason, message=message, mandatory=True), Memory()
    parts = [trigger.message, *notes, figures(found, problem), moving(found, problem, policy) if current else ""]
    message = "; ".join(filter(None, parts))
    return Adopt(plan=found, change=change(current, found), reason=trigger.reason, message=message, mandatory=True), Memory()


def _mended(same: Problem, current: Plan, policy: Policy, solver: _Solver) -> Plan | Keep:
    """The best plan of the same cuts; but one that leaves alone what still runs, unless the other is better by more than its move costs.

    While something is lost nobody is served, so every segment that is moved without need makes the gap longer.
    """
    best = solver.best(same, None)
    nodes = {node.name: node for node in same.snapshot.nodes}
    staying = tuple(
        Pin(start=s.start, end=s.end, node=s.node)
        for s in current.segments
        if s.node in nodes
        and unusable(nodes[s.node], same) is None
        and not any(forbidden(nodes[s.node], layer, same.constraints) for layer in range(s.start, s.end))
    )
    if isinstance(best, Keep) or not staying or len(current.pipelines) > 1:
        return best
    pinned = same.constraints.model_copy(update={"pins": (*same.constraints.pins, *staying)})
    least = solver.best(same.model_copy(update={"constraints": pinned}), None)
    if isinstance(least, Keep):
        return best
    longer = (move_seconds(best, same, policy) - move_seconds(least, same, policy)) / policy.payback.total_seconds()
    further = gain(objective_value(least, same), objective_value(best, same), same)
    return best if further - longer > policy.min_gain else least


def beside(adopted: Adopt, facts: Facts, held_bytes: Mapping[str, int], solve: Solve, limits: Limits) -> Adopt | None:
    """The best plan that fits beside the segments that are there, for when the best of all cannot be reached without breaking what serves.

    `held_bytes`: what they hold on each node. None where there is no such plan.
    """
    problem = _without(facts.problem, [*facts.quarantined, *facts.pressured])
    nodes = tuple(
        node.model_copy(update={"memory_free_bytes": max(0, node.memory_free_bytes - held_bytes.get(node.name, 0))})
        for node in problem.snapshot.nodes
    )
    less = problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
    solver = _Solver(solve, limits)
    found = solver.best(less, None)
    if isinstance(found, Keep) and less.slo != Slo():
        found = solver.best(less.model_copy(update={"slo": Slo()}), None)
    if isinstance(found, Keep):
        return None
    message = f"{adopted.message}; a better plan has no room beside what serves"
    return adopted.model_copy(update={"plan": found, "change": change(facts.plan, found), "message": message})


def _good_enough(current: Plan, found: Plan, problem: Problem, policy: Policy) -> bool:
    if current.model_digest != found.model_digest or violations(current, problem):
        return False
    return gain(objective_value(current, problem), objective_value(found, problem), problem) <= policy.min_gain


def _without(problem: Problem, nodes: Iterable[str]) -> Problem:
    """The problem where these nodes are not to be used."""
    names = frozenset(nodes)
    if not names:
        return problem
    usable = tuple(node.model_copy(update={"ready": False}) if node.name in names else node for node in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": usable})})


def _content(problem: Problem, asked: str, reason: Reason) -> str:
    """What a failed try depends on, loads and times left out: nodes that come or go or have other room make it worth another try."""
    nodes = [f"{n.name}:{n.ready}:{n.memory_free_bytes}:{sorted(n.labels.items())}:{n.taints}" for n in problem.snapshot.nodes]
    return hashlib.sha256("|".join([problem.profile.digest, asked, reason, *nodes]).encode()).hexdigest()[:16]


def _same_cuts(problem: Problem, current: Plan) -> Problem | None:
    """The problem with the cuts of the current plan; None where it cannot be stated (another model, cuts that are not allowed any more)."""
    bounds = problem.constraints
    lengths = {len(pipeline.segments) for pipeline in current.pipelines}
    points = tuple(sorted({point for pipeline in current.pipelines for point in pipeline.split_points}))
    if current.model_digest != problem.profile.digest or len(lengths) != 1 or len(current.pipelines) != bounds.pipelines:
        return None
    count = lengths.pop()
    if bounds.split_points is not None and not set(points) <= set(bounds.split_points):
        return None
    if count < bounds.min_segments or (bounds.max_segments is not None and count > bounds.max_segments):
        return None
    same = bounds.model_copy(update={"split_points": points, "min_segments": count, "max_segments": count})
    return problem.model_copy(update={"constraints": same})


# --- optional ------------------------------------------------------------------------------------------------------------------------


def _optional(facts: Facts, policy: Policy, memory: Memory, solver: _Solver, trigger: Trigger) -> tuple[Adopt | Keep, Memory]:
    current, problem = facts.plan, facts.problem
    assert current is not None  # noqa: S101 - without a plan the trigger is a mandatory one
    unknown = _unknown(current, facts)
    if unknown:
        message = f"{trigger.message}; no move while the utilization of {unknown} is not known"
        return Keep(reason=Kept.UNKNOWN_METRICS, message=message, trigger=trigger), memory
    doubtful = [node.name for node in problem.snapshot.nodes if node.utilization is None]
    known = _without(problem, [*doubtful, *facts.quarantined, *facts.pressured])
    best = _candidate(current, known, policy, solver)
    if isinstance(best, Keep):
        return best.model_copy(update={"trigger": trigger, "message": f"{trigger.message}; {best.message}"}), memory
    reached = best.revision == current.revision or solver.reaches(best)
    if not reached and (nearer := _nearer(current, known, policy, solver)) is not None:
        best, reached = nearer, True
    net = net_gain(current, best, problem, policy)
    wins = best.revision != current.revision and net > policy.min_gain
    if trigger.reason is Reason.BETTER_PLAN:
        watch, memory = memory.watching(Reason.BETTER_PLAN, wins, policy, facts.now)
        if wins and not sustained(watch, policy, facts.now):
            return Keep(reason=Kept.CONFIRMING, trigger=trigger), memory
        lead = "" if watch is None else f"a better plan for {(facts.now - watch.since).total_seconds():.0f} s"
    else:
        lead = trigger.message
    if best.revision == current.revision:
        message = f"{lead}; no plan is better than this one" if lead else ""
        return Keep(reason=Kept.GAIN_TOO_SMALL if lead else Kept.STEADY, message=message, trigger=trigger), memory
    figures = f"{before_after(current, best, problem)}, {moving(best, problem, policy)}"
    if not wins:
        message = f"{lead or 'another plan'}; {figures}: net gain {net:.0%}, at least {policy.min_gain:.0%} is asked for"
        return Keep(reason=Kept.GAIN_TOO_SMALL, message=message, trigger=trigger), memory
    message = f"{lead}; {figures}: net gain {net:.0%}"
    if policy.mode is Mode.ADVISORY:
        where = " ".join(f"{s.node}[{s.start}:{s.end}]" for s in best.segments)
        return Keep(reason=Kept.ADVISED, message=f"{message}; would go to {where}", trigger=trigger), memory
    adopted = Adopt(
        plan=best,
        before_ms=predict(current, problem).time_per_output_token_ms,
        change=change(current, best),
        reason=trigger.reason,
        message=message,
        mandatory=False,
    )
    if reached:
        return adopted, Memory(reviewed=facts.now)
    # One that cannot be begun is no move: other reasons go on being watched, only this plan is not looked for again at once.
    return adopted, memory.model_copy(update={"watches": {k: w for k, w in memory.watches.items() if k != Reason.BETTER_PLAN}})


def _nearer(current: Plan, problem: Problem, policy: Policy, solver: _Solver) -> Plan | None:
    """Where the best plan has no room beside what serves: the best that moves one segment only and can be walked to; None if none can."""
    if len(current.pipelines) > 1 or any(len(segment.nodes) > 1 for segment in current.segments):
        return None
    for limits in dict.fromkeys((problem.slo, Slo())):
        same = _same_cuts(problem.model_copy(update={"slo": limits}), current)
        if same is None:
            return None
        found = []
        for moving_on in current.segments:
            staying = tuple(Pin(start=s.start, end=s.end, node=s.node) for s in current.segments if s is not moving_on)
            pinned = same.constraints.model_copy(update={"pins": (*same.constraints.pins, *staying)})
            plan = solver.best(same.model_copy(update={"constraints": pinned}), current)
            if isinstance(plan, Plan) and plan.revision != current.revision and solver.reaches(plan):
                found.append(plan)
        if found:
            return max(found, key=lambda plan: net_gain(current, plan, problem, policy))
    return None


def _candidate(current: Plan, problem: Problem, policy: Policy, solver: _Solver) -> Plan | Keep:
    """The plan to compare with: one of the same cuts where that will do, else one of new cuts. Kept SLOs win over broken ones.

    A plan that cannot be reached (no room beside what serves) stands in the way of no other that pays and can.
    """
    same = _same_cuts(problem, current)
    migrated = solver.best(same, current) if same is not None else None
    cut_anew = solver.best(problem, current)
    if isinstance(cut_anew, Keep):
        if isinstance(migrated, Plan) or problem.slo == Slo():
            return migrated if isinstance(migrated, Plan) else cut_anew
        return _candidate(current, problem.model_copy(update={"slo": Slo()}), policy, solver)
    if not isinstance(migrated, Plan):
        if problem.slo != Slo() and not solver.reaches(cut_anew):
            other = _candidate(current, problem.model_copy(update={"slo": Slo()}), policy, solver)
            if isinstance(other, Plan) and other.revision != current.revision and solver.reaches(other):
                return other
        return cut_anew
    further = gain(objective_value(migrated, problem), objective_value(cut_anew, problem), problem)
    extra = (move_seconds(cut_anew, problem, policy) - move_seconds(migrated, problem, policy)) / policy.payback.total_seconds()
    pays = net_gain(current, migrated, problem, policy) > policy.min_gain
    least = policy.resplit_gain if pays else 0.0
    return cut_anew if further - extra > least and (not pays or solver.reaches(cut_anew)) else migrated


def _unknown(plan: Plan, facts: Facts) -> str:
    nodes = {node.name: node for node in facts.problem.snapshot.nodes}
    used = dict.fromkeys(name for segment in plan.segments for name in segment.nodes)
    return ", ".join(name for name in used if nodes[name].utilization is None)
