"""The chain of segments as the rest of the gateway uses it: tokens go in, one sampled token after the other comes out.

A sequence belongs to the gateway: when a stage dies, stalls or is replaced, its tokens are run again over the route of that
moment, and whoever reads the tokens sees a pause.
"""

import asyncio
import logging
import random
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace

from splitinference_gateway.errors import ApiError, invalid, overloaded
from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.failing import Failing
from splitinference_gateway.pipeline.handover import HandOvers
from splitinference_gateway.pipeline.history import History
from splitinference_gateway.pipeline.observed import Observed
from splitinference_gateway.pipeline.prefixes import MISSED, Prefixes, named
from splitinference_gateway.pipeline.steps import STALLED, Answer, Scored, StepClient, StepError
from splitinference_gateway.pipeline.verification import FAILED, Audit, Verifier
from splitinference_gateway.routing.lanes import Wish
from splitinference_gateway.routing.routes import Lease, Routes
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol.errors import BAD_REQUEST, DEADLINE_EXCEEDED, INTERNAL, KV_FULL, KV_MISSING, OVERLOADED
from splitinference_protocol.request import Hop, Prefix

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
_PATIENT = 5.0  # a sequence that has begun waits so much longer for room: those that have it end one after the other
_LATE = 0.4  # after this share of a step's time its stages are asked, so that a silent one is known when the time is over
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Times in seconds; `chunk` is the most tokens of one prefill step, `context` of a sequence."""

    step: float = 5.0
    step_per_token: float = 0.1
    replay: float = 60.0
    chunk: int = 256
    context: int = 2048


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

    def pause_after(self, failure: StepError, *, elsewhere: bool = False, begun: bool = False) -> float:
        """Seconds to wait before the next try; lost KV is mended at once the first time, and so is all where there is another pipeline
        (`elsewhere`). A sequence that has `begun` waits longer for room: it may have come from a pipeline that is no more.

        Raises:
            ApiError: it cannot be mended, or not within the limit.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._failures += 1
        self._internal += failure.code == INTERNAL
        self.stalls += failure.code in (STALLED, DEADLINE_EXCEEDED)
        if failure.code == BAD_REQUEST:
            raise invalid(f"The model refused the request: {failure.message}", code="bad_request") from failure
        limit = self._limit * (_PATIENT if begun and failure.code in (KV_FULL, OVERLOADED) else 1.0)
        if now - self._since >= limit or self._internal >= _MOST_INTERNAL_ERRORS:
            raise self._gave_up(failure, now - self._since) from failure
        if self._failures == 1 and (elsewhere or failure.code == KV_MISSING):
            return 0.0
        pause = min(_LONGEST_PAUSE_SECONDS, _SHORTEST_PAUSE_SECONDS * 2.0 ** min(10, self._failures - 1))
        return float(min(pause * random.uniform(0.75, 1.25), max(0.0, self._since + limit - now)))

    def _gave_up(self, failure: StepError, seconds: float) -> ApiError:
        if failure.code in (KV_FULL, OVERLOADED):
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
        self.verifier = Verifier(self.routes, self.steps, self.metrics, max(1, min(self.limits.chunk, self.limits.context // 2)))
        self.handovers = HandOvers(self.routes, self.steps, self.metrics, lambda: self.failing.segments, self.release)

    def tokens(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        client: str | None = None,
        *,
        score: bool = False,
        sample: bool = True,
        growth: int = 0,
    ) -> AsyncGenerator[Answer, None]:
        """Sample tokens after `prompt`, one by one, until the reader closes the iterator.

        The KV of a beginning that `client` asked with before may be used again; without a client nothing is shared.
        `score`: the first answer says how likely each of the prompt's tokens is (None for the first). Without `sample` it is the only one.
        `growth`: tokens of KV that the sequence may come to need; 0: not known.

        Raises:
            ApiError: the chain refused the request, or stayed broken for longer than the replay limit.
        """
        return _Sequence(self, prompt, sampling, client, score=score, sample=sample, growth=growth).answers()

    def names(self, tokens: Sequence[int], client: str) -> tuple[str, ...]:
        """Names of the blocks of tokens whose KV may be used again. None while segments are checked: a verifier has no KV of others, and a
        segment must not know from where a sequence begins that it is not checked."""
        return () if self.verifier.active else self.prefixes.names(tokens, client)

    async def close(self) -> None:
        """Wait a moment for releases under way."""
        await self.handovers.close()
        await self.verifier.close()
        if self._releasing:
            await asyncio.wait(self._releasing, timeout=2.0)

    def move(self, old: Lease | None, name: str, reason: str, tokens: int, wish: Wish) -> Lease:
        """Take a pipeline of the current route; the one left behind forgets the sequence where the new one does not use it."""
        new = self.routes.lease(self.failing.segments, wish)
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
                    self.release((hop,), name)
            old.give_back()
        return new

    def step_seconds(self, tokens: int, stalls: int) -> float:
        """How long a step may take: what is set, more where steps are slow of late, doubled after each stall."""
        patience = max(self.limits.step + self.limits.step_per_token * (tokens - 1), _SLOW_FACTOR * self.observed.slow_step_seconds)
        return float(patience * 2.0 ** min(stalls, 4))

    def release(self, pipeline: Sequence[Hop], name: str, prefix: Prefix | None = None) -> None:
        """Let segments forget a sequence, in the background: nobody waits for it, and idle KV is dropped by them anyway."""
        task = asyncio.create_task(self.steps.release(pipeline, name, _RELEASE_SECONDS, prefix))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Tokens of one step. `last`: the sequence's last ones, after which a token may be sampled. `targets` follow on them one by one."""

    tokens: Sequence[int]
    last: bool
    targets: Sequence[int]


class _Sequence:
    """One sequence on its way: its tokens, how many of them the segments of its pipeline hold, and what went wrong lately."""

    def __init__(
        self,
        chain: Chain,
        prompt: Sequence[int],
        sampling: Sampling,
        client: str | None,
        *,
        score: bool,
        sample: bool,
        growth: int = 0,
    ) -> None:
        self._chain, self._sampling, self._client, self._sample, self._growth = chain, sampling, client, sample, growth
        self._name = uuid.uuid4().hex
        self._prompt = len(prompt)
        self._tokens = list(prompt)
        self._held = 0  # how many of them the pipeline's segments hold
        self._reused = 0  # how many of those they held of others
        self._names = () if client is None or score else chain.names(prompt, client)  # what is scored has to be run
        self._scores: list[Scored | None] | None = [None] * len(prompt) if score else None
        self._history = History(sampling, prompt)
        self._lease: Lease | None = None
        self._reason = ""  # why the pipeline in the lease has to be chosen anew
        self._resumed = ""  # one of RESUMED, since the last token
        self._mending = Mending(chain.limits.replay)
        self._handover = chain.handovers.of(self._name)
        self._audit: Audit | None = None  # of this sequence on the pipeline in the lease, if it was sampled

    async def answers(self) -> AsyncGenerator[Answer, None]:
        """See Chain.tokens."""
        try:
            while True:
                try:
                    lease = await self._placed()
                    chunk = self._next()
                    answer = await self._step(lease, chunk)
                except StepError as failure:
                    await self._mend(failure)
                    continue
                self._took(lease, chunk, answer)
                if answer.outputs:
                    yield answer
                    return
                if answer.token is not None:
                    yield self._sampled(lease, chunk, answer, answer.token)
                elif chunk.last and not self._sample:
                    yield replace(answer, scored=tuple(self._scores or ()), revision=lease.route.revision)
                    return
        finally:
            self._end()

    async def _placed(self) -> Lease:
        """The right to use a pipeline for the next step: the same as before, one that the KV was handed over to, or another.

        Raises:
            StepError: there is no route, or a segment of the pipeline gave a wrong answer to somebody.
        """
        if self._lease is not None and not self._reason:
            self._lease = await self._followed(self._lease)
        if self._lease is None or self._reason or self._lease.expired:
            if self._audit is not None:
                await self._audit.finish(self._tokens, self._held)
                self._audit = None
            self._lease = self._moved(self._lease)
            self._audit = await self._chain.verifier.begin(self._lease.pipeline, self._name)
            self._reason = ""
            self._handover.abandon(self._lease.pipeline)
        return self._lease

    async def _followed(self, lease: Lease) -> Lease:
        """The same pipeline, or one that the KV was handed over to. While segments are checked nothing is handed over: a verifier has no KV
        of others. Raises StepError."""
        chain = self._chain
        if not chain.routes.is_trusted(lease.pipeline):
            raise StepError(FAILED, "a segment gave a wrong answer", "")
        if chain.verifier.active:
            return lease
        new = await self._handover.follow(lease, self._held)
        if new is not lease:
            self._resumed = self._resumed or HANDOVER
        return new

    def _moved(self, old: Lease | None) -> Lease:
        """A pipeline of the current route, from the sequence's first token on, or after what the pipeline is believed to hold of others."""
        chain, total = self._chain, len(self._tokens)
        if old is not None:
            self._resumed = MENDING if self._reason or self._resumed == MENDING else REPLAY
        new = chain.move(old, self._name, self._reason or SUPERSEDED, total, self._wish(old))
        if chain.verifier.active:  # a route with checks may have come after the sequence did
            self._names = ()
        self._held = self._reused = chain.prefixes.held(new.pipeline, self._names, total) if old is None else 0
        return new

    def _wish(self, old: Lease | None) -> Wish:
        """What the next pipeline must have. One where something failed is left, if there is another."""
        chain, names, total = self._chain, () if self._chain.verifier.active else self._names, len(self._tokens)

        def held(pipeline: Sequence[Hop]) -> int:
            return chain.prefixes.held(tuple(pipeline), names, total) if old is None else 0

        failed = old is not None and bool(self._reason) and self._reason not in (KV_MISSING, MISSED)
        return Wish(total, self._growth, held, old.lane if old is not None and failed else None)

    def _next(self) -> _Chunk:
        """What the pipeline does not hold yet, as far as one step takes it."""
        most = self._chain.limits.chunk if self._scores is None else min(self._chain.limits.chunk, _MOST_SCORED)
        end = min(len(self._tokens), self._held + most)
        targets = () if self._scores is None else self._tokens[self._held + 1 : min(self._prompt, end + 1)]
        return _Chunk(self._tokens[self._held : end], end == len(self._tokens), targets)

    async def _step(self, lease: Lease, chunk: _Chunk) -> Answer:
        """Raises StepError."""
        chain = self._chain
        seconds = chain.step_seconds(len(chunk.tokens), self._mending.stalls)
        late = asyncio.get_running_loop().call_later(_LATE * seconds, chain.failing.suspect, lease.pipeline, _LATE * seconds)
        try:
            return await chain.steps.step(
                lease.pipeline,
                self._name,
                position=self._held,
                tokens=chunk.tokens,
                sampling=self._history.sampling if chunk.last and self._sample else None,
                seconds=seconds,
                prefix=named(self._names) if self._held == self._reused else None,
                targets=chunk.targets,
                alternatives=self._sampling.logprobs,
            )
        finally:
            late.cancel()

    async def _mend(self, failure: StepError) -> None:
        """Wait before the next try.

        Raises:
            ApiError: there is none.
        """
        chain, lease = self._chain, self._lease
        _log.info("sequence %s at token %d: %s", self._name, len(self._tokens), failure)
        if lease is not None:
            chain.failing.failed(lease.pipeline, failure)
        elsewhere = lease is not None and chain.routes.has_other(lease.lane, chain.failing.segments)
        pause = self._mending.pause_after(failure, elsewhere=elsewhere, begun=len(self._tokens) > self._prompt)
        if lease is not None and failure.code == KV_FULL:  # what it holds here and there is in others' way
            await chain.steps.release(lease.pipeline, self._name, _RELEASE_SECONDS)
        if pause:
            await chain.routes.changed(pause)
        self._reason = failure.code
        if lease is not None and self._held and self._held == self._reused and failure.code == KV_MISSING:
            chain.prefixes.missed(lease.pipeline, self._names)
            self._reason = MISSED

    def _took(self, lease: Lease, chunk: _Chunk, answer: Answer) -> None:
        """The pipeline holds the chunk now."""
        if self._held == 0 and len(chunk.tokens) > 1:
            self._chain.observed.prompt_step(answer, len(chunk.tokens))
        if self._held == self._reused:
            self._chain.metrics.reused_tokens.inc(self._reused)
        if self._scores is not None:
            self._scores[self._held + 1 : self._held + 1 + len(chunk.targets)] = answer.scored
        self._held += len(chunk.tokens)
        if self._audit is not None:
            self._audit.ran(self._tokens, self._held)
        if len(chunk.tokens) > 1:
            lease.lane.pace.prefilled(answer.seconds, len(chunk.tokens))
            self._chain.prefixes.learned(lease.pipeline, self._names, self._held)

    def _sampled(self, lease: Lease, chunk: _Chunk, answer: Answer, token: int) -> Answer:
        """The answer with one more token, as the reader gets it."""
        chain = self._chain
        if len(chunk.tokens) == 1:
            chain.observed.decode_step(lease.pipeline, answer)
            lease.lane.pace.decoded(answer.seconds, lease.lane.in_flight)
        else:
            chain.handovers.speeds.ran(len(chunk.tokens), answer.seconds)
        chain.failing.worked(lease.pipeline)
        self._mending.progress()
        scored = tuple(self._scores or ()) if len(self._tokens) == self._prompt else ()
        self._tokens.append(token)
        self._history.add(token)
        resumed, self._resumed = self._resumed, ""
        return replace(answer, revision=lease.route.revision, resumed=resumed, scored=scored)

    def _end(self) -> None:
        """The reader has enough, or there was an error."""
        chain, lease = self._chain, self._lease
        if self._audit is not None:
            self._audit.end(self._tokens, self._held)
        self._handover.abandon()
        if lease is not None:
            # What was sampled is kept too: the next turn of a conversation begins with it.
            shared = self._client is not None and not self._reason
            kept = chain.names(self._tokens[: self._held], self._client or "") if shared else ()
            chain.prefixes.learned(lease.pipeline, kept, self._held)
            chain.release(lease.pipeline, self._name, named(kept))
            lease.give_back()
        if (sampled := len(self._tokens) - self._prompt) > 0:
            chain.routes.chooser.answered(sampled)
