"""Simple rules for the throughput of a whole cluster (Helix' heuristics, in our terms); each gives the runs that places hold."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np

from splitinference.core.cost.flow import Run
from splitinference.core.cost.site import Site
from splitinference.core.cost.stage import memory_bytes, stage_cost
from splitinference.core.planner.columns.heuristics import places
from splitinference.core.values.problem import Problem


def _most_layers(site: Site, start: int, problem: Problem) -> int:
    end, layers = start, len(problem.profile.layers)
    while end < layers and memory_bytes(problem, start, end + 1) <= site.memory_bytes:
        end += 1
    return end


def _rate(site: Site, a: int, b: int, problem: Problem) -> float:
    return 1.0 / stage_cost(problem, site, a, b).occupancy_ms


def petals(problem: Problem) -> list[Run]:
    """Every node in turn takes as many layers as fit, from where the model is served worst (Petals)."""
    layers = len(problem.profile.layers)
    served, runs = np.zeros(layers), list[Run]()
    for site in places(problem):
        best: tuple[float, int, int] | None = None
        for start in range(layers):
            end = _most_layers(site, start, problem)
            if end > start and (best is None or served[start:end].mean() < best[0]):
                best = (float(served[start:end].mean()), start, end)
        if best is not None:
            _, start, end = best
            runs.append((site, start, end))
            served[start:end] += _rate(site, start, end, problem)
    return runs


def swarm(problem: Problem) -> list[Run]:
    """As few equal stages as the smallest node can hold; every node joins the stage that is weakest (SWARM)."""
    layers = len(problem.profile.layers)
    found = places(problem)
    for stages in range(1, layers + 1):
        bounds = [round(k * layers / stages) for k in range(stages + 1)]
        spans = list(itertools.pairwise(bounds))
        able = [s for s in found if all(memory_bytes(problem, a, b) <= s.memory_bytes for a, b in spans)]
        if len(able) < max(stages, len(found) // 2):
            continue
        power, runs = [0.0] * stages, []
        for site in able:
            weakest = min(range(stages), key=lambda k: power[k])
            a, b = spans[weakest]
            runs.append((site, a, b))
            power[weakest] += _rate(site, a, b, problem)
        return runs
    return []


def separate_pipelines(problem: Problem) -> list[Run]:
    """Nodes of one kind make pipelines of their own, each of as few equal stages as that kind can hold."""
    layers = len(problem.profile.layers)
    kinds: dict[tuple[float, float, int], list[Site]] = {}
    for site in places(problem):
        kinds.setdefault((site.node.flops_per_s, site.node.memory_bandwidth_bytes_per_s, site.memory_bytes), []).append(site)
    runs: list[Run] = []
    for members in kinds.values():
        for stages in range(1, min(layers, len(members)) + 1):
            bounds = [round(k * layers / stages) for k in range(stages + 1)]
            spans = list(itertools.pairwise(bounds))
            if all(memory_bytes(problem, a, b) <= members[0].memory_bytes for a, b in spans):
                whole = len(members) // stages * stages
                runs.extend((site, *spans[n % stages]) for n, site in enumerate(members[:whole]))
                break
    return runs


RULES: Mapping[str, Callable[[Problem], list[Run]]] = {
    "Petals-like": petals,
    "Swarm-like": swarm,
    "separate pipelines": separate_pipelines,
}
"""By name; the benchmark shows them as baselines, and no answer is worse than the best of them."""
