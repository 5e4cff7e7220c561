"""KV hand-over: a sequence that outlives the drain of its route takes its KV along instead of running its tokens again.

Towards the end of the drain the KV is copied ahead, segment by segment, while tokens still flow along the old pipeline; then the little
that is left is copied and the next step takes the new pipeline. What cannot be copied, or not as quickly as it can be made again, is
replayed.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.step_answers import Pulled, StepError
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_gateway.routing.lanes import Wish
from splitinference_gateway.routing.routes import Lease, Route, Routes
from splitinference_protocol.route import Pipeline
from splitinference_protocol.wire.request import Hop

REPLAY_QUICKER = "replay_quicker"
_FIRST_TOKENS = 64  # of the first pull, which measures
_ROUND_SECONDS = 0.5  # of each further pull, by what was measured: a client that leaves, or a newer route, waits no longer
_MOST_TOKENS = 4096
_NEAR_TOKENS = 16  # so few are left for the switch itself
_PULL_SECONDS = 5.0
_LEAD_SECONDS = 2.0
_LEAD_UNKNOWN_SECONDS = 5.0
_MODEL = re.compile(r"seg-(?P<digest>[0-9a-f]+)-(?P<start>\d+)-(?P<end>\d+)")
_log = logging.getLogger(__name__)


def newcomers(old: Pipeline, new: Pipeline) -> Pipeline | None:
    """The segments of `new` that do not hold what `old` holds; None when the two are not the same whole model by their names."""
    models = [_MODEL.fullmatch(hop.model) for hop in (*old, *new)]
    digests = {model["digest"] if model else None for model in models}
    if None in digests or len(digests) != 1 or _end(old) != _end(new):
        return None
    kept = {hop.segment for hop in old}
    return tuple(hop for hop in new if hop.segment not in kept)


def copy_seconds(tokens: int, bytes_per_token: float, bytes_per_second: float) -> float:
    """Time to copy the KV of so many tokens to one segment: bytes over bandwidth, both as earlier copies showed them."""
    return tokens * bytes_per_token / bytes_per_second


def copy_is_quicker(left: int, held: int, seconds_per_copied: float | None, seconds_per_replayed: float | None) -> bool:
    """Whether to copy the `left` tokens rather than run all `held` again: left × copy time < held × replay time, per token each.

    Segments pull at the same time, so the slowest one's copy time counts; replay time is that of prefill steps through the whole
    pipeline. What was not measured yet is no reason to replay: the first pull is small, and measures.
    """
    if seconds_per_copied is None or seconds_per_replayed is None:
        return True
    return left * seconds_per_copied < held * seconds_per_replayed


@dataclass
class Speeds:
    """What copies and prefill steps of late took; recent ones count more."""

    seconds_per_replayed: float | None = None
    _bytes_per_token: dict[str, float] = field(default_factory=dict)
    _bytes_per_second: dict[str, float] = field(default_factory=dict)

    def ran(self, tokens: int, seconds: float) -> None:
        """A prefill step of several tokens."""
        self.seconds_per_replayed = _blend(self.seconds_per_replayed, seconds / tokens)

    def pulled(self, segment: str, tokens: int, pulled: Pulled) -> None:
        """A segment pulled the KV of so many tokens."""
        if pulled.bytes:
            self._bytes_per_token[segment] = pulled.bytes / tokens
            speed = pulled.bytes / max(pulled.seconds, 1e-6)
            self._bytes_per_second[segment] = _blend(self._bytes_per_second.get(segment), speed)

    def seconds_per_copied(self, segments: Sequence[str]) -> float | None:
        """Seconds per token where all these pull at the same time; None when none of them was measured."""
        known = [s for s in segments if s in self._bytes_per_second]
        return max((copy_seconds(1, self._bytes_per_token[s], self._bytes_per_second[s]) for s in known), default=None)

    def forget(self, segments: set[str]) -> None:
        """Keep only these segments' speeds."""
        for known in (self._bytes_per_token, self._bytes_per_second):
            for name in known.keys() - segments:
                del known[name]


@dataclass
class HandOvers:
    """What the hand-overs of all sequences share. `release` lets segments forget a sequence, in the background."""

    routes: Routes
    steps: StepClient
    metrics: Metrics
    failing: Callable[[], frozenset[str]]
    release: Callable[[Pipeline, str], None]
    speeds: Speeds = field(default_factory=Speeds)
    leaving: set["asyncio.Task[None]"] = field(default_factory=set)

    def of(self, sequence: str) -> "HandOver":
        """The hand-over of one sequence, which has not begun."""
        return HandOver(self, sequence)

    async def close(self) -> None:
        """Wait a moment for copies that were abandoned."""
        if self.leaving:
            await asyncio.wait(self.leaving, timeout=2.0)


class HandOver:
    """Follows one sequence; at most one copy is under way."""

    def __init__(self, shared: HandOvers, sequence: str) -> None:
        self._shared, self._sequence = shared, sequence
        self._copy: _Copy | None = None
        self._given_up: Route | None = None
        self._using: Pipeline = ()

    async def follow(self, lease: Lease, held: int) -> Lease:
        """The lease for the next step: the same one, or, when all `held` tokens are there, one of the current route.

        An expired lease that comes back means that the sequence has to be replayed.
        """
        if lease.route.expires_at is None:
            self.abandon(lease.pipeline)
            return lease
        current = self._shared.routes.current
        if self._copy is not None and self._copy.lease.route is not current:
            self.abandon(lease.pipeline)
        if self._copy is None:
            if current is None or self._given_up is current or not self._due(lease, held):
                return lease
            self._copy = self._begin(lease, current, held)
            if self._copy is None:
                self._given_up = current
                return lease
        copy = self._copy
        copy.held = held
        if not (copy.near or copy.task.done() or lease.expired):
            return lease
        return await self._switch(lease, copy, held)

    def abandon(self, using: Pipeline = ()) -> None:
        """Stop copying, if anything is copied; segments that hold a part forget it, but for those that the sequence is `using`."""
        self._using = using
        if self._copy is not None:
            copy, self._copy = self._copy, None
            copy.stop()
            task = asyncio.create_task(self._clean_up(copy))
            self._shared.leaving.add(task)
            task.add_done_callback(self._shared.leaving.discard)

    def _due(self, lease: Lease, held: int) -> bool:
        """Late enough that sequences which end within the drain are not copied, and early enough to be done when it is over."""
        expires_at = lease.route.expires_at
        current = self._shared.routes.current
        if expires_at is None or current is None or not held:
            return False
        names = [hop.segment for pipeline in current.pipelines for hop in pipeline]
        per_token = self._shared.speeds.seconds_per_copied(names)
        lead = _LEAD_UNKNOWN_SECONDS if per_token is None else max(_LEAD_SECONDS, 2 * held * per_token)
        return self._shared.routes.clock() >= expires_at - lead

    def _begin(self, lease: Lease, current: Route, held: int) -> "_Copy | None":
        failing = self._shared.failing()
        new = self._shared.routes.lease(failing, Wish(most=lease.most))
        if new is None:
            return None
        targets = newcomers(lease.pipeline, new.pipeline)
        if targets is None or any(hop.segment in failing for hop in (*lease.pipeline, *new.pipeline)):
            new.give_back()
            self._shared.metrics.handover_fallbacks.labels("failing" if targets is not None else "another_model").inc()
            return None
        return _Copy(self._shared, self._sequence, sources=lease.pipeline, lease=new, targets=targets, held=held)

    async def _switch(self, lease: Lease, copy: "_Copy", held: int) -> Lease:
        began = time.perf_counter()
        copy.finish(held)
        problem = await asyncio.shield(copy.task)
        metrics = self._shared.metrics
        if problem is not None:
            _log.info("sequence %s is not handed over: %s", self._sequence, problem)
            metrics.handover_fallbacks.labels(problem.code).inc()
            self._given_up = copy.lease.route
            self.abandon(lease.pipeline)
            return lease
        self._copy = None
        metrics.handovers.inc()
        metrics.handover_bytes.inc(copy.bytes)
        metrics.handover_seconds.inc(copy.seconds)
        metrics.handover_pause.observe(time.perf_counter() - began)
        kept = {hop.segment for hop in copy.lease.pipeline}
        for hop in lease.pipeline:
            if hop.segment not in kept:
                self._shared.release((hop,), self._sequence)
        lease.give_back()
        return copy.lease

    async def _clean_up(self, copy: "_Copy") -> None:
        """A segment that is pulling would take the sequence in again after its release: so first the copy ends."""
        await asyncio.wait((copy.task,))
        using = {hop.segment for hop in self._using}
        for hop in copy.targets:
            if hop.segment not in using:
                self._shared.release((hop,), self._sequence)
        copy.lease.give_back()


class _Copy:
    """The copy of one sequence to the segments that are new to it. `task` gives None when all is there, or why not."""

    def __init__(self, shared: HandOvers, sequence: str, *, sources: Pipeline, lease: Lease, targets: Pipeline, held: int) -> None:
        self.lease, self.targets, self.held = lease, targets, held
        self.near = False
        self.bytes, self.seconds = 0, 0.0
        self._shared, self._sequence, self._sources = shared, sequence, sources
        self._copied = 0
        self._final: int | None = None
        self._stopped = False
        self._wake = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def finish(self, held: int) -> None:
        """No more steps run on the old pipeline: copy up to `held`, and be done."""
        self._final = held
        self._wake.set()

    def stop(self) -> None:
        """End as soon as the pull under way is answered."""
        self._stopped = True
        self._wake.set()

    async def _run(self) -> StepError | None:
        try:
            while not self._stopped and self._copied != self._final:
                left = (self.held if self._final is None else self._final) - self._copied
                if self._final is None and left <= _NEAR_TOKENS:
                    self.near = True
                    await self._wake.wait()
                    continue
                per_token = self._shared.speeds.seconds_per_copied([hop.segment for hop in self.targets])
                if not copy_is_quicker(left, self._copied + left, per_token, self._shared.speeds.seconds_per_replayed):
                    return StepError(REPLAY_QUICKER, f"{left} tokens at {per_token} s each", self.targets[0].segment)
                await self._pull(min(left, _round(per_token)))
        except StepError as failure:
            return failure
        return None

    async def _pull(self, tokens: int) -> None:
        async def pull(hop: Hop) -> None:
            pulled = await self._shared.steps.pull(
                hop, self._sequence, position=self._copied, tokens=tokens, sources=self._sources, seconds=_PULL_SECONDS
            )
            self._shared.speeds.pulled(hop.segment, tokens, pulled)
            self.bytes += pulled.bytes

        began = time.perf_counter()
        results = await asyncio.gather(*(pull(hop) for hop in self.targets), return_exceptions=True)
        self.seconds += time.perf_counter() - began
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._copied += tokens


def _round(seconds_per_copied: float | None) -> int:
    """Tokens of one pull."""
    return _FIRST_TOKENS if seconds_per_copied is None else max(1, min(_MOST_TOKENS, int(_ROUND_SECONDS / seconds_per_copied)))


def _end(pipeline: Pipeline) -> str:
    return pipeline[-1].model.rpartition("-")[2]


def _blend(old: float | None, new: float) -> float:
    return new if old is None else 0.5 * (old + new)
