"""Runs of layers with what each carries → pipelines, one path after another."""

import math

from splitinference.core.cost.flow import Run, flow_over
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Problem


def plan_of_runs(runs: list[Run], problem: Problem) -> Plan | None:
    """The runs as pipelines: the flow taken apart into paths, each with its share. None if nothing flows."""
    total, edges = flow_over(runs, problem)
    if total <= 0:
        return None
    onward: dict[int, list[tuple[int, float]]] = {}
    for a, b, flow in sorted(edges, key=lambda edge: (edge[0], edge[2], -edge[1])):
        onward.setdefault(a, []).append((b, flow))
    layers, paths = len(problem.profile.layers), list[tuple[tuple[int, ...], float]]()
    # Each path uses up an edge, so there are no more paths than edges.
    for _ in range(len(edges)):
        path, width = _next_path(runs, onward, layers)
        if not path:
            break
        if width > total * 1e-9:
            paths.append((path, width))
    if not paths:
        return None
    carried = math.fsum(flow for _, flow in paths)
    pipelines = (Pipeline(segments=segments_along([runs[n] for n in path]), share=min(1.0, flow / carried)) for path, flow in paths)
    return Plan(model_digest=problem.profile.digest, pipelines=tuple(pipelines))


def _next_path(runs: list[Run], onward: dict[int, list[tuple[int, float]]], layers: int) -> tuple[tuple[int, ...], float]:
    """A path of what is left of the flow, from the gateway to the last layer over the widest edge of each run; it is taken away."""
    path, here, width = list[int](), -1, math.inf
    while here < 0 or runs[here][2] < layers:
        if not onward.get(here):
            # What is left here is rounding: the edge that led here is done with.
            if path:
                onward[path[-2] if len(path) > 1 else -1].pop()
                path, here, width = [], -1, math.inf
                continue
            return (), 0.0
        there, flow = onward[here][-1]
        width, here = min(width, flow), there
        path.append(here)
    for before in (-1, *path[:-1]):
        there, flow = onward[before][-1]
        if flow > width:
            onward[before][-1] = (there, flow - width)
        else:
            onward[before].pop()
    return tuple(path), width


def segments_along(path: list[Run]) -> tuple[Segment, ...]:
    result, at = [], 0
    for site, start, end in path:
        held = start if start < at else None
        result.append(Segment(start=at, end=end, node=site.node.name, processor=site.processor, held_start=held))
        at = end
    return tuple(result)
