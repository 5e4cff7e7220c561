"""Fits a filter of mode Reuse: rows are alike where a network that tells the model's classes apart makes nearly the same of them."""

from dataclasses import replace
from typing import Any

import numpy as np

from splitinference.cli.filter.labelled import Labelled
from splitinference.cli.filter.network import fitted, units
from splitinference.cli.filter.train import Point, lower_bound
from splitinference_protocol.input_filter import ReuseFilter

_CANDIDATES = 40


def reusing(data: Labelled, hidden: int, entries: int, seed: int) -> ReuseFilter:
    """The network, with a distance of 0: only rows that it makes the same of are alike."""
    features, _, _ = fitted(data, data.classes, hidden, seed)
    return ReuseFilter(features, 0.0, entries, int(data.outputs.shape[1]))


def distance_for(made: ReuseFilter, accuracy: float, data: Labelled) -> Point | None:
    """The distance that reuses most among those whose accuracy holds with 95 % confidence on these rows; None where only none does.

    The threshold of the point is the distance.
    """
    seen = np.asarray(units(made.features, data))
    nearest = np.array([_nearest(seen, range(max(0, row - made.entries), row), row)[0] for row in range(1, data.rows)])
    found = [replayed(replace(made, distance=float(each)), data) for each in np.quantile(nearest, np.linspace(0, 1, _CANDIDATES))]
    kept = [point for point in found if point.least_accuracy >= accuracy and point.pass_rate < 1]
    return min(kept, key=lambda point: point.pass_rate) if kept else None


def replayed(made: ReuseFilter, data: Labelled) -> Point:
    """What the filter does to rows that come one after the other. Accurate is a row that runs, or that gets its own class."""
    seen, classes = np.asarray(units(made.features, data)), data.classes
    kept: list[int] = []
    reused = wrong = 0
    for row in range(data.rows):
        away, which = _nearest(seen, kept[-made.entries :], row)
        if away <= made.distance:
            reused += 1
            wrong += int(classes[which] != classes[row])
        else:
            kept.append(row)
    rows = data.rows
    return Point(made.distance, 1 - reused / rows, 1 - wrong / rows, float(lower_bound(rows, np.array(wrong))))


def _nearest(seen: Any, earlier: Any, row: int) -> tuple[float, int]:
    """Distance and row of the nearest one."""
    which = np.fromiter(earlier, dtype=np.int64)
    if not len(which):
        return np.inf, -1
    away = ((seen[which] - seen[row]) ** 2).sum(axis=1)
    place = int(away.argmin())
    return float(np.sqrt(away[place])), int(which[place])
