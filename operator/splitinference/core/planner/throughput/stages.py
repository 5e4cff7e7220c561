"""Runs in stages: each stage is held by a mix of kinds of nodes, so that every stage passes the same rate.

For a rate, a dynamic programme over how many of each kind are used finds how far the model can be covered; the largest rate that
covers it is searched. Links are not looked at: the flow through what comes out is computed afterwards.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np

from splitinference.core.planner.chain.tables import Floats, Ints, Tables
from splitinference.core.planner.throughput.flows import Flows, Held

MOST_STATES = 6_000
RATE_STEPS = 14
StageOfKinds = tuple[int, int, tuple[int, ...]]
"""Layers [start, end) and how many of each kind hold them."""


def staged(flows: Flows, expired: Callable[[], bool]) -> tuple[Held, ...] | None:
    """Runs in stages of about equal rates; None if the model cannot be covered by such stages."""
    tables = flows.tables
    kinds = _kinds(flows)
    counts = [sum(int(tables.multiplicity[c]) for c in kind) for kind in kinds]
    rows = [flows.rates_from(a) for a in range(tables.layers)]
    weakest = np.stack([np.stack([row[kind].min(axis=0) for row in rows]) for kind in kinds])
    mixes = _mixes(counts)
    low, high = 0.0, float(sum(count * r.max() for count, r in zip(counts, weakest, strict=True)))
    best: tuple[Held, ...] | None = None
    value = 0.0
    for _ in range(RATE_STEPS):
        rate = (low + high) / 2.0 if low else high / 8.0 if best is None else (low + high) / 2.0
        stages = _cover(tables, weakest, mixes, counts, rate, expired=expired)
        if stages is None:
            high = rate
        else:
            low = rate
            held = _levelled(_assign(flows, kinds, stages), flows, expired)
            found = flows.value(held)
            if best is None or found > value:
                best, value = held, found
        if expired() or high - low < 1e-3 * high:
            break
    return best


def _kinds(flows: Flows) -> list[list[int]]:
    """Classes grouped into so few kinds that their counts can be enumerated; alike in what they can do and in what they may hold."""
    tables = flows.tables
    rows = [flows.rates_from(a) for a in range(tables.layers)]
    power = np.max([row.max(axis=1) for row in rows], axis=0)
    may = np.array([tables.bad[c].tobytes() != bytes(tables.bad[c].nbytes) for c in range(tables.count)], dtype=np.int64)
    order = [int(c) for c in np.lexsort((np.arange(tables.count), -tables.free, -power, may))]
    kinds = [[c] for c in order]
    while math.prod(1 + sum(int(tables.multiplicity[c]) for c in kind) for kind in kinds) > MOST_STATES and len(kinds) > 1:
        closeness = [abs(math.log((power[k[-1]] + 1e-12) / (power[n[0]] + 1e-12))) + 1e-3 * (len(k) + len(n))
                     + (1e3 if may[k[-1]] != may[n[0]] else 0.0) for k, n in pairwise(kinds)]  # fmt: skip
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


def _cover(
    tables: Tables, rates: Floats, mixes: list[tuple[int, ...]], counts: list[int], rate: float, *, expired: Callable[[], bool]
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
        if state % 256 == 0 and expired():
            return None
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


def _assign(flows: Flows, kinds: list[list[int]], stages: list[StageOfKinds]) -> list[Held]:
    """Places for the stages; places left over stand where the stage is weakest that they can hold."""
    of_class: dict[int, list[int]] = {}
    for number, c in enumerate(flows.kind):
        of_class.setdefault(int(c), []).append(number)
    left = [[number for c in kind for number in of_class[c]] for kind in kinds]
    runs: list[Held] = []
    power = {(a, b): 0.0 for a, b, _ in stages}
    for a, b, mix in stages:
        for kind, number in enumerate(mix):
            for _ in range(number):
                runs.append((left[kind].pop(0), a, b))
                power[a, b] += flows.rate(runs[-1])
    most = flows.tables.problem.constraints.max_nodes
    for place in (place for kind in left for place in kind):
        if most is not None and len(runs) >= most:
            break
        able = [(a, b) for a, b in sorted(power, key=lambda s: power[s]) if flows.rate((place, a, b)) > 0]
        if able:
            runs.append((place, *able[0]))
            power[able[0]] += flows.rate(runs[-1])
    return runs


def _levelled(runs: list[Held], flows: Flows, expired: Callable[[], bool]) -> tuple[Held, ...]:
    """Move single places to other runs, and shift cuts, while the weakest stage gains."""

    def weakest(now: list[Held]) -> float:
        power: dict[tuple[int, int], float] = {}
        for run in now:
            rate = flows.rate(run)
            power[run[1:]] = power.get(run[1:], 0.0) + (rate or -math.inf)
        return min(power.values())

    value, again = weakest(runs), True
    stages = len({run[1:] for run in runs})
    while again:
        again = False
        for number, other in enumerate(_neighbours(runs)):
            if number % 256 == 0 and expired():
                return tuple(runs)
            found = weakest(other)
            if found > value * (1 + 1e-9) and len({run[1:] for run in other}) == stages:
                runs, value, again = other, found, True
                break
    return tuple(runs)


def _neighbours(runs: list[Held]) -> Iterator[list[Held]]:
    stages = sorted({run[1:] for run in runs})
    for number, (place, a, b) in enumerate(runs):
        for stage in stages:
            if stage != (a, b):
                yield [*runs[:number], (place, *stage), *runs[number + 1 :]]
    for (a, b), (_, d) in pairwise(stages):
        for shift in (-2, -1, 1, 2):
            if a < b + shift < d:
                yield [(p, x, b + shift) if (x, y) == (a, b) else (p, b + shift, y) if (x, y) == (b, d) else (p, x, y) for p, x, y in runs]
