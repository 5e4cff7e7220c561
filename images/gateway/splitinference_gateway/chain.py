"""The chain of segments as the rest of the gateway uses it: tokens go in, one sampled token after the other comes out.

A sequence belongs to the gateway: when a stage dies, stalls or is replaced, its tokens are run again over the route of that
moment, and whoever reads the tokens sees a pause.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from splitinference_gateway.errors import ApiError, invalid, overloaded
from splitinference_gateway.failing import Failing
from splitinference_gateway.handover import HandOvers
from splitinference_gateway.history import History
from splitinference_gateway.metrics import Metrics
from splitinference_gateway.observed import Observed
from splitinference_gateway.prefixes import MISSED, Prefixes, as_json
from splitinference_gateway.route import Hop
from splitinference_gateway.routes import Lease, Routes
from splitinference_gateway.sampling import Sampling
from splitinference_gateway.steps import Answer, Scored, StepClient, StepError

SUPERSEDED = "superseded"
NO_ROUTE = "no_route"
HANDOVER = "handover"
REPLAY = "replay"
MENDING = "mending"
RESUMED = (HANDOVER, REPLAY, MENDING)
"""How a sequence went on along another route, the worst last: with its KV, by running its tokens again, or so because something broke."""
_RELEASE_SECONDS = 5.0
_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_MOST_INTERNAL_ERRORS = 4  # a fault in the numbers comes back at every replay: do not spend the whole replay time on it
_SLOW_FACTOR = 8.0  # a step counts as stalled only when it takes so many times what slow steps took of late
_MOST_SCORED = 256  # tokens of a step whose log-probabilities come back: an answer's META is bounded
_LATE = 0.4  # after this share of a step's time its stages are asked, so that a silent one is known when the time is over
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Times in seconds; `chunk` is the most tokens of one prefill step."""

    step: float = 5.0
    step_per_token: float = 0.1
    replay: float = 60.0
    chunk: int = 256


class Mending:
    """Failures of one sequence since its last token: how long to pause, and when to give up."""

    def __init__(self, replay_seconds: float) -> None:
        self._limit = replay_seconds
        self._since: float | None = None
        self._failures = 0
        self._internal = 0
        self.stalls = 0

    def progress(self) -> None:
        self._since, self._failures, self._internal, self.stalls = None, 0, 0, 0

    def pause_after(self, failure: StepError) -> float:
        """Seconds to wait before the next try; lost KV is mended at once the first time.

        Raises:
            ApiError: it cannot be mended, or not within the limit.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._failures += 1
        self._internal += failure.code == "internal"
        self.stalls += failure.code in ("stalled", "deadline_exceeded")
        if failure.code == "bad_request":
            raise invalid(f"The model refused the request: {failure.message}", code="bad_request") from failure
        if now - self._since >= self._limit or self._internal >= _MOST_INTERNAL_ERRORS:
            raise self._gave_up(failure, now - self._since) from failure
        if failure.code == "kv_missing" and self._failures == 1:
            return 0.0
        pause = min(_LONGEST_PAUSE_SECONDS, _SHORTEST_PAUSE_SECONDS * 2.0 ** min(10, self._failures - 1))
        return float(min(pause * random.uniform(0.75, 1.25), max(0.0, self._since + self._limit - now)))

    def _gave_up(self, failure: StepError, seconds: float) -> ApiError:
        if failure.code in ("kv_full", "overloaded"):
            return overloaded(f"The model's capacity is taken ({failure.code}); tried for {seconds:.0f} s.", failure.code)
        return ApiError(
            503,
            f"The model's chain of segments is broken and was not mended within {seconds:.0f} s: {failure}.",
            kind="server_error",
            code=failure.code,
            retry_after=2,
        )


@dataclass
class Chain:
    """Runs sequences along routes."""

    routes: Routes
    steps: StepClient
    failing: Failing
    observed: Observed
    metrics: Metrics
    limits: Limits = Limits()
    prefixes: Prefixes = field(default_factory=Prefixes)
    _releasing: set["asyncio.Task[None]"] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.handovers = HandOvers(self.routes, self.steps, self.metrics, lambda: self.failing.segments, self._release)

    async def tokens(
        self, prompt: Sequence[int], sampling: Sampling, client: str | None = None, *, score: bool = False, sample: bool = True
    ) -> AsyncGenerator[Answer, None]:
        """Sample tokens after `prompt`, one by one, until the reader closes the iterator.

        The KV of a beginning that `client` asked with before may be used again; without a client nothing is shared.
        `score`: the first answer says how likely each of the prompt's tokens is (None for the first). Without `sample` it is the only one.

        Raises:
            ApiError: the chain refused the request, or stayed broken for longer than the replay limit.
        """
        name = uuid.uuid4().hex
        tokens = list(prompt)
        held = 0  # how many of them the pipeline's segments hold
        lease: Lease | None = None
        reason = ""  # why the pipeline in `lease` has to be chosen anew
        mending = Mending(self.limits.replay)
        handover = self.handovers.of(name)
        names = () if client is None or score else self.prefixes.names(prompt, client)  # what is scored has to be run
        history = History(sampling, prompt)
        scores: list[Scored | None] = [None] * len(prompt) if score else []
        reused = 0
        resumed = ""  # since the last token
        try:
            while True:
                try:
                    if lease is not None and not reason:
                        before, lease = lease, await handover.follow(lease, held)
                        resumed = resumed or (HANDOVER if lease is not before else "")
                    if lease is None or reason or lease.expired:
                        first = lease is None
                        if not first:
                            resumed = MENDING if reason or resumed == MENDING else REPLAY
                        lease = self._move(lease, name, reason or SUPERSEDED, len(tokens))
                        held = reused = self.prefixes.held(lease.pipeline, names, len(tokens)) if first else 0
                        reason = ""
                        handover.abandon(lease.pipeline)
                    chunk = tokens[held : held + (min(self.limits.chunk, _MOST_SCORED) if score else self.limits.chunk)]
                    last = held + len(chunk) == len(tokens)
                    targets = tokens[held + 1 : min(len(prompt), held + len(chunk) + 1)] if score else ()
                    begins = as_json(names) if held == reused else None
                    seconds = self.step_seconds(len(chunk), mending.stalls)
                    late = asyncio.get_running_loop().call_later(_LATE * seconds, self.failing.suspect, lease.pipeline, _LATE * seconds)
                    try:
                        answer = await self.steps.step(
                            lease.pipeline,
                            name,
                            position=held,
                            tokens=chunk,
                            sampling=history.sampling if last and sample else None,
                            seconds=seconds,
                            prefix=begins,
                            targets=targets,
                            alternatives=sampling.logprobs,
                        )
                    finally:
                        late.cancel()
                except StepError as failure:
                    _log.info("sequence %s at token %d: %s", name, len(tokens), failure)
                    if lease is not None:
                        self.failing.failed(lease.pipeline, failure)
                    pause = mending.pause_after(failure)
                    if lease is not None and failure.code == "kv_full":  # what it holds here and there is in others' way
                        await self.steps.release(lease.pipeline, name, _RELEASE_SECONDS)
                    await self.routes.changed(pause)
                    reason = failure.code
                    if lease is not None and held and held == reused and failure.code == "kv_missing":
                        self.prefixes.missed(lease.pipeline, names)
                        reason = MISSED
                    continue
                if held == 0 and len(chunk) > 1:
                    self.observed.prompt_step(answer, len(chunk))
                if held == reused:
                    self.metrics.reused_tokens.inc(reused)
                scores[held + 1 : held + 1 + len(targets)] = answer.scored
                held += len(chunk)
                if len(chunk) > 1:
                    self.prefixes.learned(lease.pipeline, names, held)
                if answer.outputs:
                    yield answer
                    return
                if answer.token is None and last and not sample:
                    yield replace(answer, scored=tuple(scores), revision=lease.route.revision)
                    return
                if answer.token is None:
                    continue
                if len(chunk) == 1:
                    self.observed.decode_step(lease.pipeline, answer)
                else:
                    self.handovers.speeds.ran(len(chunk), answer.seconds)
                self.failing.worked(lease.pipeline)
                mending.progress()
                told = tuple(scores) if len(tokens) == len(prompt) else ()
                tokens.append(answer.token)
                history.add(answer.token)
                yield replace(answer, revision=lease.route.revision, resumed=resumed, scored=told)
                resumed = ""
        finally:
            handover.abandon()
            if lease is not None:
                # What was sampled is kept too: the next turn of a conversation begins with it.
                kept = self.prefixes.names(tokens[:held], client) if client is not None and not reason else ()
                self.prefixes.learned(lease.pipeline, kept, held)
                self._release(lease.pipeline, name, as_json(kept))
                lease.give_back()

    async def close(self) -> None:
        """Wait a moment for releases under way."""
        await self.handovers.close()
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=2.0)

    def _move(self, old: Lease | None, name: str, reason: str, tokens: int) -> Lease:
        """Take a pipeline of the current route; the one left behind forgets the sequence where the new one does not use it."""
        new = self.routes.lease(avoid=self.failing.segments)
        if new is None:
            raise StepError(NO_ROUTE, "there is no route", "")
        if old is not None:
            self.metrics.replays.labels(reason).inc()
            self.metrics.route_replays.labels(new.route.revision).inc()
            self.metrics.tokens.labels("replayed").inc(tokens)
            self.observed.replay()
            kept = {hop.segment for hop in new.pipeline}
            for hop in old.pipeline:
                if hop.segment not in kept:
                    self._release((hop,), name)
            old.give_back()
        return new

    def step_seconds(self, tokens: int, stalls: int) -> float:
        """How long a step may take: what is set, more where steps are slow of late, doubled after each stall."""
        patience = max(self.limits.step + self.limits.step_per_token * (tokens - 1), _SLOW_FACTOR * self.observed.slow_step_seconds)
        return float(patience * 2.0 ** min(stalls, 4))

    def _release(self, pipeline: Sequence[Hop], name: str, prefix: Mapping[str, object] | None = None) -> None:
        """Let segments forget a sequence, in the background: nobody waits for it, and idle KV is dropped by them anyway."""
        task = asyncio.create_task(self.steps.release(pipeline, name, _RELEASE_SECONDS, prefix))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)
