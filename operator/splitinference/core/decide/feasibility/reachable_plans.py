"""The best reachable plan, if the best plan of all cannot be reached.

The shortages of the blocked transition become limits of the problem, and it is solved again: that node may hold no more than it holds, or
no more than is free on it. Other candidates need little room: the serving plan with only its lost segments replaced, the same split
points on the same nodes and a spare one in another order, and the best plan that fits beside all present segments. The best of the
reachable ones wins, with the cost of its transition included.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.cost.checks.room import lacking
from splitinference.core.decide.base.compare import gain, move_seconds
from splitinference.core.decide.base.decision import Keep
from splitinference.core.decide.base.policy import DecisionInputs, Policy
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.prefetch_targets import quickest
from splitinference.core.decide.feasibility.restrict import may_stay, pinned, same_cuts, with_room
from splitinference.core.transition.state import Shortage, ShortOf
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo

_MOST_SOLVES = 8
"""Limit of solves with tightened limits. Each may take the whole time limit of the solver."""

_MOST_ORDERS = 120
"""Limit of orders of the same segments to try, besides those that shift all of them by one node."""
_SPARE = 2
"""Number of nodes outside the plan that such orders may use: the quickest ones for its largest segment."""

Room = tuple[tuple[str, int], ...]
"""The most bytes that our segments may take on some nodes."""


def best_reachable(best: Plan, problem: Problem, inputs: DecisionInputs, policy: Policy, solver: Solver) -> Plan | None:
    """The best reachable plan, given that `best` is not reachable. None if none was found."""
    for slo in dict.fromkeys((problem.slo, Slo())):
        relaxed = problem.model_copy(update={"slo": slo})
        least = objective_value(best, relaxed)
        others = {plan.revision: plan for plan in _alternatives(best, relaxed, inputs, solver)}

        def worth(plan: Plan, least: float = least, relaxed: Problem = relaxed) -> tuple[bool, float]:
            return not lacking(plan, relaxed), _net_gain(plan, least, relaxed, policy)

        for plan in sorted(others.values(), key=worth, reverse=True):
            if solver.reachable(plan):
                return plan
    return None


def _net_gain(plan: Plan, best: float, problem: Problem, policy: Policy) -> float:
    """Share of the objective that the plan gains over the best one (mostly negative), less the cost of its transition."""
    gained = gain(best, objective_value(plan, problem), problem)
    return gained - move_seconds(plan, problem, policy) / policy.payback.total_seconds()


def _alternatives(best: Plan, problem: Problem, inputs: DecisionInputs, solver: Solver) -> Iterator[Plan]:
    """Plans that are worth a dry run."""
    yield from _with_less_room(best, problem, inputs.held_bytes, solver)
    for kept in {plan.revision: plan for plan in (inputs.serving, inputs.plan) if plan is not None}.values():
        if (same := same_cuts(problem, kept)) is None:
            continue
        if staying := may_stay(kept, same):
            yield from _plans(solver.best(pinned(same, staying), None))
        yield from _orders(kept, problem)
    beside = {node.name: node.memory_free_bytes - inputs.held_bytes.get(node.name, 0) for node in problem.snapshot.nodes}
    yield from _plans(solver.best(with_room(problem, beside), None))


def _orders(kept: Plan, problem: Problem) -> Iterator[Plan]:
    """The plan's split points on its nodes and a few others, in other orders."""
    if len(kept.pipelines) != 1 or any(s.processor or s.replicas for s in kept.segments):
        return
    largest = max(kept.segments, key=lambda s: s.end - s.start)
    there, spare = [s.node for s in kept.segments], [node.name for node in islice(quickest(largest, kept, problem), _SPARE)]
    # Shifted by one towards a spare node, each segment finds its next node free, however full the nodes are.
    shifted = [tuple(order) for node in spare for order in ([*there[1:], node], [node, *there[:-1]])]
    for order in (*shifted, *islice(permutations([*there, *spare], len(there)), _MOST_ORDERS)):
        segments = tuple(s.model_copy(update={"node": node}) for s, node in zip(kept.segments, order, strict=True))
        plan = kept.model_copy(update={"pipelines": (kept.pipelines[0].model_copy(update={"segments": segments}),), **_UNPROVEN})
        if not violations(plan, problem):
            yield plan.model_copy(update={"prediction": predict(plan, problem), "value": objective_value(plan, problem)})


_NOT_PROVEN = "the same split points on nodes in another order: the best reachable plan found, not proven best"
_UNPROVEN = {"bound": None, "gap": None, "optimal": False, "explanation": (_NOT_PROVEN,)}
"""The solver's fields for a plan that the solver did not make."""


def _plans(found: Plan | Keep) -> Iterator[Plan]:
    if isinstance(found, Plan):
        yield found


def _with_less_room(best: Plan, problem: Problem, held_bytes: Mapping[str, int], solver: Solver) -> Iterator[Plan]:
    """Reachable plans of problems limited by the shortages on the way to `best`, and on the way to the plans found so."""
    todo: list[tuple[Room, Plan]] = [((), best)]
    seen: set[Room] = {()}
    solves = 0
    while todo:
        room, plan = todo.pop(0)
        end = solver.dry_run(plan)
        if not isinstance(end, Blocked):
            yield plan
            continue
        for further in _tighter(room, end.short, held_bytes):
            if further in seen or solves >= _MOST_SOLVES:
                continue
            seen.add(further)
            solves += 1
            todo += [(further, found) for found in _plans(solver.best(with_room(problem, dict(further)), None))]


def _tighter(room: Room, short: Sequence[Shortage], held_bytes: Mapping[str, int]) -> Iterator[Room]:
    """Tighter limits: all short nodes at once with what they hold, then node by node with what is free, then all with what is free."""
    free: dict[str, int] = {}
    for shortage in short:
        left = shortage.free if shortage.resource is ShortOf.MEMORY else 0
        free[shortage.node] = min(left, free.get(shortage.node, left))
    keeping = {node: max(left, held_bytes.get(node, 0)) for node, left in free.items()}
    for more in (keeping, *({node: left} for node, left in free.items()), free):
        yield tuple(sorted({**dict(room), **more}.items()))
