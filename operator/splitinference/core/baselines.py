"""Other people's ways to place layers, in our terms: what the planner is measured against. Each gives a plan, or None if it has none.

They see the same problem and are judged by the same judge; where a method's answer breaks a constraint it does not know, that
counts as none. What each stands for is said where it is defined; papers are named in docs/reference/planner-benchmark.md.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from splitinference.core.cost import violations
from splitinference.core.cost.eligible import unusable
from splitinference.core.cost.site import Site, sites
from splitinference.core.cost.stage import memory_bytes, stage_cost
from splitinference.core.plan import Pipeline, Plan, Segment
from splitinference.core.problem import Problem
from splitinference.core.solve.columns import pipeline_of
from splitinference.core.solve.criterion import Arrays, hop_occupancy
from splitinference.core.solve.relaxed import complete, path
from splitinference.core.solve.tables import Tables
from splitinference.core.solve.task import task_of

SUBSET_NODES = 6
"""EdgeShard's second programme is exponential in the nodes: it gets the so many fastest."""


def places(problem: Problem) -> list[Site]:
    """All usable places, in the snapshot's order."""
    return [site for node in problem.snapshot.nodes if not unusable(node, problem) for site in sites(node)]


def plan_from(cuts: Sequence[tuple[Site, int, int]], problem: Problem) -> Plan | None:
    """The plan of runs in order, if valid; empty runs are left out."""
    segments = tuple(Segment(start=a, end=b, node=s.node.name, processor=s.processor) for s, a, b in cuts if b > a)
    if not segments or segments[-1].end != len(problem.profile.layers):
        return None
    plan = Plan(model_digest=problem.profile.digest, pipelines=(Pipeline(segments=segments),))
    return None if violations(plan, problem) else plan


def even_split(problem: Problem) -> Plan | None:
    """The same number of layers on each of the fewest nodes that hold that, nodes with most memory first."""
    ordered, layers = sorted(places(problem), key=lambda s: -s.memory_bytes), len(problem.profile.layers)
    for count in range(1, min(layers, len(ordered)) + 1):
        bounds = [round(k * layers / count) for k in range(count + 1)]
        plan = plan_from([(ordered[k], bounds[k], bounds[k + 1]) for k in range(count)], problem)
        if plan is not None:
            return plan
    return None


def memory_proportional(problem: Problem) -> Plan | None:
    """Layers in proportion to memory over all nodes, most memory first, as exo's ring has them."""
    layers = len(problem.profile.layers)
    ordered = sorted(places(problem), key=lambda s: -s.memory_bytes)[:layers]
    total, so_far, cuts, start = sum(s.memory_bytes for s in ordered), 0, [], 0
    for site in ordered:
        so_far += site.memory_bytes
        end = round(layers * so_far / total)
        cuts.append((site, start, end))
        start = end
    return plan_from(cuts, problem)


def greedy(problem: Problem) -> Plan | None:
    """The fastest node for the whole model takes as many layers as fit, then the next fastest."""
    layers = len(problem.profile.layers)
    ordered = sorted(places(problem), key=lambda s: stage_cost(problem, s, 0, layers).busy_ms_per_request)
    cuts, start = [], 0
    for site in ordered:
        end = start
        while end < layers and memory_bytes(problem, start, end + 1) <= site.memory_bytes:
            end += 1
        if end > start:
            cuts.append((site, start, end))
            start = end
    return plan_from(cuts, problem)


def water_filling(problem: Problem) -> Plan | None:
    """Layers in proportion to speed, up to what fits (Parallax): sum of min(cap, lambda * speed) = layers; fastest first."""
    layers = len(problem.profile.layers)
    found = places(problem)
    speed = np.array([1.0 / stage_cost(problem, s, 0, layers).busy_ms_per_request for s in found])
    each = memory_bytes(problem, 0, layers) / layers
    cap = np.array([float(s.memory_bytes // each) for s in found])
    if cap.sum() < layers:
        return None
    low, high = 0.0, float(layers / speed.min())
    for _ in range(80):
        middle = (low + high) / 2.0
        low, high = (low, middle) if np.minimum(cap, middle * speed).sum() >= layers else (middle, high)
    share = np.cumsum(np.minimum(cap, high * speed)[(order := np.argsort(-speed, kind="stable"))])
    bounds = [0, *(int(min(layers, round(x))) for x in share)]
    bounds[-1] = layers
    return plan_from([(found[c], bounds[k], bounds[k + 1]) for k, c in enumerate(order)], problem)


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
    pipeline = pipeline_of(tables, steps)
    plan = Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))
    return None if violations(plan, problem) else plan


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
    found = sorted(places(problem), key=lambda s: stage_cost(problem, s, 0, layers).busy_ms_per_request)[:SUBSET_NODES]
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
    found = sorted(places(problem), key=lambda s: stage_cost(problem, s, 0, layers).busy_ms_per_request)[: 2 * layers]
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
    "even split": even_split,
    "memory-proportional": memory_proportional,
    "greedy": greedy,
    "water-filling": water_filling,
    "EdgeShard latency": edgeshard_latency,
    "EdgeShard throughput": edgeshard_throughput,
    "PipeDream": pipedream,
}
"""Baselines that give one chain, for the latency and bottleneck goals."""
