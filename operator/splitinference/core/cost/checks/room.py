"""Which room a plan leaves for pods that are no segments, and the problems of plans that leave it.

The room may be on any node that may have the pod, so it is no limit of one node. Where the best plan leaves it on none, each node in turn
is planned for without that much of it. The best plan of all these is the best plan that leaves the room.
"""

from collections import Counter
from collections.abc import Iterator

from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.checks.second_copies import Short, short_of
from splitinference.core.cost.evaluate import evaluate
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.room import Free, Room


def lacking(plan: Plan, problem: Problem) -> tuple[Room, ...]:
    """The rooms that no node has beside the plan's segments. Two rooms are never the same bytes. The plan must be a valid one.

    What checks segments comes last: how much that needs depends on the plan.
    """
    if not reserves(problem):
        return ()
    free = _beside(plan, problem)
    found = []
    for room in sorted(problem.rooms, key=lambda room: room.memory_bytes, reverse=True):
        fits = [name for name in _able(room, problem) if free[name][0] >= room.memory_bytes and free[name][1] >= room.millicores]
        if not fits:
            found.append(room)
            continue
        # Where the least is left over, so that large rooms stay whole.
        name = min(fits, key=lambda name: (free[name][0], name))
        free[name] = free[name][0] - room.memory_bytes, free[name][1] - room.millicores
    return (*found, *(_as_room(short, problem) for short in short_of(plan, problem, free)))


def reserves(problem: Problem) -> bool:
    """Whether plans are to leave any room."""
    return bool(problem.rooms) or problem.second_copies is not None


def reserving(plan: Plan, problem: Problem) -> tuple[tuple[str, Problem], ...]:
    """By node: the problem without the largest room that `plan` lacks, taken from that node. Plans for it leave this room.

    `plan` is the best of all. All nodes that could have the room, first those on which the plan leaves nearly enough.
    """
    missing = lacking(plan, problem)
    if not missing:
        return ()
    room, free = missing[0], _beside(plan, problem)
    nodes = {node.name: node for node in problem.snapshot.nodes}
    near = sorted(_able(room, problem), key=lambda name: (room.memory_bytes - free[name][0], name))
    left = [(name, _without(problem, nodes[name], room)) for name in near]
    if room not in problem.rooms:  # another plan may have more layers to check: a node without any segment has the most room for that
        left += [(name, _emptied(problem, nodes[name], room)) for name in near]
    return tuple((name, reserved) for name, reserved in left if reserved is not None)


def _able(room: Room, problem: Problem) -> Iterator[str]:
    for node in problem.snapshot.nodes:
        if unusable(node, problem) is None and all(node.labels.get(key) == value for key, value in room.labels.items()):
            yield node.name


def _beside(plan: Plan, problem: Problem) -> Free:
    memory = evaluate(plan, problem).load.memory
    distinct = _distinct(plan)
    requests = Counter(name for _, nodes in distinct for name in nodes)
    on_devices = Counter(name for processor, nodes in distinct if processor for name in nodes)
    copies = problem.second_copies.millicores if problem.second_copies is not None else 0
    each = max((room.segment_millicores for room in problem.rooms), default=copies)

    def left(node: Node) -> tuple[int, float]:
        servers = on_devices[node.name] * node.device_host_bytes
        return node.memory_free_bytes - memory.get((node.name, ""), 0) - servers, _cores(node) - each * requests[node.name]

    return {node.name: left(node) for node in problem.snapshot.nodes}


def _distinct(plan: Plan) -> list[tuple[str, tuple[str, ...]]]:
    """Processor and nodes of each segment; what several pipelines share counts once."""
    return [(processor, nodes) for _, _, processor, nodes in sorted({(*s.held, s.processor, s.nodes) for s in plan.segments})]


def _cores(node: Node) -> float:
    return float("inf") if node.millicores_free is None else float(node.millicores_free)


def _without(problem: Problem, node: Node, room: Room) -> Problem | None:
    """None where the node could not have the room even without a segment."""
    memory, cores = node.memory_free_bytes - room.memory_bytes, _cores(node) - room.millicores
    if memory < 0 or cores < 0:
        return None
    update: dict[str, object] = {"memory_free_bytes": memory}
    if node.processors:
        update["processors"] = tuple(
            place if place.resource else place.model_copy(update={"memory_free_bytes": max(0, place.memory_free_bytes - room.memory_bytes)})
            for place in node.processors
        )
    if node.millicores_free is not None:
        update["millicores_free"] = int(cores)
    if cores < room.segment_millicores:
        update["excluded"] = f"its CPU is kept for {room.what}"
    nodes = tuple(node.model_copy(update=update) if each.name == node.name else each for each in problem.snapshot.nodes)
    return _changed(problem, nodes, room)


def _emptied(problem: Problem, node: Node, room: Room) -> Problem | None:
    """The problem without segments on the node; None where it could not have the room even then."""
    if node.memory_free_bytes < room.memory_bytes or _cores(node) < room.millicores:
        return None
    empty = node.model_copy(update={"excluded": f"it is kept for {room.what}"})
    return _changed(problem, tuple(empty if each.name == node.name else each for each in problem.snapshot.nodes), room)


def _changed(problem: Problem, nodes: tuple[Node, ...], room: Room) -> Problem:
    """With these nodes, and without the room; of rooms that depend on the plan, without all: each plan is judged by them afterwards."""
    rooms = tuple(each for each in problem.rooms if each != room)
    copies = problem.second_copies if len(rooms) < len(problem.rooms) else None
    snapshot = problem.snapshot.model_copy(update={"nodes": nodes})
    return problem.model_copy(update={"snapshot": snapshot, "rooms": rooms, "second_copies": copies})


def _as_room(short: Short, problem: Problem) -> Room:
    wanted, run = problem.second_copies, short.run
    labels = wanted.trusted if wanted is not None and short.trusted else {}
    what = f"{short.what} of layers {run.start} to {run.end}"
    cores = wanted.millicores if wanted is not None else 0
    return Room(what=what, labels=labels, memory_bytes=short.needed, millicores=cores, segment_millicores=cores)
