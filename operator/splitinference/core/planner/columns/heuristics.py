"""Quick chains without a bound: simple rules that always end at once, so that no answer is worse than the best of them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.site import Site, sites
from splitinference.core.cost.stage import memory_bytes, stage_cost
from splitinference.core.values.plan import Pipeline, Segment
from splitinference.core.values.problem import Problem

Runs = Sequence[tuple[Site, int, int]]


def places(problem: Problem) -> list[Site]:
    """All usable places, in the snapshot's order."""
    return [site for node in problem.snapshot.nodes if not unusable(node, problem) for site in sites(node)]


def by_speed(problem: Problem) -> list[Site]:
    """All usable places, those that would be quickest with the whole model first."""
    layers = len(problem.profile.layers)
    return sorted(places(problem), key=lambda s: stage_cost(problem, s, 0, layers).busy_ms_per_request)


def pipeline_from(runs: Runs, problem: Problem) -> Pipeline | None:
    """The runs in order as a pipeline; empty runs are left out. None where they do not hold the whole model."""
    segments = tuple(Segment(start=a, end=b, node=s.node.name, processor=s.processor) for s, a, b in runs if b > a)
    if not segments or segments[-1].end != len(problem.profile.layers):
        return None
    return Pipeline(segments=segments)


def even_split(problem: Problem) -> Iterator[Pipeline]:
    """The same number of layers on each of so many nodes, nodes with most memory first; fewest nodes first."""
    ordered, layers = sorted(places(problem), key=lambda s: -s.memory_bytes), len(problem.profile.layers)
    for count in range(1, min(layers, len(ordered)) + 1):
        bounds = [round(k * layers / count) for k in range(count + 1)]
        runs = [(ordered[k], bounds[k], bounds[k + 1]) for k in range(count)]
        if all(memory_bytes(problem, a, b) <= s.memory_bytes for s, a, b in runs) and (made := pipeline_from(runs, problem)):
            yield made


def memory_proportional(problem: Problem) -> Iterator[Pipeline]:
    """Layers in proportion to memory over all nodes, most memory first, as exo's ring has them."""
    layers = len(problem.profile.layers)
    ordered = sorted(places(problem), key=lambda s: -s.memory_bytes)[:layers]
    total, so_far, runs, start = sum(s.memory_bytes for s in ordered), 0, [], 0
    for site in ordered if total else ():
        so_far += site.memory_bytes
        end = round(layers * so_far / total)
        runs.append((site, start, end))
        start = end
    if made := pipeline_from(runs, problem):
        yield made


def greedy(problem: Problem) -> Iterator[Pipeline]:
    """The fastest node for the whole model takes as many layers as fit, then the next fastest."""
    layers = len(problem.profile.layers)
    runs, start = [], 0
    for site in by_speed(problem):
        end = start
        while end < layers and memory_bytes(problem, start, end + 1) <= site.memory_bytes:
            end += 1
        if end > start:
            runs.append((site, start, end))
            start = end
    if made := pipeline_from(runs, problem):
        yield made


def water_filling(problem: Problem) -> Iterator[Pipeline]:
    """Layers in proportion to speed, up to what fits (Parallax): sum of min(cap, lambda * speed) = layers; fastest first."""
    layers = len(problem.profile.layers)
    found = places(problem)
    if not found:
        return
    speed = np.array([1.0 / stage_cost(problem, s, 0, layers).busy_ms_per_request for s in found])
    each = memory_bytes(problem, 0, layers) / layers
    cap = np.array([float(s.memory_bytes // each) if each else float(layers) for s in found])
    if cap.sum() < layers:
        return
    low, high = 0.0, float(layers / speed.min())
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (low, middle) if np.minimum(cap, middle * speed).sum() >= layers else (middle, high)
    share = np.cumsum(np.minimum(cap, high * speed)[(order := np.argsort(-speed, kind="stable"))])
    bounds = [0, *(int(min(layers, round(x))) for x in share)]
    bounds[-1] = layers
    if made := pipeline_from([(found[c], bounds[k], bounds[k + 1]) for k, c in enumerate(order)], problem):
        yield made


RULES: tuple[Callable[[Problem], Iterator[Pipeline]], ...] = (greedy, even_split, memory_proportional, water_filling)


def heuristic_chains(problem: Problem) -> Iterator[Pipeline]:
    """Chains by all rules. They know memory alone: which of them are valid, the judge says."""
    for rule in RULES:
        yield from rule(problem)
