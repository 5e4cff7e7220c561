"""The best plan that a walk arrives at, where the best of all cannot be walked to.

What stood in the way of a walk (which node lacks how much beside the segments that are there) is put into the problem, and it is solved
again: with that node holding no more than what it holds, and with no more than what is free there. Besides, plans that need little room:
what serves with only its lost segments made anew, the same cuts on the same nodes and a spare one in another order (a walk frees one node
after the other), and the best that fits wholly beside what is there. Of those that can be walked to the best is taken, the time of the
walk counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, permutations

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.decide.base.compare import gain, move_seconds
from splitinference.core.decide.base.decision import Keep
from splitinference.core.decide.base.policy import Facts, Policy
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.prefetch_targets import quickest
from splitinference.core.decide.feasibility.restrict import may_stay, pinned, same_cuts, with_room
from splitinference.core.transition.state import Resource, Shortage
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo

_MOST_SOLVES = 8
"""Questions put to the solver on the way around what is short: each may take its whole time limit."""

_MOST_ORDERS = 120
"""Orders of the same segments on nodes that are looked at, besides those that shift all of them by one node."""
_SPARE = 2
"""Nodes outside of the plan that such orders may use: the two that are quickest for its largest segment."""

Room = tuple[tuple[str, int], ...]
"""The most bytes that our segments may take on some nodes."""


def instead(best: Plan, problem: Problem, facts: Facts, policy: Policy, solver: Solver) -> Plan | None:
    """The best plan that can be walked to, where `best` of this problem cannot; None if none was found."""
    for wishes in dict.fromkeys((problem.slo, Slo())):
        asked = problem.model_copy(update={"slo": wishes})
        least = objective_value(best, asked)
        others = {plan.revision: plan for plan in _others(best, asked, facts, solver)}
        for plan in sorted(others.values(), key=lambda plan: _worth(plan, least, asked, policy), reverse=True):
            if solver.reaches(plan):
                return plan
    return None


def _worth(plan: Plan, best: float, problem: Problem, policy: Policy) -> float:
    """Share of the objective that the plan gains over the best of all (so mostly less than nothing), its walk's time taken off."""
    gained = gain(best, objective_value(plan, problem), problem)
    return gained - move_seconds(plan, problem, policy) / policy.payback.total_seconds()


def _others(best: Plan, problem: Problem, facts: Facts, solver: Solver) -> Iterator[Plan]:
    """Plans that are worth a rehearsal."""
    yield from _around(best, problem, facts.held_bytes, solver)
    for kept in {plan.revision: plan for plan in (facts.serving, facts.plan) if plan is not None}.values():
        if (same := same_cuts(problem, kept)) is None:
            continue
        if staying := may_stay(kept, same):
            yield from _plans(solver.best(pinned(same, staying), None))
        yield from _orders(kept, problem)
    beside = {node.name: node.memory_free_bytes - facts.held_bytes.get(node.name, 0) for node in problem.snapshot.nodes}
    yield from _plans(solver.best(with_room(problem, beside), None))


def _orders(kept: Plan, problem: Problem) -> Iterator[Plan]:
    """The plan's cuts on its nodes and a few others, in other orders."""
    if len(kept.pipelines) != 1 or any(s.processor or s.replicas for s in kept.segments):
        return
    largest = max(kept.segments, key=lambda s: s.end - s.start)
    there, spare = [s.node for s in kept.segments], [node.name for node in islice(quickest(largest, kept, problem), _SPARE)]
    # Shifted by one towards a spare node, every segment finds its next node free, however full all are.
    shifted = [tuple(order) for node in spare for order in ([*there[1:], node], [node, *there[:-1]])]
    for order in (*shifted, *islice(permutations([*there, *spare], len(there)), _MOST_ORDERS)):
        segments = tuple(s.model_copy(update={"node": node}) for s, node in zip(kept.segments, order, strict=True))
        plan = kept.model_copy(update={"pipelines": (kept.pipelines[0].model_copy(update={"segments": segments}),), **_UNPROVEN})
        if not violations(plan, problem):
            yield plan.model_copy(update={"prediction": predict(plan, problem), "value": objective_value(plan, problem)})


_NOT_PROVEN = "the same cuts on nodes in another order: the best that can be walked to, not proven best"
_UNPROVEN = {"bound": None, "gap": None, "optimal": False, "explanation": (_NOT_PROVEN,)}
"""What a solver says of a plan, for one that it did not make."""


def _plans(found: Plan | Keep) -> Iterator[Plan]:
    if isinstance(found, Plan):
        yield found


def _around(best: Plan, problem: Problem, held_bytes: Mapping[str, int], solver: Solver) -> Iterator[Plan]:
    """Plans of the problem with the room that was short on the way to `best`, and to those found on the way to them."""
    todo: list[tuple[Room, Plan]] = [((), best)]
    seen: set[Room] = {()}
    solves = 0
    while todo:
        room, plan = todo.pop(0)
        end = solver.ends(plan)
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
    """The room with what was short: all of it at once with nodes keeping what they hold, then node by node with what is free."""
    free: dict[str, int] = {}
    for shortage in short:
        left = shortage.free if shortage.resource is Resource.MEMORY else 0
        free[shortage.node] = min(left, free.get(shortage.node, left))
    keeping = {node: max(left, held_bytes.get(node, 0)) for node, left in free.items()}
    for more in (keeping, *({node: left} for node, left in free.items()), free):
        yield tuple(sorted({**dict(room), **more}.items()))
