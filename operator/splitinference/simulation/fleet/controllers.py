"""Who decides how many pipelines of which kind run: a static peak, an HPA, three levels as DynamoLLM has them, and ours."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from splitinference.core.decide.scaling import Load, ScalingState, followed, forecast
from splitinference.simulation.fleet.kinds import Kind, Slo

Counts = tuple[int, ...]
"""Pipelines of each kind."""
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
DOWN_S = 300.0
TARGET = 0.8


@dataclass(frozen=True)
class Seen:
    """What a controller knows at `now_s`: requests per second of the last minute, their mean lengths, and how many wait."""

    now_s: float
    rate: float
    prompt_tokens: float
    output_tokens: float
    waiting: float


@dataclass(frozen=True)
class Fleet:
    """All kinds, the SLO, and the load's peak over a minute, which only the static policy is told."""

    kinds: tuple[Kind, ...]
    slo: Slo
    peak: Seen

    def carries(self, seen: Seen, low_clock: bool = False) -> list[float]:
        """Requests per second that a pipeline of each kind carries."""
        return [kind.carries(seen.prompt_tokens, seen.output_tokens, self.slo, low_clock) for kind in self.kinds]

    def fastest(self, rate: float, carries: Sequence[float]) -> Counts:
        """Pipelines that carry `rate`, the fastest kinds first: who does not look at prices or power takes those."""
        counts = []
        for kind, each in zip(self.kinds, carries, strict=True):
            taken = min(kind.count, math.ceil(rate / each - 1e-9)) if each > 0 and rate > 0 else 0
            counts.append(taken)
            rate -= taken * each
        return self.at_least_one(counts)

    @cached_property
    def _grid(self) -> NDArray[np.int64]:
        """All counts of all kinds, one row each; kinds that carry nothing at the peak's lengths are left out."""
        carries = self.carries(self.peak)
        ranges = [
            np.arange(kind.count + 1) if c > 0.02 * max(carries) else np.arange(1) for kind, c in zip(self.kinds, carries, strict=True)
        ]
        return np.stack([axis.ravel() for axis in np.meshgrid(*ranges, indexing="ij")], axis=1)

    def cheapest(self, rate: float, carries: Sequence[float], price: Sequence[float], least: Counts | None = None) -> Counts:
        """Pipelines that carry `rate` for the least price, no fewer of any kind than `least`; all that there are where none do."""
        grid = self._grid
        enough = grid @ np.array(carries) >= rate * (1 - 1e-9)
        if least is not None:
            enough &= (grid >= np.array(least)).all(axis=1)
        if not enough.any():
            return tuple(int(n) for n in grid[np.argmax(grid @ np.array(carries))])
        cost = np.where(enough, grid @ np.array(price), np.inf)
        return self.at_least_one(tuple(int(n) for n in grid[np.argmin(cost)]))

    def at_least_one(self, counts: Sequence[int]) -> Counts:
        """The same, with the cheapest kind once where there is none."""
        if any(counts):
            return tuple(counts)
        carries = self.carries(self.peak)
        first = min((k for k in range(len(self.kinds)) if carries[k] > 0), key=lambda k: self.kinds[k].cost)
        return tuple(int(k == first) for k in range(len(self.kinds)))


class Controller(Protocol):
    """Decides at each look. `keeps_prefixes`: requests go where their beginning is held."""

    name: str
    keeps_prefixes: bool

    def look(self, fleet: Fleet, seen: Seen, now: Counts) -> tuple[Counts, bool]:
        """Pipelines of each kind, and whether their clocks are low."""
        ...


@dataclass
class StaticPeak:
    """Enough for the peak, all the time."""

    name: str = "static peak"
    keeps_prefixes: bool = False

    def look(self, fleet: Fleet, seen: Seen, now: Counts) -> tuple[Counts, bool]:
        """Always the same."""
        return fleet.fastest(fleet.peak.rate / TARGET, fleet.carries(fleet.peak)), False


@dataclass
class Hpa:
    """A HorizontalPodAutoscaler on requests per second: reacts to the present load, and goes down to the most of five minutes."""

    name: str = "HPA-like"
    keeps_prefixes: bool = False
    _wanted: deque[tuple[float, float]] = field(default_factory=deque)

    def look(self, fleet: Fleet, seen: Seen, now: Counts) -> tuple[Counts, bool]:
        """The largest need of the last five minutes."""
        rate = _most_of(self._wanted, seen.now_s, seen.rate / TARGET, DOWN_S)
        return fleet.fastest(rate, fleet.carries(seen)), False


@dataclass
class ThreeLevels:
    """As DynamoLLM: every 30 minutes the number of instances by the peak of the last half hour, every 5 minutes their kind for the least
    energy at the load of the last 5 minutes, at each look the clocks. A simplification: one pool, and no prediction of lengths."""

    name: str = "DynamoLLM-like"
    keeps_prefixes: bool = False
    _half_hour: deque[tuple[float, float]] = field(default_factory=deque)
    _five: deque[tuple[float, float]] = field(default_factory=deque)
    _decided_s: float = -math.inf
    _mixed_s: float = -math.inf
    _most: float = 0.0

    def look(self, fleet: Fleet, seen: Seen, now: Counts) -> tuple[Counts, bool]:
        """Each level at its own pace; load beyond what was decided is an emergency, which the next look answers."""
        peak = _most_of(self._half_hour, seen.now_s, seen.rate, 1800.0)
        lately = _most_of(self._five, seen.now_s, seen.rate, 300.0)
        carries = fleet.carries(seen)
        held = math.fsum(n * c for n, c in zip(now, carries, strict=True))
        emergency = seen.rate > 0.95 * held or seen.waiting > 0
        if seen.now_s - self._decided_s >= 1800.0 or emergency:
            self._decided_s, self._most = seen.now_s, peak / TARGET
        if seen.now_s - self._mixed_s >= 300.0 or emergency:
            self._mixed_s = seen.now_s
            now = fleet.cheapest(max(lately / TARGET, 0.5 * self._most), carries, [kind.busy_watts for kind in fleet.kinds])
        slow = math.fsum(n * c for n, c in zip(now, fleet.carries(seen, low_clock=True), strict=True))
        return now, seen.rate < TARGET * slow and not seen.waiting


@dataclass
class Ours:
    """The operator's forecast (`core/decide/scaling.py`) for the time until a pipeline serves, and the cheapest pipelines that carry it
    within the SLO. `low_clocks`: with locked clocks where they do, which the operator does not set yet."""

    name: str = "ours"
    keeps_prefixes: bool = True
    low_clocks: bool = False
    target: float = TARGET
    _state: ScalingState | None = None
    _needs: deque[tuple[float, float]] = field(default_factory=deque)

    def look(self, fleet: Fleet, seen: Seen, now: Counts) -> tuple[Counts, bool]:
        """Up at once, by what is cheapest beside what serves; down to the largest need of five minutes, where that saves a tenth."""
        at = _EPOCH + timedelta(seconds=seen.now_s)
        lengths = {"prompt_tokens": seen.prompt_tokens, "output_tokens": seen.output_tokens} if seen.rate else {}
        load = Load(requests_per_s=seen.rate, waiting=round(seen.waiting), **lengths)
        if self._state is None:
            self._state = ScalingState(at=at, pipelines=1, level=seen.rate, deviation=math.sqrt(seen.rate / 60))
        self._state = followed(self._state, load, at)
        ahead = max(kind.start_s for kind in fleet.kinds)
        expected = forecast(self._state, timedelta(seconds=ahead)) + seen.waiting / 60.0
        rate = _most_of(self._needs, seen.now_s, expected / self.target, DOWN_S)
        usual = replace(
            seen,
            prompt_tokens=self._state.prompt_tokens or seen.prompt_tokens,
            output_tokens=self._state.output_tokens or seen.output_tokens,
        )
        carries, price = fleet.carries(usual), [kind.cost for kind in fleet.kinds]
        best = now
        if math.fsum(n * c for n, c in zip(now, carries, strict=True)) < rate:
            best = fleet.cheapest(rate, carries, price, least=now)
        elif _price(cheaper := fleet.cheapest(rate, carries, price), price) < 0.9 * _price(now, price):
            best = cheaper
        slow = math.fsum(n * c for n, c in zip(best, fleet.carries(usual, low_clock=True), strict=True))
        return best, self.low_clocks and expected < self.target * slow


def _price(counts: Counts, price: Sequence[float]) -> float:
    return math.fsum(n * p for n, p in zip(counts, price, strict=True))


def _most_of(window: deque[tuple[float, float]], now_s: float, value: float, span_s: float) -> float:
    """The largest value of the last `span_s` seconds, this one included."""
    while window and (window[0][0] <= now_s - span_s):
        window.popleft()
    while window and window[-1][1] <= value:
        window.pop()
    window.append((now_s, value))
    return window[0][1]


def controllers() -> tuple[Controller, ...]:
    """All of them, new."""
    return StaticPeak(), Hpa(), ThreeLevels(), Ours(), Ours(name="ours, low clocks", low_clocks=True)
