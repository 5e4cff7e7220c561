"""What clients and stages experienced in the last minute: the operator compares it with what its plan predicted."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinference_gateway.route import Pipeline
from splitinference_gateway.steps import Answer, Timing

_MOST_SAMPLES = 20_000  # bounds memory; at 300 tokens a second this is still a minute
_LATELY_SECONDS = 10.0
_TELLING_TOKENS = 16  # of shorter prompts, what any step takes is too much of the time


@dataclass(frozen=True)
class StageTimes:
    """One stage of one decode step, in milliseconds; the link is to the next stage and back. `share`: of what was computed together, 1.0
    alone; None where the segment does not say."""

    segment: str
    compute_ms: float
    queue_ms: float
    link_ms: float
    share: float | None = None

    @property
    def alone(self) -> bool:
        """Nothing was computed with it."""
        return self.share == 1.0


def stage_times(pipeline: Pipeline, answer: Answer) -> tuple[tuple[StageTimes, ...], float | None]:
    """Split a step's timings into stages, and the link between gateway and first stage (None when the first is missing)."""
    by_segment = {timing.segment: timing for timing in answer.timings}
    stages = []
    for index, hop in enumerate(pipeline):
        timing = by_segment.get(hop.segment)
        if timing is None:
            continue
        following = by_segment.get(pipeline[index + 1].segment) if index + 1 < len(pipeline) else None
        link = max(0.0, timing.hop_ms - _whole(following)) if following else 0.0
        stages.append(StageTimes(timing.segment, timing.compute_ms, timing.queue_ms, link, timing.share))
    first = by_segment.get(pipeline[0].segment)
    return tuple(stages), None if first is None else max(0.0, answer.seconds * 1000 - _whole(first))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed (nearest rank). `values` must not be empty."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


@dataclass
class _Window:
    seconds: float
    clock: Callable[[], float]
    samples: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MOST_SAMPLES))

    def add(self, value: float) -> None:
        self.samples.append((self.clock(), value))

    def values(self) -> list[float]:
        oldest = self.clock() - self.seconds
        while self.samples and self.samples[0][0] < oldest:
            self.samples.popleft()
        return [value for _, value in self.samples]

    def per_second(self) -> float:
        """Samples a second, over the window; over a shorter while where there were more than are kept."""
        count = len(self.values())
        full = count == self.samples.maxlen
        return count / (max(self.clock() - self.samples[0][0], 1e-3) if full else self.seconds)


@dataclass
class Observed:
    """Sliding windows over what happened."""

    window_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._requests = self._window()  # 1.0: failed through our fault
        self._replays = self._window()
        self._first = self._window()
        self._gaps = self._window()
        self._ingress = self._window()
        self._stages: dict[str, tuple[_Window, _Window, _Window]] = {}
        self._shares: dict[str, _Window] = {}
        self._alone: dict[str, _Window] = {}
        self._prompts: dict[str, tuple[_Window, _Window]] = {}
        self._slow_step_seconds = 0.0

    def request(self, *, failed: bool) -> None:
        """A request ended; `failed` when it was not the client's fault."""
        self._requests.add(float(failed))

    def replay(self) -> None:
        """A sequence's tokens are run again."""
        self._replays.add(1.0)

    def first_token(self, seconds: float) -> None:
        """A sequence's first token came, so long after the request."""
        self._first.add(seconds * 1000)

    def gap(self, seconds: float) -> None:
        """Time between two tokens of one sequence."""
        self._gaps.add(seconds * 1000)

    def decode_step(self, pipeline: Pipeline, answer: Answer) -> None:
        """A step of one token went through."""
        self._slow_step_seconds = max(answer.seconds, 0.99 * self._slow_step_seconds)
        stages, ingress = stage_times(pipeline, answer)
        if ingress is not None:
            self._ingress.add(ingress)
        for stage in stages:
            if stage.segment not in self._stages:
                self._stages[stage.segment] = (self._window(), self._window(), self._window())
            for window, value in zip(self._stages[stage.segment], (stage.compute_ms, stage.queue_ms, stage.link_ms), strict=True):
                window.add(value)
            if stage.share is not None:
                self._shares.setdefault(stage.segment, self._window()).add(stage.share)
            if stage.alone:
                self._alone.setdefault(stage.segment, _Window(_LATELY_SECONDS, self.clock)).add(stage.compute_ms)

    def prompt_step(self, answer: Answer, tokens: int) -> None:
        """The first `tokens` of a prompt went through, with nothing before them. Counts where they were computed alone."""
        if tokens < _TELLING_TOKENS:
            return
        for timing in answer.timings:
            if timing.share == 1.0:
                each, lengths = self._prompts.setdefault(timing.segment, (self._window(), self._window()))
                each.add(timing.compute_ms / tokens)
                lengths.add(float(tokens))

    @property
    def longest_gap_seconds(self) -> float:
        """Longest time between two tokens of one sequence in the window; 0 when there were none."""
        return max(self._gaps.values(), default=0.0) / 1000

    @property
    def slow_step_seconds(self) -> float:
        """A slow but successful decode step of late: a maximum that decays by 1 % with each step; 0 when there was none."""
        return self._slow_step_seconds

    def forget(self, segments: set[str]) -> None:
        """Keep only these segments' stages."""
        self._stages = {name: windows for name, windows in self._stages.items() if name in segments}
        self._shares = {name: window for name, window in self._shares.items() if name in segments}
        self._alone = {name: window for name, window in self._alone.items() if name in segments}
        self._prompts = {name: windows for name, windows in self._prompts.items() if name in segments}

    def as_json(self) -> dict[str, object]:
        """`observed` of the internal routes API. What was not seen is absent, never zero."""
        outcomes = self._requests.values()
        report: dict[str, object] = {
            "windowSeconds": self.window_seconds,
            "requests": len(outcomes),
            "failed": int(sum(outcomes)),
            "replays": len(self._replays.values()),
        }
        for name, window in (("timeToFirstTokenMs", self._first), ("timePerOutputTokenMs", self._gaps)):
            if values := window.values():
                report[name] = {"p50": _round(percentile(values, 0.5)), "p95": _round(percentile(values, 0.95))}
        if gaps := self._gaps.values():
            report["longestTokenGapMs"] = _round(max(gaps))
        if ingress := self._ingress.values():
            report["ingressMs"] = _round(percentile(ingress, 0.5))
        if tokens := self._first.per_second() + self._gaps.per_second():
            report["tokensPerSecond"] = _round(tokens)
        stages = {}
        for name, windows in self._stages.items():
            series = [window.values() for window in windows]
            if series[0]:
                keys = ("computeMs", "queueMs", "linkMs")
                stages[name] = {key: _round(percentile(some, 0.5)) for key, some in zip(keys, series, strict=True)}
                stages[name]["steps"] = len(series[0])
                if (told := self._shares.get(name)) is not None and (shares := told.values()):
                    stages[name]["batch"] = _round(len(shares) / sum(shares))  # of what is computed together the shares make one
                if (alone := self._alone.get(name)) is not None and (lately := alone.values()):
                    stages[name] |= {"aloneMs": _round(percentile(lately, 0.25)), "aloneSteps": len(lately)}
                if (prompts := self._prompts.get(name)) is not None and (each := prompts[0].values()):
                    stages[name] |= {
                        "promptMsPerToken": round(percentile(each, 0.5), 6),
                        "promptTokens": percentile(prompts[1].values(), 0.5),
                        "prompts": len(each),
                    }
        report["stages"] = stages
        return report

    def _window(self) -> _Window:
        return _Window(self.window_seconds, self.clock)


def _whole(timing: Timing) -> float:
    return timing.queue_ms + timing.compute_ms + timing.hop_ms


def _round(value: float) -> float:
    return round(value, 3)
