"""The chain of segments as the rest of the gateway uses it: tokens go in, one sampled token after the other comes out.

A sequence belongs to the gateway: when a stage dies, stalls or is replaced, its tokens are run again over the route of that
moment, and whoever reads the tokens sees a pause.
"""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from splitinference_gateway.errors import ApiError
from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.adapters import AdapterUse
from splitinference_gateway.pipeline.drafts import Speculation
from splitinference_gateway.pipeline.flight import Chunk, Flight, Sent, chunk_tokens, most_under_way
from splitinference_gateway.pipeline.history import History
from splitinference_gateway.pipeline.observed import Observed
from splitinference_gateway.pipeline.prefixes import MISSED, Prefixes, named
from splitinference_gateway.pipeline.recovery.failing import Failing
from splitinference_gateway.pipeline.recovery.handover import HandOvers
from splitinference_gateway.pipeline.recovery.mending import Mending
from splitinference_gateway.pipeline.step_answers import Answer, Scored, StepError
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_gateway.pipeline.verification import FAILED, Audit, Verifier
from splitinference_gateway.routing.lanes import Wish
from splitinference_gateway.routing.routes import Lease, Routes
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol.wire.errors import ADAPTER_MISSING, KV_FULL, KV_MISSING
from splitinference_protocol.wire.request import Hop, Prefix

SUPERSEDED = "superseded"
NO_ROUTE = "no_route"
HANDOVER = "handover"
REPLAY = "replay"
MENDING = "mending"
RESUMED = (HANDOVER, REPLAY, MENDING)
"""How a sequence went on along another route, the worst last: with its KV, by running its tokens again, or so because something broke."""
_RELEASE_SECONDS = 5.0
_SLOW_FACTOR = 8.0  # a step counts as stalled only when it takes so many times what slow steps took of late
_MOST_SCORED = 256  # tokens of a step whose log-probabilities come back: an answer's META is bounded
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
    speculation: Speculation = field(default_factory=Speculation)
    adapters: AdapterUse = field(default_factory=AdapterUse)
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
        adapter: str = "",
    ) -> AsyncGenerator[Answer, None]:
        """Sample tokens after `prompt`, one by one, until the reader closes the iterator.

        The KV of a beginning that `client` asked with before may be used again; without a client nothing is shared.
        `score`: the first answer says how likely each of the prompt's tokens is (None for the first). Without `sample` it is the only one.
        `growth`: tokens of KV that the sequence may come to need; 0: not known. `adapter`: the digest of the adapter to run with.

        Raises:
            ApiError: the chain refused the request, or stayed broken for longer than the replay limit.
        """
        return _Sequence(self, prompt, sampling, client, score=score, sample=sample, growth=growth, adapter=adapter).answers()

    def names(self, tokens: Sequence[int], client: str, adapter: str = "") -> tuple[str, ...]:
        """Names of the blocks of tokens whose KV may be used again. None while segments are checked: a verifier has no KV of others, and a
        segment must not know from where a sequence begins that it is not checked."""
        return () if self.verifier.active else self.prefixes.names(tokens, client, adapter)

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
        adapter: str = "",
    ) -> None:
        self._chain, self._sampling, self._client, self._sample, self._growth = chain, sampling, client, sample, growth
        self._name, self._adapter = uuid.uuid4().hex, adapter
        self._prompt = len(prompt)
        self._tokens = list(prompt)
        self._held = 0  # how many of them the pipeline's segments hold
        self._rejected = 0  # how many tokens they hold behind those, of drafts that were wrong
        self._reused = 0  # how many of those they held of others
        self._names = () if client is None or score else chain.names(prompt, client, adapter)  # what is scored has to be run
        self._scores: list[Scored | None] | None = [None] * len(prompt) if score else None
        self._history = History(sampling, prompt)
        self._lease: Lease | None = None
        self._reason = ""  # why the pipeline in the lease has to be chosen anew
        self._resumed = ""  # one of RESUMED, since the last token
        self._mending = Mending(chain.limits.replay)
        self._handover = chain.handovers.of(self._name)
        self._audit: Audit | None = None  # of this sequence on the pipeline in the lease, if it was sampled
        self._flight: Flight = Flight()
        self._drafter = chain.speculation.drafter() if sampling.guide is None and not sampling.logits else None

    async def answers(self) -> AsyncGenerator[Answer, None]:
        """See Chain.tokens."""
        try:
            while True:
                try:
                    lease = await self._placed()
                    self._send(lease)
                    sent, answer = await self._flight.landed()
                except StepError as failure:
                    await self._flight.clear()
                    await self._mend(failure)
                    continue
                chunk = sent.what
                self._took(lease, sent, answer)
                if answer.outputs:
                    yield answer
                    return
                if answer.token is not None:
                    for each in self._sampled(lease, sent, answer, answer.token):
                        yield each
                elif chunk.last and not self._sample:
                    yield replace(answer, scored=tuple(self._scores or ()), revision=lease.route.revision)
                    return
        finally:
            self._flight.cancel()
            self._end()

    async def _placed(self) -> Lease:
        """The right to use a pipeline for the next step: the same as before, one that the KV was handed over to, or another.

        Raises:
            StepError: there is no route, or a segment of the pipeline gave a wrong answer to somebody.
            ApiError: the model is asleep, and did not wake in time.
        """
        if self._lease is not None and self._flight.under_way:
            return self._lease
        if self._lease is not None and not self._reason:
            self._lease = await self._followed(self._lease)
        if self._lease is None or self._reason or self._lease.expired:
            if self._audit is not None:
                await self._audit.finish(self._tokens, self._held)
                self._audit = None
            await self._chain.routes.awake()
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
        self._rejected = 0
        return new

    def _wish(self, old: Lease | None) -> Wish:
        """What the next pipeline must have. One where something failed is left, if there is another."""
        chain, names, total = self._chain, () if self._chain.verifier.active else self._names, len(self._tokens)

        def held(pipeline: Sequence[Hop]) -> int:
            return chain.prefixes.held(tuple(pipeline), names, total) if old is None else 0

        failed = old is not None and bool(self._reason) and self._reason not in (KV_MISSING, MISSED)
        return Wish(total, self._growth, held, old.lane if old is not None and failed else None)

    def _send(self, lease: Lease) -> None:
        """Send what the pipeline does not hold yet: of a long text as many chunks as keep its stages busy, one behind the other. While the
        route drains only one is under way, so that the sequence may leave between two."""
        draining = lease.route.expires_at is not None
        most = 1 if draining else most_under_way(len(lease.pipeline))
        size = self._chain.limits.chunk if self._scores is None else min(self._chain.limits.chunk, _MOST_SCORED)
        if most > 1:
            size = chunk_tokens(len(self._tokens) - self._held, len(lease.pipeline), size)
        position = self._flight.last.end if self._flight.under_way else self._held
        while position < len(self._tokens) and len(self._flight) < most:
            chunk = self._chunk(lease, position, size)
            position = chunk.end
            tokens = sum(len(sent.what.tokens) for sent in self._flight) + len(chunk.tokens) + len(chunk.drafts)
            self._flight.send(chunk, self._step(lease, chunk, tokens))

    def _chunk(self, lease: Lease, position: int, most: int) -> Chunk:
        """Tokens from `position` on, so many at most; behind a single last one drafts."""
        total = len(self._tokens)
        end = min(total, position + most)
        targets = () if self._scores is None else self._tokens[position + 1 : min(self._prompt, end + 1)]
        drafts: Sequence[int] = ()
        if self._drafter is not None and end - position == 1 and end == total > self._prompt and not self._history.sampling.banned:
            left = min(self._chain.limits.context, self._growth or self._chain.limits.context) - total
            drafts = self._drafter.drafts(self._tokens, min(left - 1, most - 1), lease.lane.costs)
        drop = self._rejected if position == self._held else 0
        return Chunk(position, self._tokens[position:end], end == total, targets, drafts, drop)

    async def _step(self, lease: Lease, chunk: Chunk, tokens: int) -> Answer:
        """`tokens`: those of the chunk and of all before it that are under way. Raises StepError."""
        chain = self._chain
        seconds = chain.step_seconds(tokens, self._mending.stalls)
        late = asyncio.get_running_loop().call_later(_LATE * seconds, chain.failing.suspect, lease.pipeline, _LATE * seconds)
        try:
            return await chain.steps.step(
                lease.pipeline,
                self._name,
                position=chunk.position,
                tokens=chunk.tokens,
                sampling=self._history.sampling if chunk.last and self._sample else None,
                seconds=seconds,
                prefix=named(self._names) if chunk.position == self._reused else None,
                targets=chunk.targets,
                alternatives=self._sampling.logprobs,
                drafts=chunk.drafts,
                drop=chunk.drop,
                adapter=self._adapter,
            )
        except StepError:
            if chunk.drafts and self._drafter is not None:
                self._drafter.failed()
            raise
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
        if failure.code == ADAPTER_MISSING and self._adapter not in chain.routes.adapters.values():
            raise ApiError(404, "The adapter was removed while it answered.", param="model", code="model_not_found") from failure
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

    def _took(self, lease: Lease, sent: Sent, answer: Answer) -> None:
        """The pipeline holds the chunk now, and of its drafts those that were right."""
        chunk = sent.what
        if self._held == 0 and len(chunk.tokens) > 1:
            self._chain.observed.prompt_step(answer, len(chunk.tokens))
        if self._held == self._reused:
            self._chain.metrics.reused_tokens.inc(self._reused)
        if self._scores is not None:
            self._scores[self._held + 1 : self._held + 1 + len(chunk.targets)] = answer.scored
        self._held += len(chunk.tokens)
        self._rejected = 0
        if self._audit is not None:
            self._audit.ran(self._tokens, self._held)
        if len(chunk.tokens) > 1:
            lease.lane.pace.prefilled(sent.seconds, len(chunk.tokens))
            self._chain.prefixes.learned(lease.pipeline, self._names, self._held)

    def _sampled(self, lease: Lease, sent: Sent, answer: Answer, token: int) -> Iterator[Answer]:
        """The answer with one more token, as the reader gets it; then, one by one, the tokens whose drafts were right."""
        chain, chunk, more = self._chain, sent.what, answer.more
        if chunk.decodes:
            if not chunk.drafts:
                chain.observed.decode_step(lease.pipeline, answer)
            lease.lane.pace.decoded(answer.seconds / (1 + len(more)), lease.lane.in_flight)
            lease.lane.costs.ran(answer.seconds, len(chunk.drafts))
        else:
            chain.handovers.speeds.ran(len(chunk.tokens), sent.seconds)
        if self._drafter is not None:
            self._drafter.sampled(len(chunk.drafts), len(more), token)
        if chunk.drafts:
            chain.metrics.drafted(len(chunk.drafts), len(more))
        chain.failing.worked(lease.pipeline)
        self._mending.progress()
        scored = tuple(self._scores or ()) if len(self._tokens) == self._prompt else ()
        # Of the drafts the segments hold those that were right: they are among the sequence's tokens now.
        self._held, self._rejected = self._held + len(more), len(chunk.drafts) - len(more)
        for each in (token, *(drafted.token for drafted in more)):
            self._tokens.append(each)
            self._history.add(each)
        if self._audit is not None and more:
            self._audit.ran(self._tokens, self._held)
        resumed, self._resumed = self._resumed, ""
        revision = lease.route.revision
        yield replace(answer, revision=revision, resumed=resumed, scored=scored, of=1 + len(more))
        for drafted in more:
            yield Answer(drafted.token, drafted.logprob, drafted.top_logprobs, (), 0.0, revision=revision, of=0)

    def _end(self) -> None:
        """The reader has enough, or there was an error."""
        chain, lease = self._chain, self._lease
        if self._audit is not None:
            self._audit.end(self._tokens, self._held)
        self._handover.abandon()
        if lease is not None:
            # What was sampled is kept too: the next turn of a conversation begins with it.
            shared = self._client is not None and not self._reason
            kept = chain.names(self._tokens[: self._held], self._client or "", self._adapter) if shared else ()
            chain.prefixes.learned(lease.pipeline, kept, self._held)
            chain.release(lease.pipeline, self._name, named(kept))
            lease.give_back()
        if (sampled := len(self._tokens) - self._prompt) > 0:
            chain.routes.chooser.answered(sampled)
