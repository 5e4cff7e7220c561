"""What clients and stages experienced in the last minute: the operator compares it with what its plan predicted."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinference_gateway.pipeline.step_answers import Answer
from splitinference_protocol.report import ALONE_SECONDS, ObservedTraffic, Percentiles
from splitinference_protocol.report import StageTimes as StageReport
from splitinference_protocol.route import Pipeline
from splitinference_protocol.wire.answers import Timing

_MOST_SAMPLES = 20_000  # bounds memory; at 300 tokens a second this is still a minute
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
        self._prompt_tokens = self._window()  # of what arrived
        self._output_tokens = self._window()  # of what ended
        self._first = self._window()
        self._gaps = self._window()
        self._longest = self._window()
        self._ingress = self._window()
        self._stages: dict[str, tuple[_Window, _Window, _Window]] = {}
        self._shares: dict[str, _Window] = {}
        self._alone: dict[str, _Window] = {}
        self._prompts: dict[str, tuple[_Window, _Window]] = {}
        self._slow_step_seconds = 0.0

    def request(self, *, failed: bool) -> None:
        """A request ended; `failed` when it was not the client's fault."""
        self._requests.add(float(failed))

    def arrived(self, prompt_tokens: int) -> None:
        """A sequence came, with so many tokens of prompt; it may have to wait."""
        self._prompt_tokens.add(float(prompt_tokens))

    def generated(self, tokens: int) -> None:
        """A sequence ended after so many tokens."""
        self._output_tokens.add(float(tokens))

    def replay(self) -> None:
        """A sequence's tokens are run again."""
        self._replays.add(1.0)

    def first_token(self, seconds: float) -> None:
        """A sequence's first token came, so long after the request."""
        self._first.add(seconds * 1000)

    def gap(self, seconds: float, tokens: int = 1) -> None:
        """Time between two tokens of one sequence. Where a step gave several `tokens`, each took its share of it."""
        self._longest.add(seconds)
        for _ in range(tokens):
            self._gaps.add(seconds * 1000 / tokens)

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
                self._alone.setdefault(stage.segment, _Window(ALONE_SECONDS, self.clock)).add(stage.compute_ms)

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
        return max(self._longest.values(), default=0.0)

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

    def report(self, kv_reserved: float | None = None) -> ObservedTraffic:
        """`observed` of the gateway's report."""
        outcomes, gaps = self._requests.values(), self._gaps.values()
        tokens = self._first.per_second() + self._gaps.per_second()
        came, ended = self._prompt_tokens.values(), self._output_tokens.values()
        return ObservedTraffic(
            window_seconds=self.window_seconds,
            requests=len(outcomes),
            failed=int(sum(outcomes)),
            replays=len(self._replays.values()),
            time_to_first_token_ms=_percentiles(self._first.values()),
            time_per_output_token_ms=_percentiles(gaps),
            longest_token_gap_ms=_round(self.longest_gap_seconds * 1000) if gaps else None,
            ingress_ms=_median(self._ingress),
            tokens_per_second=_round(tokens) if tokens else None,
            kv_reserved=kv_reserved,
            arrived=len(came),
            prompt_tokens_mean=_round(sum(came) / len(came)) if came else None,
            output_tokens_mean=_round(sum(ended) / len(ended)) if ended else None,
            stages={name: stage for name in self._stages if (stage := self._stage(name)) is not None},
        )

    def _stage(self, name: str) -> StageReport | None:
        compute, queue, link = self._stages[name]
        if not (steps := len(compute.values())):
            return None
        shares = self._shares[name].values() if name in self._shares else []
        lately = self._alone[name].values() if name in self._alone else []
        each, lengths = (window.values() for window in self._prompts[name]) if name in self._prompts else ([], [])
        return StageReport(
            compute_ms=_median(compute),
            queue_ms=_median(queue),
            link_ms=_median(link),
            steps=steps,
            batch=_round(len(shares) / sum(shares)) if sum(shares) else None,  # of what is computed together the shares make one
            alone_ms=_round(percentile(lately, 0.25)) if lately else None,
            alone_steps=len(lately) or None,
            prompt_ms_per_token=round(percentile(each, 0.5), 6) if each else None,
            prompt_tokens=percentile(lengths, 0.5) if each else None,
            prompts=len(each) or None,
        )

    def _window(self) -> _Window:
        return _Window(self.window_seconds, self.clock)


def _whole(timing: Timing) -> float:
    return timing.queue_ms + timing.compute_ms + timing.hop_ms


def _round(value: float) -> float:
    return round(value, 3)


def _median(window: _Window) -> float | None:
    return _round(percentile(values, 0.5)) if (values := window.values()) else None


def _percentiles(values: Sequence[float]) -> Percentiles:
    return Percentiles(p50=_round(percentile(values, 0.5)), p95=_round(percentile(values, 0.95))) if values else Percentiles()
