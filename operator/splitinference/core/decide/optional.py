"""What to do where something better may be had: keep → migrate → re-split.

Same cuts come first: a segment that moves is cheaper than a model that is cut anew. New cuts are taken only when moving cannot keep the SLO
or does not pay, or when they are better than moving by more than a threshold. Staying wins ties.
"""

from splitinference.core.cost import objective_value, predict
from splitinference.core.decide.avoid_hot_targets import goes_to_busier, no_more_on_busy
from splitinference.core.decide.base.compare import before_after, change, gain, move_seconds, moving, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Facts, Memory, Mode, Policy, sustained
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.capacity_memory import remembered, room
from splitinference.core.decide.feasibility.restrict import pinned, same_cuts, with_room, without
from splitinference.core.decide.metrics_settling import settling
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo


def optional(facts: Facts, policy: Policy, memory: Memory, solver: Solver, trigger: Trigger) -> tuple[Adopt | Keep, Memory]:
    """The decision for an optional reason, and the memory after it."""
    current, problem = facts.plan, facts.problem
    assert current is not None  # noqa: S101 - without a plan the trigger is a mandatory one
    unknown = _unknown(current, facts)
    if unknown:
        message = f"{trigger.message}; no move while the utilization of {unknown} is not known"
        return Keep(reason=Kept.UNKNOWN_METRICS, message=message, trigger=trigger), memory
    doubtful = [node.name for node in problem.snapshot.nodes if node.utilization is None]
    memory = remembered(memory, facts, policy)
    known = with_room(without(problem, [*doubtful, *facts.quarantined, *facts.pressured]), room(memory.obstacles, facts))
    best = _candidate(current, known, policy, solver)
    if isinstance(best, Plan) and goes_to_busier(current, best, known, policy.utilization_limit):
        known = no_more_on_busy(current, known, policy.utilization_limit)
        best = _candidate(current, known, policy, solver)
    if isinstance(best, Keep):
        return best.model_copy(update={"trigger": trigger, "message": f"{trigger.message}; {best.message}"}), memory
    if best.revision != current.revision and not solver.reaches(best):
        best = _nearer(current, known, policy, solver) or best
    net = net_gain(current, best, problem, policy)
    wins = best.revision != current.revision and net > policy.min_gain
    if trigger.reason is Reason.BETTER_PLAN:
        watch, memory = memory.watching(Reason.BETTER_PLAN, wins, policy, facts.now)
        if wins and not sustained(watch, policy, facts.now):
            return Keep(reason=Kept.CONFIRMING, trigger=trigger), memory
        if wins and settling(memory, facts, policy):
            return Keep(reason=Kept.SETTLING, trigger=trigger), memory
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
    if isinstance(end := solver.ends(best), Blocked):
        # One that cannot be begun is no move: other reasons go on being watched, only this plan is not looked for again at once.
        watches = {k: w for k, w in memory.watches.items() if k != Reason.BETTER_PLAN}
        message = f"{message}; it cannot be reached: {end.why}"
        return Keep(reason=Kept.BLOCKED, message=message, trigger=trigger), memory.model_copy(update={"watches": watches})
    return adopted, memory.afresh(reviewed=facts.now)


def _nearer(current: Plan, problem: Problem, policy: Policy, solver: Solver) -> Plan | None:
    """Where the best plan has no room beside what serves: the best that moves one segment only and can be walked to; None if none can."""
    if len(current.pipelines) > 1 or any(len(segment.nodes) > 1 for segment in current.segments):
        return None
    for limits in dict.fromkeys((problem.slo, Slo())):
        same = same_cuts(problem.model_copy(update={"slo": limits}), current)
        if same is None:
            return None
        found = []
        for moving_on in current.segments:
            staying = (segment for segment in current.segments if segment is not moving_on)
            plan = solver.best(pinned(same, staying), current)
            if isinstance(plan, Plan) and plan.revision != current.revision and solver.reaches(plan):
                found.append(plan)
        if found:
            return max(found, key=lambda plan: net_gain(current, plan, problem, policy))
    return None


def _candidate(current: Plan, problem: Problem, policy: Policy, solver: Solver) -> Plan | Keep:
    """The plan to compare with: one of the same cuts where that will do, else one of new cuts. Kept SLOs win over broken ones.

    A plan that cannot be reached (no room beside what serves) stands in the way of no other that pays and can.
    """
    same = same_cuts(problem, current)
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
