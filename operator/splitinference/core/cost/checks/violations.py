"""Everything that is wrong with a plan. An empty answer means that it may serve."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.cost.evaluate import Evaluation, UnknownPlaceError, evaluate
from splitinference.core.cost.link import Links
from splitinference.core.cost.predict import prediction_of, utilizations
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.value import Value

_MIB = 1024 * 1024

TOLERANCE = 1e-9
"""Relative slack for limits on computed times, so that the order of a sum decides nothing."""


class Violation(Value):
    """One broken constraint: its name, and what is wrong in words with numbers."""

    constraint: str
    message: str


def violations(plan: Plan, problem: Problem) -> tuple[Violation, ...]:
    """All that is wrong with the plan, in a fixed order."""
    return inspected(plan, problem)[0]


def inspected(plan: Plan, problem: Problem, laid: Evaluation | None = None) -> tuple[tuple[Violation, ...], Evaluation | None]:
    """All that is wrong with the plan, and the plan laid over the problem where that is possible; `laid`: where that is done already."""
    found = [*_cover(plan, problem), *_places(plan, problem)]
    if found:
        return tuple(found), None
    try:
        laid = laid or evaluate(plan, problem)
    except UnknownPlaceError as error:
        return (Violation(constraint="place", message=str(error)),), None
    wrong = (*_nodes(plan, problem), *_counts(plan, problem), *_memory(laid), *_links(plan, problem), *_limits(laid, plan, problem))
    return wrong, laid


def _cover(plan: Plan, problem: Problem) -> Iterator[Violation]:
    layers, bounds = len(problem.profile.layers), problem.constraints
    for number, pipeline in enumerate(plan.pipelines):
        if pipeline.segments[-1].end != layers:
            yield Violation(constraint="layers", message=f"pipeline {number} ends at layer {pipeline.segments[-1].end} of {layers}")
        for point in pipeline.split_points:
            if bounds.split_points is not None and point not in bounds.split_points:
                yield Violation(constraint="split-point", message=f"pipeline {number} is cut at {point}, which is not allowed")
        for segment in pipeline.segments:
            if segment.held_start is not None and not bounds.partial_runs:
                yield Violation(constraint="partial-run", message=f"segment {segment.held} is entered at layer {segment.start}")
            if segment.held_start and bounds.split_points is not None and segment.held_start not in bounds.split_points:
                yield Violation(constraint="split-point", message=f"a run starts at {segment.held_start}, which is not allowed")


def _places(plan: Plan, problem: Problem) -> Iterator[Violation]:
    there = problem.snapshot.named({name for segment in plan.segments for name in segment.nodes})
    places = {(node.name, processor) for node in there.values() for processor in ([each.name for each in node.processors] or [""])}
    for segment in plan.segments:
        for name in segment.nodes:
            if (name, segment.processor) not in places:
                what = f"processor {segment.processor!r}" if segment.processor else "place of its own (it has processors), or node"
                yield Violation(constraint="place", message=f"node {name!r}: no such {what} in the snapshot")


def _nodes(plan: Plan, problem: Problem) -> Iterator[Violation]:
    used = {name for segment in plan.segments for name in segment.nodes}
    nodes = problem.snapshot.named(used)
    for name in sorted(used):
        reason = unusable(nodes[name], problem)
        if reason:
            yield Violation(constraint="node", message=f"node {name}: {reason}")
    for segment in plan.segments:
        for name in segment.nodes:
            reasons = [forbidden(nodes[name], layer, problem.constraints) for layer in range(*segment.held)]
            for reason in sorted({r for r in reasons if r}):
                yield Violation(constraint=reason.split(":", 1)[0], message=f"segment {segment.held} on node {name}: {reason}")


def _counts(plan: Plan, problem: Problem) -> Iterator[Violation]:
    bounds, flow = problem.constraints, problem.objective.goal is Goal.THROUGHPUT
    if not flow and len(plan.pipelines) != bounds.pipelines:
        yield Violation(constraint="pipelines", message=f"{len(plan.pipelines)} pipelines, {bounds.pipelines} are required")
    used = {name for segment in plan.segments for name in segment.nodes}
    if bounds.max_nodes is not None and len(used) > bounds.max_nodes:
        yield Violation(constraint="max-nodes", message=f"{len(used)} nodes, at most {bounds.max_nodes} are allowed")
    for number, pipeline in enumerate(plan.pipelines):
        count = len(pipeline.segments)
        if count < bounds.min_segments:
            yield Violation(constraint="min-segments", message=f"pipeline {number} has {count} segments, at least {bounds.min_segments}")
        if bounds.max_segments is not None and count > bounds.max_segments:
            yield Violation(constraint="max-segments", message=f"pipeline {number} has {count} segments, at most {bounds.max_segments}")
        visits = [name for before, now in zip((None, *pipeline.segments), pipeline.segments, strict=False)
                  for name in now.nodes if before is None or name not in before.nodes or _same_place(before, now)]  # fmt: skip
        for name, times in sorted(Counter(visits).items()):
            if times > 1:
                yield Violation(constraint="node-once", message=f"pipeline {number} uses node {name} {times} times")
        places = Counter((name, s.processor) for s in pipeline.segments for name in s.nodes)
        if max(places.values()) > 1 and max(Counter(visits).values()) == 1:  # with others of the node in between
            yield Violation(constraint="node-once", message=f"pipeline {number} uses a processor twice")
        if any(len(s.nodes) > bounds.max_stage_nodes for s in pipeline.segments):
            most = max(len(s.nodes) for s in pipeline.segments)
            yield Violation(constraint="stage-nodes", message=f"a stage is on {most} nodes, at most {bounds.max_stage_nodes} are allowed")
    if flow:
        yield from _one_run(plan)
    elif bounds.disjoint_pipelines:
        yield from _disjoint(plan)
    else:
        yield from _no_shared_segment(plan)


def _same_place(before: Segment, now: Segment) -> bool:
    """Whether two segments in a row are on a node without processors, or on its CPU: then the node is used twice."""
    return not now.processor and not before.processor


def _one_run(plan: Plan) -> Iterator[Violation]:
    runs: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for segment in plan.segments:
        runs.setdefault((segment.node, segment.processor), set()).add(segment.held)
    for (node, _), held in sorted(runs.items()):
        if len(held) > 1:
            yield Violation(constraint="one-run", message=f"node {node} holds several runs of layers: {sorted(held)}")


def _disjoint(plan: Plan) -> Iterator[Violation]:
    owner: dict[str, int] = {}
    for number, pipeline in enumerate(plan.pipelines):
        for name in sorted({name for segment in pipeline.segments for name in segment.nodes}):
            if owner.setdefault(name, number) != number:
                yield Violation(constraint="disjoint", message=f"node {name} serves pipelines {owner[name]} and {number}")


def _no_shared_segment(plan: Plan) -> Iterator[Violation]:
    seen = Counter((s.start, s.end, name, s.processor) for s in plan.segments for name in s.nodes)
    for (start, end, name, _), times in sorted(seen.items()):
        if times > 1:
            yield Violation(constraint="shared-segment", message=f"segment [{start}, {end}) on node {name} is in {times} pipelines")


def _mib(amount: int) -> int:
    """Bytes in MiB, rounded up: what is free is rounded down, so a message never says that 40 MiB do not fit in 40."""
    return -(-amount // _MIB)


def _memory(laid: Evaluation) -> Iterator[Violation]:
    free = {(site.node.name, site.processor): site.memory_bytes for stage in laid.stages for site in stage.sites}
    for place, needed in sorted(laid.load.memory.items()):
        if needed > free[place]:
            where = "/".join(part for part in place if part)
            yield Violation(constraint="memory", message=f"{where}: {_mib(needed)} MiB needed, {free[place] // _MIB} MiB free")


def _links(plan: Plan, problem: Problem) -> Iterator[Violation]:
    least, network = problem.constraints.min_bandwidth_bytes_per_s, problem.snapshot.network
    if least is None and not (network.closed or network.closed_zones or network.only_listed):
        return
    links = Links(network, problem.snapshot.nodes)
    firsts = {(network.ingress, name) for pipeline in plan.pipelines for name in pipeline.segments[0].nodes}
    pairs = {(a, b) for p in plan.pipelines for s, t in zip(p.segments, p.segments[1:], strict=False) for a in s.nodes for b in t.nodes}
    for source, target in sorted(pairs | firsts):
        if not links.is_open(source, target):
            yield Violation(constraint="closed-link", message=f"no hop goes from {source} to {target}")
    if least is None:
        return
    for source, target in sorted(pairs):
        found = min(links.quality(source, target).bandwidth_bytes_per_s, links.quality(target, source).bandwidth_bytes_per_s)
        if found < least:
            yield Violation(constraint="min-bandwidth", message=f"link {source} to {target}: {found:.0f} B/s, at least {least:.0f}")


def _limits(laid: Evaluation, plan: Plan, problem: Problem) -> Iterator[Violation]:
    ceiling, slo = problem.constraints.utilization_ceiling, problem.slo
    for name, share in sorted(utilizations(laid, problem).items()):
        if ceiling is not None and share > ceiling * (1 + TOLERANCE):
            yield Violation(constraint="utilization", message=f"node {name}: {share:.1%} after placement, the ceiling is {ceiling:.1%}")
    yield from _budgets(laid, plan, problem)
    if slo.time_to_first_token_ms is None and slo.time_per_output_token_ms is None:
        return
    prediction = prediction_of(laid, plan, problem)
    for name, value, limit in (
        ("slo-time-to-first-token", prediction.time_to_first_token_ms, slo.time_to_first_token_ms),
        ("slo-time-per-output-token", prediction.time_per_output_token_ms, slo.time_per_output_token_ms),
    ):
        if limit is not None and value > limit * (1 + TOLERANCE):
            yield Violation(constraint=name, message=f"{value:.2f} ms predicted, the limit is {limit:.2f} ms")


def _budgets(laid: Evaluation, plan: Plan, problem: Problem) -> Iterator[Violation]:
    cost, watts = problem.constraints.max_cost_per_hour, problem.constraints.max_watts
    used = [laid.nodes[name] for name in sorted({name for segment in plan.segments for name in segment.nodes})]
    if cost is not None and (found := math.fsum(node.cost_per_hour for node in used)) > cost * (1 + TOLERANCE):
        yield Violation(constraint="max-cost", message=f"its nodes cost {found:.4g} per hour, the limit is {cost:.4g}")
    if watts is not None and (found := math.fsum(node.busy_watts for node in used)) > watts * (1 + TOLERANCE):
        yield Violation(constraint="max-watts", message=f"its nodes draw {found:.4g} W while they work, the limit is {watts:.4g} W")


def loads(laid: Evaluation, problem: Problem, pipelines: int = 1) -> dict[str, float]:
    """Share of each node's free compute that a plan's requests take, 0..1; 0 where no rate of requests is given.

    For one of several pipelines laid out alone, `pipelines` says over how many the requests are spread.
    """
    rate = problem.workload.requests_per_s / pipelines
    return {name: min(1.0, rate * busy / 1e3) for name, busy in laid.load.busy_ms.items()}


def double_booked(plans: Sequence[Plan], problems: Sequence[Problem]) -> tuple[Violation, ...]:
    """What the plans of several problems take more of together than there is: memory of places, and compute of nodes that they share.

    Nodes of one name are the same in all snapshots. A plan that has a node for itself may overload it, as if it were alone.
    """
    taken: Counter[tuple[str, str]] = Counter()
    free: dict[tuple[str, str], int] = {}
    shares: dict[str, list[float]] = {}
    for plan, problem in zip(plans, problems, strict=True):
        laid = evaluate(plan, problem)
        taken.update(laid.load.memory)
        free.update({(site.node.name, site.processor): site.memory_bytes for stage in laid.stages for site in stage.sites})
        for name, share in loads(laid, problem).items():
            shares.setdefault(name, []).append(share)
    memory = tuple(
        Violation(
            constraint="memory",
            message=f"{'/'.join(filter(None, place))}: {_mib(needed)} MiB for all plans, {free[place] // _MIB} MiB free",
        )
        for place, needed in sorted(taken.items())
        if needed > free[place]
    )
    compute = tuple(
        Violation(constraint="compute", message=f"{name}: {sum(found):.1%} of its free compute for all plans")
        for name, found in sorted(shares.items())
        if len(found) > 1 and sum(found) > 1 + TOLERANCE
    )
    return (*memory, *compute)
