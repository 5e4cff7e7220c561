"""What all places could do together if work were a fluid: a bound for rates whatever the cuts, paths, pipelines and replicas.

A place that holds [a, b) does w(a, b) of the model's W for each step that takes it T(a, b). So however layers are spread, all
places together pass at most sum over places of max w(a, b) / T(a, b), over W, steps per ms. True for any weights w of the layers;
subgradient steps look for the weights that bound best.
"""

import math

import numpy as np

from splitinference.core.planner.chain.tables import Floats, Ints, Tables

BOUND_STEPS = 60
MOST_GROUPS = 48
"""More classes are grouped by what they can do: a little weaker a bound, in a fraction of the memory."""


def _weights(tables: Tables) -> Floats:
    """Weights of the layers: their time, averaged over the places."""
    per_layer = np.diff(tables.prefill, axis=1) + np.diff(tables.decode, axis=1)
    return np.asarray((per_layer / per_layer.sum(axis=1, keepdims=True)).mean(axis=0))


def least_step_ms(tables: Tables) -> float:
    """The least time between two steps that all places together can keep up; inf if there is no place."""
    rate = most_steps_per_ms(tables) if tables.count else 0.0
    return 1.0 / rate if rate > 0 else math.inf


def step_rates(tables: Tables) -> Floats:
    """Class by start by end: steps per ms; 0 where a run may not be."""
    return np.stack([np.where(tables.allowed_from(a), 1.0 / tables.occupancy_from(a), 0.0) for a in range(tables.layers)], axis=1)


def most_steps_per_ms(tables: Tables) -> float:
    """Steps per ms that no plan exceeds: for any weights of the layers, the places' best weighted rates over the sum of weights."""
    rates, members = _grouped(tables)
    layers = tables.layers
    weight, best, pace = _weights(tables), math.inf, 0.3
    layer = np.arange(layers)
    for _ in range(BOUND_STEPS):
        so_far = np.concatenate([[0.0], np.cumsum(weight)])
        value = rates * np.maximum(so_far[None, None, :] - so_far[None, :layers, None], 0.0)
        flat = value.reshape(len(members), -1)
        at = flat.argmax(axis=1)
        total = _of_the_best(tables, members, flat.max(axis=1))
        if total < best * (1 - 1e-6):
            best = min(best, total)
        else:
            pace *= 0.85
        start, end = np.divmod(at, layers + 1)
        covers = (layer[None, :] >= start[:, None]) & (layer[None, :] < end[:, None])
        gain = (members * rates[np.arange(len(members)), start, end]) @ covers
        weight = weight * np.exp(-pace * (gain / max(total, 1e-300) - 1.0))
        weight = weight / weight.sum()
    return best


def _grouped(tables: Tables) -> tuple[Floats, Ints]:
    """Rates of groups of classes, and how many places each group has; each group's rates are the best of its classes: still a bound."""
    if tables.count <= MOST_GROUPS:
        return step_rates(tables), tables.multiplicity
    power = np.max([np.where(tables.allowed_from(a), 1.0 / tables.occupancy_from(a), 0.0).max(axis=1)
                    for a in range(0, tables.layers, max(1, tables.layers // 4))], axis=0)  # fmt: skip
    order = np.lexsort((power, tables.free))
    starts = np.linspace(0, tables.count, MOST_GROUPS + 1).astype(int)[:-1]
    rows = []
    for a in range(tables.layers):
        found = np.where(tables.allowed_from(a), 1.0 / tables.occupancy_from(a), 0.0)
        rows.append(np.maximum.reduceat(found[order], starts, axis=0))
    return np.stack(rows, axis=1), np.add.reduceat(tables.multiplicity[order], starts)


def _of_the_best(tables: Tables, members: Ints, rates: Floats) -> float:
    """What places add up to, each at its rate; of so many nodes as may be used, the best."""
    most = tables.problem.constraints.max_nodes
    if most is None or tables.shares_node.any():
        return float(members @ rates)
    return float(np.sort(np.repeat(rates, members))[::-1][:most].sum())
