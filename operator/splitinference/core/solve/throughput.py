"""Tokens per second of all nodes together: which run of layers each holds, so that the flow through them is largest.

Small problems are enumerated. Large ones are planned in stages, each held by a mix of kinds of nodes: for a rate, a dynamic
programme over how many of each kind are used finds how far the model can be covered; the largest rate that covers it is searched.
The bound is what all places could do if work were a fluid, with weights of the layers improved by subgradient steps.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np

from splitinference.core.cost import objective_value
from splitinference.core.cost.flow import Run, flow_over
from splitinference.core.cost.site import Site
from splitinference.core.plan import Pipeline, Plan, Segment
from splitinference.core.problem import Problem
from splitinference.core.solve.fluid import most_steps_per_ms, step_rates
from splitinference.core.solve.tables import Floats, Ints, Tables

MOST_ENUMERATED = 3_000
MOST_STATES = 6_000
RATE_STEPS = 14


def most_throughput(problem: Problem, known: Plan | None, expired: Callable[[], bool]) -> tuple[Plan | None, float] | None:
    """The plan of most tokens per second and an upper bound; None if nothing can hold the whole model."""
    tables = Tables(problem)
    if not tables.count:
        return None
    scale = 1e3 * problem.workload.batch
    exact = _enumerated(tables, problem)
    if exact is not None:
        if exact.rate <= 0:
            return None
        return _plan(exact.runs, problem), exact.rate
    bound = scale * most_steps_per_ms(tables)
    best = _staged(tables, problem, expired)
    if best is None:
        return (known, bound) if known else (None, bound)
    plan = _plan(best.runs, problem)
    if known is not None and objective_value(known, problem) >= best.rate * (1 - 1e-9):
        plan = known
    return plan, bound


@dataclass(frozen=True)
class _Held:
    """Runs of places and the tokens per second through them."""

    runs: tuple[Run, ...]
    rate: float


def _enumerated(tables: Tables, problem: Problem) -> _Held | None:
    """The best of all assignments, where they are few enough to try; None where not."""
    choices: list[list[Run | None]] = []
    for c, members in enumerate(tables.members):
        spans = [(a, int(b)) for a in range(tables.layers) for b in np.flatnonzero(tables.allowed_from(a)[c])]
        choices.extend([[None, *((site, a, b) for a, b in spans)] for _, site in members])
    if math.prod(len(c) for c in choices) > MOST_ENUMERATED:
        return None
    best = _Held((), 0.0)
    most = problem.constraints.max_nodes
    for chosen in product(*choices):
        runs = tuple(run for run in chosen if run is not None)
        if most is not None and len({site.node.name for site, _, _ in runs}) > most:
            continue
        if runs and min(r[1] for r in runs) == 0 and max(r[2] for r in runs) == tables.layers:
            rate, _ = flow_over(runs, problem)
            if rate > best.rate * (1 + 1e-12):
                best = _Held(runs, rate)
    return best


def _kinds(tables: Tables) -> list[list[int]]:
    """Classes grouped into so few kinds that their counts can be enumerated; alike in what they can do."""
    power = step_rates(tables).max(axis=(1, 2))
    order = [int(c) for c in np.lexsort((np.arange(tables.count), -tables.free, -power))]
    kinds = [[c] for c in order]
    while math.prod(1 + sum(int(tables.multiplicity[c]) for c in kind) for kind in kinds) > MOST_STATES and len(kinds) > 1:
        closeness = [abs(math.log((power[k[-1]] + 1e-12) / (power[n[0]] + 1e-12))) + 1e-3 * (len(k) + len(n)) for k, n in pairwise(kinds)]
        at = int(np.argmin(closeness))
        kinds[at : at + 2] = [kinds[at] + kinds[at + 1]]
    return kinds


def _mixes(counts: list[int]) -> list[tuple[int, ...]]:
    """Mixes of kinds that may hold a stage together: of one kind any number, of two kinds a few."""
    result = []
    for kind, count in enumerate(counts):
        for number in range(1, count + 1):
            result.append(tuple(number if k == kind else 0 for k in range(len(counts))))
    for one in range(len(counts)):
        for other in range(one + 1, len(counts)):
            for a in range(1, min(counts[one], 4) + 1):
                for b in range(1, min(counts[other], 6) + 1):
                    result.append(tuple(a if k == one else b if k == other else 0 for k in range(len(counts))))
    return result


def _staged(tables: Tables, problem: Problem, expired: Callable[[], bool]) -> _Held | None:
    kinds = _kinds(tables)
    counts = [sum(int(tables.multiplicity[c]) for c in kind) for kind in kinds]
    rates = step_rates(tables)
    weakest = np.stack([rates[kind].min(axis=0) for kind in kinds])
    mixes = _mixes(counts)
    low, high = 0.0, float(sum(count * r.max() for count, r in zip(counts, weakest, strict=True)))
    best: _Held | None = None
    for _ in range(RATE_STEPS):
        rate = (low + high) / 2.0 if low else high / 8.0 if best is None else (low + high) / 2.0
        stages = _cover(tables, weakest, mixes, counts, rate)
        if stages is None:
            high = rate
        else:
            low = rate
            held = _improved(_assign(tables, kinds, stages), tables, problem)
            if best is None or held.rate > best.rate:
                best = held
        if expired() or high - low < 1e-3 * high:
            break
    return best


def _cover(
    tables: Tables, rates: Floats, mixes: list[tuple[int, ...]], counts: list[int], rate: float
) -> list[tuple[int, int, tuple[int, ...]]] | None:
    """Stages (start, end, how many of each kind) that pass `rate` steps per ms and cover the model; None if there are none."""
    layers = tables.layers
    reach = np.zeros((len(mixes), layers + 1), dtype=np.int64)
    ends = np.arange(layers + 1)
    for number, mix in enumerate(mixes):
        used = [k for k, n in enumerate(mix) if n]
        total = sum(mix[k] * rates[k] for k in used)
        able = np.logical_and.reduce([rates[k] > 0 for k in used]) & (total >= rate)
        reach[number, :layers] = np.where(able, ends[None, :], 0).max(axis=1)
    shape = tuple(c + 1 for c in counts)
    strides = np.array([math.prod(shape[k + 1 :]) for k in range(len(shape))])
    mix_array = np.array(mixes)
    offsets = mix_array @ strides
    far, how = np.full(math.prod(shape), -1, dtype=np.int64), np.full(math.prod(shape), -1, dtype=np.int64)
    far[0] = 0
    most = tables.problem.constraints.max_nodes or sum(counts)
    for state, digits in enumerate(product(*(range(n) for n in shape))):
        if state == 0 or sum(digits) > most:
            continue
        fits = np.flatnonzero((mix_array <= np.array(digits)).all(axis=1))
        before = far[state - offsets[fits]]
        there = np.where(before >= 0, reach[fits, before], -1)
        at = int(np.argmax(there))
        if there[at] > 0:
            far[state], how[state] = there[at], fits[at]
        if far[state] == layers:
            return _back(state, far, how, mixes, offsets)
    return None


def _back(state: int, far: Ints, how: Ints, mixes: list[tuple[int, ...]], offsets: Ints) -> list[tuple[int, int, tuple[int, ...]]]:
    stages = []
    while state:
        mix = int(how[state])
        before = int(state - offsets[mix])
        stages.append((int(far[before]), int(far[state]), mixes[mix]))
        state = before
    return stages[::-1]


def _assign(tables: Tables, kinds: list[list[int]], stages: list[tuple[int, int, tuple[int, ...]]]) -> list[Run]:
    """Places for the stages; places left over stand where the stage is weakest that they can hold."""
    left = [[(c, site) for c in kind for _, site in tables.members[c]] for kind in kinds]
    runs: list[Run] = []
    power = {(a, b): 0.0 for a, b, _ in stages}
    for a, b, mix in stages:
        for kind, number in enumerate(mix):
            for _ in range(number):
                c, site = left[kind].pop(0)
                runs.append((site, a, b))
                power[a, b] += 1.0 / float(tables.occupancy_from(a)[c, b])
    most = tables.problem.constraints.max_nodes
    for c, site in (place for kind in left for place in kind):
        if most is not None and len(runs) >= most:
            break
        able = [(a, b) for a, b in sorted(power, key=lambda s: power[s]) if tables.allowed_from(a)[c, b]]
        if able:
            a, b = able[0]
            runs.append((site, a, b))
            power[a, b] += 1.0 / float(tables.occupancy_from(a)[c, b])
    return runs


def _improved(runs: list[Run], tables: Tables, problem: Problem) -> _Held:
    """Move single places to other runs, and shift cuts, while the weakest stage gains; then the true flow."""
    place = {(site.node.name, site.processor): c for c, members in enumerate(tables.members) for _, site in members}
    rates = step_rates(tables)

    def rate(site: Site, a: int, b: int) -> float:
        return float(rates[place[site.node.name, site.processor], a, b])

    def weakest(now: list[Run]) -> float:
        power: dict[tuple[int, int], float] = {}
        for site, a, b in now:
            power[a, b] = power.get((a, b), 0.0) + rate(site, a, b) if rate(site, a, b) else -math.inf
        return min(power.values())

    value, again = weakest(runs), True
    while again:
        again = False
        for other in _neighbours(runs):
            found = weakest(other)
            if found > value * (1 + 1e-9) and len({(a, b) for _, a, b in other}) == len({(a, b) for _, a, b in runs}):
                runs, value, again = other, found, True
                break
    total, _ = flow_over(runs, problem)
    return _Held(tuple(runs), total)


def _neighbours(runs: list[Run]) -> Iterator[list[Run]]:
    stages = sorted({(a, b) for _, a, b in runs})
    for number, (site, a, b) in enumerate(runs):
        for stage in stages:
            if stage != (a, b):
                yield [*runs[:number], (site, *stage), *runs[number + 1 :]]
    for (a, b), (_, d) in pairwise(stages):
        for shift in (-2, -1, 1, 2):
            if a < b + shift < d:
                yield [(s, x, b + shift) if (x, y) == (a, b) else (s, b + shift, y) if (x, y) == (b, d) else (s, x, y) for s, x, y in runs]


def _plan(runs: tuple[Run, ...], problem: Problem) -> Plan:
    """The runs as pipelines: the flow taken apart into paths, each with its share."""
    total, edges = flow_over(runs, problem)
    left = {(a, b): flow for a, b, flow in edges}
    layers = len(problem.profile.layers)
    pipelines: list[Pipeline] = []
    for _ in range(len(edges) + 1):
        path, here = [], -1
        while here < 0 or runs[here][2] < layers:
            following = max((edge for edge in left if edge[0] == here), key=lambda e: (left[e], -e[1]), default=None)
            if following is None or left[following] <= total * 1e-9:
                break
            path.append(following)
            here = following[1]
        if here < 0 or runs[here][2] < layers:
            break
        flow = min(left[edge] for edge in path)
        for edge in path:
            left[edge] -= flow
        pipelines.append(Pipeline(segments=_segments([runs[b] for _, b in path]), share=min(1.0, flow / total)))
    return Plan(model_digest=problem.profile.digest, pipelines=tuple(pipelines))


def _segments(path: list[Run]) -> tuple[Segment, ...]:
    result, at = [], 0
    for site, start, end in path:
        held = start if start < at else None
        result.append(Segment(start=at, end=end, node=site.node.name, processor=site.processor, held_start=held))
        at = end
    return tuple(result)
