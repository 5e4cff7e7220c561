"""Factors of nodes learned while a plan serves: one measurement a window, in small steps, so that one odd minute moves nothing.

Averages are taken of logarithms: twice as slow and twice as quick cancel out. A node that was never measured counts as the measured ones do
in the median. Otherwise an error that all nodes share would make every node look better than those that serve, and the plan would wander.
The median, and not the mean, since an error may also be one of certain layers: after a move that followed it in vain, most of what is
measured says so.
"""

import math
from collections.abc import Mapping, Set
from datetime import datetime, timedelta
from statistics import median

from pydantic import Field

from splitinference.core.values.cluster import Node, Snapshot
from splitinference.core.values.value import Value

LEAST, MOST = 0.05, 20.0
"""Factors are kept within these: beyond them a node's figures are wrong, and no factor mends that."""
ENOUGH_WINDOWS = 3
"""A factor counts from so many measurements on."""
WEIGHT = 0.2
"""Weight of a new measurement, once there are five: after a lasting change, nine tenths of it are learned in ten windows."""
LARGEST_STEP = math.log(2.0)
"""A measurement further from a factor that counts is taken as this far (twice or half), so that an outlier moves it by 15 % at most."""
_NINE_OF_TEN = 1.645 * math.sqrt(math.pi / 2)
"""Where nine tenths of a normal distribution end, over its mean deviation."""
FORGOTTEN = timedelta(hours=24)
"""What a node was like a day ago says nothing any more."""


class Factor(Value):
    """Measured over predicted time of one phase of one node, or a device of it. `windows`: measurements behind it; `time`: of the last."""

    factor: float = Field(gt=0)
    windows: int = Field(ge=1)
    time: datetime
    deviation: float | None = Field(
        default=None, ge=0, description="mean distance of a measurement from the factor before it, in logarithms; null: only one"
    )

    @property
    def spread(self) -> float | None:
        """Nine of ten measurements are within this share of the factor, if they deviate as normal figures do: exp(2.06 × deviation) − 1."""
        return None if self.deviation is None else round(math.expm1(_NINE_OF_TEN * self.deviation), 3)


def learn(known: Mapping[str, Factor], measured: Mapping[str, float], now: datetime, shared: Set[str] = frozenset()) -> dict[str, Factor]:
    """What is known with one more measurement of these nodes: measured over *uncalibrated* predicted time of each, above 0.

    Measurements that are no finite number above 0 are left out; what is forgotten is gone. `shared`: nodes that others used in earnest
    meanwhile. There a step that is short enough gets more than others leave in the mean, which a longer one would not: the node is at least
    so slow, so such a measurement counts only where it says slower than what the node counts as.
    """
    result = {node: factor for node, factor in known.items() if abs(now - factor.time) < FORGOTTEN}
    usual = _usual(counting(known, now))
    for node, ratio in sorted(measured.items()):
        if not (math.isfinite(ratio) and ratio > 0):
            continue
        bounded, old = min(MOST, max(LEAST, ratio)), result.get(node)
        if node in shared and bounded <= (old.factor if old else usual):
            continue
        if old is None:
            result[node] = Factor(factor=round(bounded, 4), windows=1, time=now)
            continue
        step = math.log(bounded / old.factor)
        if old.windows >= ENOUGH_WINDOWS:
            step = min(LARGEST_STEP, max(-LARGEST_STEP, step))
        weight = max(WEIGHT, 1.0 / (old.windows + 1))
        factor = min(MOST, max(LEAST, old.factor * math.exp(weight * step)))
        deviation = abs(step) if old.deviation is None else old.deviation + weight * (abs(step) - old.deviation)
        result[node] = Factor(factor=round(factor, 4), windows=old.windows + 1, time=now, deviation=round(deviation, 4))
    return result


def counting(known: Mapping[str, Factor], now: datetime) -> dict[str, float]:
    """The factors that count: measured often enough and not too long ago."""
    return {node: f.factor for node, f in sorted(known.items()) if f.windows >= ENOUGH_WINDOWS and abs(now - f.time) < FORGOTTEN}


def calibrated(snapshot: Snapshot, known: Mapping[str, Factor], now: datetime, prefill: Mapping[str, Factor] | None = None) -> Snapshot:
    """The snapshot with each node's factors and their spreads; of nodes without one, the median of the others'. The same while there is
    none. `known`: of decode steps, `prefill`: of prefills. Until a prefill was measured on any node, decode's factors count for both: a
    node that is slower than its label says is slower in both."""
    prefill = prefill if counting(prefill or {}, now) else known
    for names, learned in (("calibration", known), ("prefill_calibration", prefill or {})):
        factors = counting(learned, now)
        if not factors:
            continue
        usual = _usual(factors)
        spreads = {node: learned[node].spread for node in factors}
        nodes = tuple(
            _with_devices(node, names, factors).model_copy(
                update={names: factors.get(node.name, usual), f"{names}_spread": spreads.get(node.name)}
            )
            for node in snapshot.nodes
        )
        snapshot = snapshot.model_copy(update={"nodes": nodes})
    return snapshot


def _with_devices(node: Node, name: str, factors: Mapping[str, float]) -> Node:
    """The node with the factors of its devices. What CPUs are off by says nothing of a device, so one that was never measured keeps 1."""
    if not any(f"{node.name}/{place.name}" in factors for place in node.processors if place.resource):
        return node
    places = tuple(
        place.model_copy(update={name: factors.get(f"{node.name}/{place.name}", 1.0)}) if place.resource else place
        for place in node.processors
    )
    return node.model_copy(update={"processors": places})


def _usual(factors: Mapping[str, float]) -> float:
    """What a node that was never measured counts as: the median, in logarithms; 1 while nothing was measured. A node's name has no slash,
    and a device's place has."""
    found = [math.log(factor) for place, factor in factors.items() if "/" not in place]
    return round(math.exp(median(found)), 4) if found else 1.0
