"""Restricts a problem: without some nodes, with less memory on them, with the same split points, with segments that stay."""

from collections.abc import Iterable, Mapping

from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.values.cluster import CPU, Node, Snapshot
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.problem import Pin, Problem


def without(problem: Problem, nodes: Iterable[str]) -> Problem:
    """The problem without these nodes."""
    names = frozenset(nodes)
    if not names:
        return problem
    usable = tuple(node.model_copy(update={"ready": False}) if node.name in names else node for node in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": usable})})


def with_room(problem: Problem, most_bytes: Mapping[str, int]) -> Problem:
    """The problem in which these nodes have at most this many bytes for our segments."""
    if not most_bytes:
        return problem
    nodes = tuple(_at_most(node, max(0, most_bytes[node.name])) if node.name in most_bytes else node for node in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})


def _at_most(node: Node, most: int) -> Node:
    """The node with so much memory. Devices have memory of their own, so they are left, unless nothing may be there at all."""
    processors = tuple(
        place if place.resource and most > 0 else place.model_copy(update={"memory_free_bytes": min(place.memory_free_bytes, most)})
        for place in node.processors
    )
    return node.model_copy(update={"memory_free_bytes": min(node.memory_free_bytes, most), "processors": processors})


def without_classes(snapshot: Snapshot, barred: Mapping[str, str]) -> Snapshot:
    """The snapshot without places of these classes. `barred`: by class why, in words, which is kept with the node: a node without a place
    that is left is excluded."""
    nodes = tuple(_without_classes(node, barred) for node in snapshot.nodes)
    return snapshot if all(a is b for a, b in zip(nodes, snapshot.nodes, strict=True)) else snapshot.model_copy(update={"nodes": nodes})


def _without_classes(node: Node, barred: Mapping[str, str]) -> Node:
    if not node.processors:
        return node if CPU not in barred else _excluded(node, barred[CPU], node.devices_out)
    kept = tuple(place for place in node.processors if place.kind not in barred)
    if len(kept) == len(node.processors):
        return node
    out = {**node.devices_out, **{place.resource: barred[place.kind] for place in node.processors if place.resource and place not in kept}}
    if not kept:
        return _excluded(node, next(barred[place.kind] for place in node.processors), out)
    return node.model_copy(update={"processors": kept, "devices_out": out})


def _excluded(node: Node, why: str, out: Mapping[str, str]) -> Node:
    found = "; ".join(f"{resource}: {reason}" for resource, reason in sorted(out.items()) if reason != why)
    words = f"{why}, and it has no such processor" + (f" ({found})" if found else "")
    return node.model_copy(update={"excluded": node.excluded or words, "devices_out": out})


def same_cuts(problem: Problem, plan: Plan) -> Problem | None:
    """The problem with the plan's split points. None if it cannot be stated: another model, or split points that are no longer allowed."""
    bounds = problem.constraints
    lengths = {len(pipeline.segments) for pipeline in plan.pipelines}
    points = tuple(sorted({point for pipeline in plan.pipelines for point in pipeline.split_points}))
    if plan.model_digest != problem.profile.digest or len(lengths) != 1 or len(plan.pipelines) != bounds.pipelines:
        return None
    count = lengths.pop()
    if bounds.split_points is not None and not set(points) <= set(bounds.split_points):
        return None
    if count < bounds.min_segments or (bounds.max_segments is not None and count > bounds.max_segments):
        return None
    same = bounds.model_copy(update={"split_points": points, "min_segments": count, "max_segments": count})
    return problem.model_copy(update={"constraints": same})


def pinned(problem: Problem, staying: Iterable[Segment]) -> Problem:
    """The problem in which these segments stay on their nodes. Its split points must already be theirs."""
    pins = tuple(Pin(start=s.start, end=s.end, node=s.node) for s in staying)
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"pins": (*problem.constraints.pins, *pins)})})


def may_stay(plan: Plan, problem: Problem) -> tuple[Segment, ...]:
    """The plan's segments that may stay on their nodes."""
    nodes = {node.name: node for node in problem.snapshot.nodes}
    return tuple(
        s
        for s in plan.segments
        if s.node in nodes
        and unusable(nodes[s.node], problem) is None
        and not any(forbidden(nodes[s.node], layer, problem.constraints) for layer in range(s.start, s.end))
    )
