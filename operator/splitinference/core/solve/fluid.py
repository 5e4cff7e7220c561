"""What all places could do together if work were a fluid: a bound for rates whatever the cuts, paths and replicas.

A place that holds [a, b) does w(a, b) of the model's W for each step that takes it T(a, b). So however layers are spread, all
places together pass at most sum over places of max w(a, b) / T(a, b), over W, steps per ms. True for any weights w of the layers.
"""

import numpy as np

from splitinference.core.solve.tables import Floats, Tables


def weights(tables: Tables) -> Floats:
    """Weights of the layers: their time, averaged over the places."""
    per_layer = np.diff(tables.prefill, axis=1) + np.diff(tables.decode, axis=1)
    return np.asarray((per_layer / per_layer.sum(axis=1, keepdims=True)).mean(axis=0))


def work_rates(tables: Tables) -> Floats:
    """Per class: the most of the whole model's work (weights add up to 1) that one place can do in a ms."""
    so_far = np.concatenate([[0.0], np.cumsum(weights(tables))])
    best = np.zeros(tables.count)
    for a in range(tables.layers):
        rate = (so_far[None, :] - so_far[a]) / tables.occupancy_from(a)
        best = np.maximum(best, np.where(tables.allowed_from(a), rate, 0.0).max(axis=1))
    return best


def least_step_ms(tables: Tables, most_nodes: int | None) -> float:
    """The least time between two steps that all places together can keep up; inf if there is no place."""
    rates = np.repeat(work_rates(tables), tables.multiplicity)
    if most_nodes is not None and not tables.shares_node.any():
        rates = np.sort(rates)[::-1][:most_nodes]
    total = float(rates.sum())
    return 1.0 / total if total > 0 else float("inf")
