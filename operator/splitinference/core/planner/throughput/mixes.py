"""Runs by a linear programme: how many places of each group hold which run, so that the flow through the boundaries is largest.

Places are grouped by what they can do. In the programme a group may be spread over runs in any parts, and links are not looked at; so
its value is what the groups could do at best. Whole places are then dealt out run by run, largest remainders first, and the places
left over go where the flow is weakest. The flow through what comes out, links included, is computed afterwards.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from ortools.linear_solver.python import model_builder

from splitinference.core.planner.chain.tables import Floats, Ints
from splitinference.core.planner.throughput.flows import Flows, Held

MOST_GROUPS = 24
SPACINGS, FEW_SPACINGS = (8, 10, 12, 16, 20, 24, 32), (16, 32)
"""Runs start and end at so many boundaries, evenly spread. Whole places fit some spacings better; of many places all about as well."""
FEW_PLACES = 256
SOLVE_SECONDS = 3.0
Term = tuple[model_builder.Variable, float]


def mixed(flows: Flows, expired: Callable[[], bool], only: Sequence[int] | None = None) -> list[tuple[Held, ...]]:
    """Runs for the places (those of the classes `only`, if given), for a few spacings of the boundaries; the most promising last."""
    result: list[tuple[Held, ...]] = []
    layers = flows.tables.layers
    classes = list(range(flows.tables.count)) if only is None else list(only)
    groups = _groups(flows, classes)
    for stages in SPACINGS if len(flows.places) <= FEW_PLACES else FEW_SPACINGS:
        grid = np.unique(np.linspace(0, layers, min(stages, layers) + 1).round().astype(int))
        grid = np.array([b for b in grid if flows.tables.points[b] or b in (0, layers)])
        parts = _programme(flows, groups, grid)
        if parts is not None:
            result.append(_dealt(flows, groups, grid, parts))
        if expired() or stages >= layers:
            break
    return result


def _groups(flows: Flows, classes: list[int]) -> list[list[int]]:
    """Classes of about equal power and memory, in at most MOST_GROUPS groups; what may not hold the same layers is never together."""
    tables = flows.tables
    power = np.max([flows.rates_from(a).max(axis=1) for a in range(0, tables.layers, max(1, tables.layers // 8))], axis=0)
    by_rules: dict[bytes, list[int]] = defaultdict(list)
    for c in classes:
        by_rules[tables.bad[c].tobytes()].append(c)
    most = max(1, MOST_GROUPS // len(by_rules))
    result = []
    for members in by_rules.values():
        members.sort(key=lambda c: (int(tables.free[c]), float(power[c])))
        sizes: dict[int, list[int]] = defaultdict(list)
        for c in members:
            sizes[int(tables.free[c])].append(c)
        if len(sizes) <= most:
            each = max(1, most // len(sizes))
            parts = [list(p) for same in sizes.values() for p in np.array_split(np.array(same), min(each, len(same)))]
        else:
            parts = [list(p) for p in np.array_split(np.array(members), min(most, len(members)))]
        result.extend([[int(c) for c in part] for part in parts])
    return result


def _weakest(flows: Flows, groups: list[list[int]], grid: Ints) -> Floats:
    """Group by start by end (positions in the grid): steps per ms of the mean member that all of the group can hold; 0 where one cannot."""
    found = np.zeros((len(groups), len(grid), len(grid)))
    for i, a in enumerate(grid[:-1]):
        rates = flows.rates_from(int(a))[:, grid]
        for g, members in enumerate(groups):
            own = rates[members]
            found[g, i] = np.where(own.min(axis=0) > 0, own.mean(axis=0), 0.0)
    return found


def _programme(flows: Flows, groups: list[list[int]], grid: Ints) -> dict[tuple[int, int, int], float] | None:
    """(group, start, end) and how many of its places hold that run, in parts; None where nothing covers the model."""
    rates = _weakest(flows, groups, grid)
    model = model_builder.Model()
    size = [sum(int(flows.tables.multiplicity[c]) for c in members) for members in groups]
    into: dict[int, list[Term]] = defaultdict(list)
    out: dict[int, list[Term]] = defaultdict(list)
    parts: dict[tuple[int, int, int], model_builder.Variable] = {}
    of_group: dict[int, list[Term]] = defaultdict(list)
    scale = float(rates.max())
    if scale <= 0:
        return None
    for g, i, j in zip(*np.nonzero(rates), strict=True):
        held = model.new_num_var(0.0, float(size[g]), "")
        parts[int(g), int(i), int(j)] = held
        rate = float(rates[g, i, j]) / scale
        of_group[int(g)].append((held, 1.0))
        out[int(i)].append((held, rate))
        into[int(j)].append((held, rate))
    for g, terms in of_group.items():
        model.add(_sum(terms) <= size[g])
    for at in range(1, len(grid) - 1):
        if into[at] or out[at]:
            model.add(_sum([*into[at], *((held, -rate) for held, rate in out[at])]) == 0.0)
    most = flows.tables.problem.constraints.max_nodes
    if most is not None:
        model.add(_sum([(held, 1.0) for held in parts.values()]) <= most)
    if not out[0]:
        return None
    model.maximize(_sum(out[0]))
    solver = model_builder.Solver("glop")
    solver.set_time_limit_in_seconds(SOLVE_SECONDS)
    if solver.solve(model) != model_builder.SolveStatus.OPTIMAL or solver.objective_value <= 1e-9:
        return None
    return {key: value for key, held in parts.items() if (value := solver.value(held)) > 1e-7}


def _sum(terms: Sequence[Term]) -> model_builder.LinearExpr:
    return model_builder.LinearExpr.weighted_sum([held for held, _ in terms], [rate for _, rate in terms])


def _dealt(flows: Flows, groups: list[list[int]], grid: Ints, parts: dict[tuple[int, int, int], float]) -> tuple[Held, ...]:
    """Whole places for the parts; those left over, one after the other, where the flow through the boundaries is weakest."""
    of_class: dict[int, list[int]] = defaultdict(list)
    for number, c in enumerate(flows.kind):
        of_class[int(c)].append(number)
    runs: list[Held] = []
    left: list[int] = []
    covered = np.zeros(flows.tables.layers)

    def take(place: int, a: int, b: int) -> None:
        runs.append((place, a, b))
        covered[a:b] += flows.rate(runs[-1])

    for g, members in enumerate(groups):
        # Fast and slow members alternate, so that each run gets about the group's mean.
        places = _alternating([p for c in members for p in of_class[c]])
        mine = sorted((key for key in parts if key[0] == g), key=lambda key: (-(parts[key] % 1.0), key))
        whole = {key: math.floor(parts[key] + 1e-6) for key in mine}
        for key in sorted(mine, key=lambda key: key[1:]):
            a, b = int(grid[key[1]]), int(grid[key[2]])
            for _ in range(whole[key]):
                if places:
                    take(places.pop(0), a, b)
        left.extend(places)
    spans = sorted({(int(grid[i]), int(grid[j])) for _, i, j in parts})
    most = flows.tables.problem.constraints.max_nodes
    for place in sorted(left, key=lambda p: (-int(flows.tables.free[flows.kind[p]]), p)):
        if most is not None and len(runs) >= most:
            break
        able = [(float(covered[a:b].mean()), a, b) for a, b in spans if flows.rate((place, a, b)) > 0]
        if able:
            _, a, b = min(able)
            take(place, a, b)
    return tuple(runs)


def _alternating(places: list[int]) -> list[int]:
    """Places in order of their speed, taken from both ends in turn."""
    half = (len(places) + 1) // 2
    front, back = places[:half], places[half:][::-1]
    return [p for pair in zip(front, back, strict=False) for p in pair] + front[len(back) :]
