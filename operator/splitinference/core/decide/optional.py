"""The decision for an optional reason: keep → migrate → re-split.

Plans with the same split points come first, because moving a segment costs less than cutting the model anew. New split points are taken
only if moving cannot keep the SLO or does not pay, or if they are better than moving by more than a threshold. Staying wins ties.
"""

from dataclasses import dataclass

from splitinference.core.cost import objective_value, predict
from splitinference.core.decide.avoid_hot_targets import goes_to_busier, no_more_on_busy
from splitinference.core.decide.base.compare import before_after, change, gain, move_seconds, moving, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Mode, Policy, sustained
from splitinference.core.decide.base.triggers import Reason, Trigger
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.capacity_memory import memory_limits, update_obstacles
from splitinference.core.decide.feasibility.restrict import pinned, same_cuts, with_room, without
from splitinference.core.decide.metrics_settling import settling
from splitinference.core.decide.pipelines import beside, better_of_several, counting, slowest_and_others
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo

_MOST_REJECTED = 3
"""So many rejected plans are planned around in one decision: each costs a solve or two."""


@dataclass(frozen=True)
class _Move:
    """The move from `current` to `best`: `net` is its gain less its cost, as a share of the objective; `pays` is whether that is enough."""

    current: Plan
    best: Plan
    net: float
    pays: bool
    instead: str = ""
    """Why it is not the best plan, in words; empty where it is."""

    @property
    def changes_nothing(self) -> bool:
        return self.best.revision == self.current.revision


def optional(inputs: DecisionInputs, policy: Policy, memory: Memory, solver: Solver, trigger: Trigger) -> tuple[Adopt | Keep, Memory]:
    """The decision for an optional reason, and the memory after it."""
    current = inputs.plan
    assert current is not None  # noqa: S101 - without a plan the trigger is mandatory
    inputs = inputs.model_copy(update={"problem": counting(inputs.problem, len(current.pipelines))})
    problem = inputs.problem
    if unknown := _unknown(current, inputs):
        message = f"{trigger.message}; nothing moves while the utilization of {unknown} is unknown"
        return Keep(reason=Kept.UNKNOWN_METRICS, message=message, trigger=trigger), memory
    memory = update_obstacles(memory, inputs, policy)
    usable = _usable(inputs, memory)
    best = _best(current, usable, policy, solver)
    if isinstance(best, Keep):
        return best.model_copy(update={"trigger": trigger, "message": f"{trigger.message}; {best.message}"}), memory
    move = _move(current, best, problem, policy)
    if policy.mode is Mode.ADVISORY and move.pays and best.revision in inputs.rejected:
        move = _not_rejected(move, usable, inputs, policy, solver) or move
    lead = trigger.message
    if trigger.reason is Reason.BETTER_PLAN:
        waits, lead, memory = _confirm(move, inputs, policy, memory)
        if waits is not None:
            return Keep(reason=waits, trigger=trigger), memory
    return _conclude(move, lead, inputs, policy, memory=memory, solver=solver, trigger=trigger)


def _move(current: Plan, best: Plan, problem: Problem, policy: Policy, instead: str = "") -> _Move:
    net = net_gain(current, best, problem, policy)
    return _Move(current, best, net, pays=best.revision != current.revision and net > policy.min_gain, instead=instead)


def _not_rejected(move: _Move, usable: Problem, inputs: DecisionInputs, policy: Policy, solver: Solver) -> _Move | None:
    """The best move that pays without the nodes that rejected plans would begin to use. None: there is none.

    Who rejects a plan does not want this move. A plan that differs in a layer or two would be the same again, so the nodes count.
    A plan that only cuts anew on the same nodes names none: nothing is proposed instead of it.
    """
    avoided: set[str] = set()
    for _ in range(_MOST_REJECTED):
        avoided |= _nodes(move.best) - _nodes(move.current)
        if not avoided:
            return None
        best = _best(move.current, without(usable, sorted(avoided)), policy, solver)
        if isinstance(best, Keep):
            return None
        words = f"without {', '.join(sorted(avoided))}, as a plan with {'it' if len(avoided) == 1 else 'them'} was rejected"
        move = _move(move.current, best, inputs.problem, policy, words)
        if not move.pays or best.revision not in inputs.rejected:
            return move if move.pays else None
    return None


def _nodes(plan: Plan) -> set[str]:
    return {name for segment in plan.segments for name in segment.nodes}


def _unknown(plan: Plan, inputs: DecisionInputs) -> str:
    """Names of the plan's nodes whose utilization is unknown, with commas between them."""
    used = dict.fromkeys(name for segment in plan.segments for name in segment.nodes)
    nodes = inputs.problem.snapshot.named(used)
    return ", ".join(name for name in used if nodes[name].utilization is None)


def _usable(inputs: DecisionInputs, memory: Memory) -> Problem:
    """The problem without nodes that are avoided or unknown, and with the room that earlier transitions found on nodes."""
    unknown = [node.name for node in inputs.problem.snapshot.nodes if node.utilization is None]
    problem = without(inputs.problem, [*unknown, *inputs.quarantined, *inputs.pressured])
    return with_room(problem, memory_limits(memory.obstacles, inputs))


def _best(current: Plan, problem: Problem, policy: Policy, solver: Solver) -> Plan | Keep:
    """The best plan that loads no busy node further, and that can be reached if one such plan is found."""
    best = _candidate(current, problem, policy, solver)
    if isinstance(best, Plan) and goes_to_busier(current, best, problem, policy.utilization_limit):
        problem = no_more_on_busy(current, problem, policy.utilization_limit)
        best = _candidate(current, problem, policy, solver)
    if isinstance(best, Plan) and best.revision != current.revision and not solver.reachable(best):
        return best_single_move(current, problem, policy, solver) or best
    return best


def _confirm(move: _Move, inputs: DecisionInputs, policy: Policy, memory: Memory) -> tuple[Kept | None, str, Memory]:
    """Watch how long a better plan has been there: why the decision has to wait (None: it need not), what to say of it, the memory."""
    watch, memory = memory.watching(Reason.BETTER_PLAN, move.pays, policy, inputs.now)
    lead = "" if watch is None else f"a better plan has existed for {(inputs.now - watch.since).total_seconds():.0f} s"
    if move.pays and not sustained(watch, policy, inputs.now):
        return Kept.CONFIRMING, lead, memory
    if move.pays and settling(memory, inputs, policy):
        return Kept.SETTLING, lead, memory
    return None, lead, memory


def _conclude(
    move: _Move, lead: str, inputs: DecisionInputs, policy: Policy, *, memory: Memory, solver: Solver, trigger: Trigger
) -> tuple[Adopt | Keep, Memory]:
    """Adopt the plan if the move pays, is allowed and can be reached."""
    current, best, problem = move.current, move.best, inputs.problem
    if move.changes_nothing:
        message = f"{lead}; no other plan is better" if lead else ""
        return Keep(reason=Kept.GAIN_TOO_SMALL if lead else Kept.STEADY, message=message, trigger=trigger), memory
    figures = f"{before_after(current, best, problem)}, {moving(best, problem, policy)}"
    if not move.pays:
        message = f"{lead or 'another plan'}; {figures}: net gain {move.net:.0%}, required are more than {policy.min_gain:.0%}"
        return Keep(reason=Kept.GAIN_TOO_SMALL, message=message, trigger=trigger), memory
    message = f"{lead}; {figures}: net gain {move.net:.0%}" + (f"; {move.instead}" if move.instead else "")
    if isinstance(end := solver.dry_run(best), Blocked):
        # A plan that cannot be reached is no move. Other reasons stay watched; only this plan is not tried again at once.
        watches = {k: w for k, w in memory.watches.items() if k != Reason.BETTER_PLAN}
        message = f"{message}; the plan cannot be reached: {end.why}"
        return Keep(reason=Kept.BLOCKED, message=message, trigger=trigger), memory.model_copy(update={"watches": watches})
    if policy.mode is Mode.ADVISORY:
        return _advise(best, message, inputs, trigger), memory
    adopted = Adopt(
        plan=best,
        before_ms=predict(current, problem).time_per_output_token_ms,
        change=change(current, best),
        reason=trigger.reason,
        message=message,
        mandatory=False,
    )
    return adopted, memory.after_adoption(reviewed=inputs.now)


def _advise(best: Plan, message: str, inputs: DecisionInputs, trigger: Trigger) -> Keep:
    """Propose the plan, unless a person rejected it lately."""
    segments = " ".join(f"{s.node}[{s.start}:{s.end}]" for s in best.segments)
    if best.revision in inputs.rejected:
        return Keep(reason=Kept.REJECTED, message=f"{message}; {segments} was rejected, so it is not proposed again", trigger=trigger)
    message = f"{message}; mode Advisory: the plan would be {segments}"
    return Keep(reason=Kept.ADVISED, message=message, trigger=trigger, proposal=best)


def best_single_move(current: Plan, problem: Problem, policy: Policy, solver: Solver) -> Plan | None:
    """The best reachable plan that moves one segment only. None if there is none."""
    if len(current.pipelines) > 1 or any(len(segment.nodes) > 1 for segment in current.segments):
        return None
    for slo in dict.fromkeys((problem.slo, Slo())):
        same = same_cuts(problem.model_copy(update={"slo": slo}), current)
        if same is None:
            return None
        found = []
        for moved in current.segments:
            staying = (segment for segment in current.segments if segment is not moved)
            plan = solver.best(pinned(same, staying), current)
            if isinstance(plan, Plan) and plan.revision != current.revision and solver.reachable(plan):
                found.append(plan)
        if found:
            return max(found, key=lambda plan: net_gain(current, plan, problem, policy))
    return None


def _candidate(current: Plan, problem: Problem, policy: Policy, solver: Solver) -> Plan | Keep:
    """The plan to compare with. Of several pipelines the slowest one moves, and the others stay, unless more is to be gained."""
    if len(current.pipelines) == 1:
        return _candidate_chain(current, problem, policy, solver)
    slowest, others = slowest_and_others(current, problem)
    left = beside(problem, others)
    one = Keep(reason=Kept.INFEASIBLE) if left is None else _candidate_chain(slowest, left, policy, solver)
    return better_of_several(current, problem, policy, solver, one)


def _candidate_chain(current: Plan, problem: Problem, policy: Policy, solver: Solver) -> Plan | Keep:
    """The plan to compare with: one with the same split points if that is enough, else one with new ones. A plan that keeps the SLO wins.

    A plan that cannot be reached does not hide another plan that pays and can be reached.
    """
    same = same_cuts(problem, current)
    migrated = solver.best(same, current) if same is not None else None
    resplit = solver.best(problem, current)
    if isinstance(resplit, Keep):
        if isinstance(migrated, Plan) or problem.slo == Slo():
            return migrated if isinstance(migrated, Plan) else resplit
        return _candidate_chain(current, problem.model_copy(update={"slo": Slo()}), policy, solver)
    if not isinstance(migrated, Plan):
        if problem.slo != Slo() and not solver.reachable(resplit):
            other = _candidate_chain(current, problem.model_copy(update={"slo": Slo()}), policy, solver)
            if isinstance(other, Plan) and other.revision != current.revision and solver.reachable(other):
                return other
        return resplit
    further = gain(objective_value(migrated, problem), objective_value(resplit, problem), problem)
    extra = (move_seconds(resplit, problem, policy) - move_seconds(migrated, problem, policy)) / policy.payback.total_seconds()
    pays = net_gain(current, migrated, problem, policy) > policy.min_gain
    least = policy.resplit_gain if pays else 0.0
    return resplit if further - extra > least and (not pays or solver.reachable(resplit)) else migrated
