"""Other people's ways to place layers, in our terms: what the planner is measured against. Each gives a plan, or None if it has none.

They see the same problem and are judged by the same judge; where a method's answer breaks a constraint it does not know, that
counts as none. What each stands for is said where it is defined; papers are named in docs/reference/planner-benchmark.md.
"""

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from splitinference.core.cost import violations
from splitinference.core.cost.site import Site
from splitinference.core.cost.stage import memory_bytes, stage_cost
from splitinference.core.planner.chain.bounds.relaxed import complete, path
from splitinference.core.planner.chain.criterion import Arrays, hop_occupancy
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import task_of
from splitinference.core.planner.columns import heuristics
from splitinference.core.planner.columns.columns import pipeline_of
from splitinference.core.planner.columns.heuristics import Runs, by_speed, pipeline_from
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Problem

SUBSET_NODES = 6
"""EdgeShard's second programme is exponential in the nodes: it gets the so many fastest."""


def _judged(pipeline: Pipeline | None, problem: Problem) -> Plan | None:
    """The pipeline as a plan, if it is valid."""
    if pipeline is None:
        return None
    plan = Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))
    return None if violations(plan, problem) else plan


def plan_from(runs: Runs, problem: Problem) -> Plan | None:
    """The plan of runs in order, if it is valid."""
    return _judged(pipeline_from(runs, problem), problem)


def _first(rule: Callable[[Problem], Iterator[Pipeline]]) -> Callable[[Problem], Plan | None]:
    """A heuristic's first valid plan."""

    def plan(problem: Problem) -> Plan | None:
        return next((made for pipeline in rule(problem) if (made := _judged(pipeline, problem))), None)

    return plan


def edgeshard_latency(problem: Problem) -> Plan | None:
    """EdgeShard's first programme: best predecessor for each layer and node; it forgets which nodes were used before."""
    tables = Tables(problem)
    if not tables.count:
        return None
    task = task_of(tables)
    arrays = Arrays(tables, task.objective, task.allowed)
    completion = complete(arrays)
    if not np.isfinite(completion.value):
        return None
    steps = path(arrays, completion)
    uses = np.bincount([s.place for s in steps], minlength=tables.count)
    if (uses > tables.multiplicity).any():
        return None
    return _judged(pipeline_of(tables, steps), problem)


def _stage_times(problem: Problem, found: list[Site]) -> Callable[[int, int, int], float]:
    layers = len(problem.profile.layers)
    table = np.full((len(found), layers + 1, layers + 1), np.inf)
    for n, site in enumerate(found):
        single = [stage_cost(problem, site, i, i + 1).occupancy_ms for i in range(layers)]
        overhead = site.node.stage_overhead_ms * (1.0 + problem.workload.batch / problem.workload.output_tokens)
        so_far = np.concatenate([[0.0], np.cumsum(np.array(single) - overhead)])
        for a in range(layers):
            for b in range(a + 1, layers + 1):
                if memory_bytes(problem, a, b) > site.memory_bytes:
                    break
                table[n, a, b] = so_far[b] - so_far[a] + overhead
    return lambda n, a, b: float(table[n, a, b])


def edgeshard_throughput(problem: Problem) -> Plan | None:
    """EdgeShard's second programme, over (layers, set of nodes, last node), on the fastest few nodes."""
    layers = len(problem.profile.layers)
    found = by_speed(problem)[:SUBSET_NODES]
    tables = Tables(problem)
    place = {(s.node.name, s.processor): c for c, members in enumerate(tables.members) for _, s in members}
    index = [place[s.node.name, s.processor] for s in found]
    time = _stage_times(problem, found)
    link = {tables.tensor_bytes(b): hop_occupancy(tables, b) for b in range(1, layers)}
    best: dict[tuple[int, int, int], tuple[float, tuple[tuple[int, int, int], ...]]] = {(0, 0, -1): (0.0, ())}
    for b in range(layers):
        for (at, used, last), (value, way) in [item for item in best.items() if item[0][0] == b]:
            for n in range(len(found)):
                if used >> n & 1:
                    continue
                hop = 0.0 if last < 0 else float(link[tables.tensor_bytes(at)][index[last], index[n]])
                for end in range(at + 1, layers + 1):
                    slowest = max(value, hop, time(n, at, end))
                    if not np.isfinite(slowest):
                        break
                    key = (end, used | 1 << n, n)
                    if slowest < best.get(key, (np.inf, ()))[0]:
                        best[key] = (slowest, (*way, (n, at, end)))
    done = [item for key, item in best.items() if key[0] == layers]
    if not done:
        return None
    _, way = min(done, key=lambda item: item[0])
    return plan_from([(found[n], a, b) for n, a, b in way], problem)


def pipedream(problem: Problem) -> Plan | None:
    """PipeDream's programme on nodes in a fixed order, fastest first: least slowest stage, each node in turn taking a run or none."""
    layers = len(problem.profile.layers)
    found = by_speed(problem)[: 2 * layers]
    time = _stage_times(problem, found)
    value = [0.0, *([float("inf")] * layers)]
    way: list[tuple[tuple[int, int, int], ...]] = [() for _ in range(layers + 1)]
    for n in range(len(found)):
        for b in range(layers, 0, -1):
            for a in range(b - 1, -1, -1):
                slowest = max(value[a], time(n, a, b))
                if not np.isfinite(time(n, a, b)):
                    break
                if slowest < value[b]:
                    value[b], way[b] = slowest, (*way[a], (n, a, b))
    return plan_from([(found[n], a, b) for n, a, b in way[layers]], problem) if way[layers] else None


CHAINS: Mapping[str, Callable[[Problem], Plan | None]] = {
    "even split": _first(heuristics.even_split),
    "memory-proportional": _first(heuristics.memory_proportional),
    "greedy": _first(heuristics.greedy),
    "water-filling": _first(heuristics.water_filling),
    "EdgeShard latency": edgeshard_latency,
    "EdgeShard throughput": edgeshard_throughput,
    "PipeDream": pipedream,
}
"""Baselines that give one chain, for the latency and bottleneck goals."""
