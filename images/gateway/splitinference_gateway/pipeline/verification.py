"""Spot checks: sampled sequences are computed again on a trusted node, and a segment whose output is too far off gets no more work.

The route says which segments are checked, and which segments before and after them run on trusted nodes. Those two keep what they sent and
received of a sampled sequence; the verifier, with the same layers, gets the input and compares its output with what was received. None of
this passes through the checked segments, and nothing in a step tells them which sequences are sampled.
Where a check has a referee, the verifier is a replica on a node that need not be trusted: see replicas.py.
"""

import array
import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.replicas import Kept, Replicated, most_audits
from splitinference_gateway.pipeline.step_answers import Compared, Hidden, StepError
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_gateway.routing.routes import Routes
from splitinference_protocol.report import FailedCheck, Verified
from splitinference_protocol.route import Check, Pipeline, Verification
from splitinference_protocol.wire.operations import INPUT, OUTPUT

FAILED = "verification_failed"
SLACK = 2.0
"""A mean of n tokens may be at most tolerance × (1 + SLACK / √n); one token alone, so, three times the tolerance."""
CHECK_TOKENS = 64
"""A check begins when so many tokens were not checked yet, and when the sequence ends."""
_SECONDS, _SECONDS_PER_TOKEN = 30.0, 0.5  # of one request: the verifier gives way to nobody, but may be slow
_RECORD_SECONDS = 1.0
_FINISH_SECONDS = 10.0
_MOST_AUDITS = 4
"""Sequences that are checked at the same time: the verifier has room for so many, and others are not sampled meanwhile."""
_MOST_REPLICATED = 32
"""The same where each sequence is computed twice: a witness records so many. Others wait for their turn."""
ROOM_SECONDS = 2.0
"""So long at most: a replica that answers slowly must not hold up every new sequence."""
_log = logging.getLogger(__name__)


def within(found: Compared, tolerance: float) -> bool:
    """Whether honest rounding can be the reason that two outputs are so far apart."""
    return found.mean <= bound(tolerance, found.tokens) and found.worst <= bound(tolerance, 1)


def bound(tolerance: float, tokens: int) -> float:
    """The largest mean relative error of so many tokens that honest rounding may have."""
    return tolerance * (1 + SLACK / math.sqrt(tokens))


@dataclass
class Verifier:
    """Chooses sequences and checks them. `chance` gives numbers from 0 to 1 that nobody can foresee."""

    routes: Routes
    steps: StepClient
    metrics: Metrics
    most_tokens: int = 256
    chance: Callable[[], float] = secrets.SystemRandom().random
    failed: dict[str, FailedCheck] = field(default_factory=dict)
    sampled: int = 0
    checked_tokens: int = 0
    skipped: int = 0
    kept: Kept = field(default_factory=Kept)
    _running: int = 0
    _ends: asyncio.Event = field(default_factory=asyncio.Event)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def active(self) -> bool:
        """Whether any segment is checked. Then every sequence begins at its first token on its pipeline, sampled or not."""
        wanted = self.routes.verification
        return wanted is not None and bool(wanted.checks)

    async def begin(self, pipeline: Pipeline, sequence: str) -> "Audit | None":
        """The audit of a sequence that is about to begin on this pipeline, if it is sampled."""
        wanted = self.routes.verification
        checks = _checks_of(wanted, pipeline)
        if wanted is None or not checks or self.chance() * 100 >= wanted.sample_percent:
            return None
        if any(hop.segment in self.routes.distrusted for check in checks for hop in check.verifiers):
            self._skip("distrusted")
            return None
        if not await self._has_room(most_audits(checks, _MOST_AUDITS, _MOST_REPLICATED)):
            self._skip("busy")
            return None
        witnesses = [(check.before, OUTPUT) for check in checks if check.before] + [(check.after, INPUT) for check in checks]
        asked = (self.steps.record(hop, sequence, side, _RECORD_SECONDS) for hop, side in witnesses if hop is not None)
        self._running += 1
        try:
            results = await asyncio.gather(*asked, return_exceptions=True)
        except asyncio.CancelledError:
            self._ended()
            raise
        if problem := next((result for result in results if isinstance(result, BaseException)), None):
            self._ended()
            _log.info("sequence %s is not checked: %s", sequence, problem)
            self._skip("not_recorded")
            return None
        self.sampled += 1
        self.metrics.verified_sequences.inc()
        return Audit(self, wanted, checks, sequence)

    async def close(self) -> None:
        """Wait a moment for checks under way."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2.0)

    def report(self) -> Verified:
        """`verification` of the gateway's report."""
        known = self.routes.segments | self.routes.verifiers
        failed = {name: found for name, found in self.failed.items() if name in known}
        return Verified(sampled=self.sampled, checked_tokens=self.checked_tokens, skipped=self.skipped, failed=failed)

    def forget(self, segments: set[str]) -> None:
        """Keep only these segments' failures."""
        self.failed = {name: failed for name, failed in self.failed.items() if name in segments}

    def judge(self, check: Check, found: Compared, sequence: str, tolerance: float) -> bool:
        """Whether the output can be honest; if not, all segments between the two witnesses are distrusted."""
        self.counted(found)
        if within(found, tolerance):
            return True
        self.blame(check.segments, found, sequence, tolerance)
        return False

    def counted(self, found: Compared) -> None:
        """A comparison was made."""
        self.checked_tokens += found.tokens
        self.metrics.verified_tokens.inc(found.tokens)
        self.metrics.verification_error.observe(found.mean)

    def blame(self, segments: Sequence[str], found: Compared, sequence: str, tolerance: float) -> None:
        """Their output is too far off: send them nothing more."""
        of_all = found.mean > bound(tolerance, found.tokens)
        error, tokens, position = (found.mean, found.tokens, found.position) if of_all else (found.worst, 1, found.worst_at)
        failed = _failed(sequence, position, tokens, error, limit := bound(tolerance, tokens))
        _log.error("segments %s: the output is off by %.3g, the limit is %.3g", ", ".join(segments), error, limit)
        for segment in segments:
            self.failed.setdefault(segment, failed)
        self.metrics.verification_failures.inc()
        self.routes.distrust(segments)

    async def _has_room(self, most: int) -> bool:
        """Whether one more sequence may be checked; where each one is, wait a while for others to end."""
        if self._running < most or most == _MOST_AUDITS:
            return self._running < most
        try:
            async with asyncio.timeout(ROOM_SECONDS):
                while self._running >= most:
                    self._ends.clear()
                    await self._ends.wait()
        except TimeoutError:
            return False
        return True

    def _skip(self, reason: str) -> None:
        self.skipped += 1
        self.metrics.verification_skipped.labels(reason).inc()

    def _ended(self, reason: str = "") -> None:
        self._running -= 1
        self._ends.set()
        if reason:
            self._skip(reason)


class Audit:
    """The checks of one sequence, in the background, one after the other. It ends with the sequence, or when it leaves the pipeline."""

    def __init__(self, verifier: Verifier, wanted: Verification, checks: Sequence[Check], sequence: str) -> None:
        self._verifier, self._wanted, self._checks, self._sequence = verifier, wanted, checks, sequence
        self._tokens: list[int] = []
        self._held = 0
        self._done = 0
        self._over = False
        self._wake = asyncio.Event()
        self._replicated = {check: self._replica(check) for check in checks if check.referee is not None}
        self._task = asyncio.create_task(self._run())
        verifier._tasks.add(self._task)
        self._task.add_done_callback(verifier._tasks.discard)

    def ran(self, tokens: Sequence[int], held: int) -> None:
        """The pipeline holds the first `held` of these tokens."""
        if held - self._done >= CHECK_TOKENS:
            self._tokens, self._held = list(tokens[:held]), held
            self._wake.set()

    def end(self, tokens: Sequence[int], held: int) -> None:
        """Nothing more comes; what was not checked yet is checked now."""
        if not self._over:
            self._tokens, self._held, self._over = list(tokens[:held]), held, True
            self._wake.set()

    async def finish(self, tokens: Sequence[int], held: int) -> None:
        """End, and wait for the last check, but not for ever: the sequence is about to begin anew, and what was recorded of it goes.

        Otherwise a segment could do wrong and fail a step before the check, and nobody would ever look.
        """
        self.end(tokens, held)
        await asyncio.wait((self._task,), timeout=_FINISH_SECONDS)

    async def _run(self) -> None:
        reason = ""
        try:
            while not (self._over and self._done >= self._held):
                if self._done >= self._held:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                end = min(self._held, self._done + self._verifier.most_tokens)
                results = [await self._check(check, self._done, end) for check in self._checks]
                if not all(results):
                    return
                self._done = end
        except StepError as failure:
            _log.info("the check of sequence %s ends at token %d: %s", self._sequence, self._done, failure)
            reason = failure.code
        finally:
            self._verifier._ended(reason)
            await self._clean_up()

    def _replica(self, check: Check) -> Replicated:
        verifier, tolerance = self._verifier, self._wanted.tolerance
        return Replicated(
            verifier.steps, check, self._sequence, verifier.kept, within=lambda found: within(found, tolerance), told=verifier.counted
        )

    async def _check(self, check: Check, position: int, end: int) -> bool:
        steps, tokens = self._verifier.steps, end - position
        seconds = _SECONDS + tokens * _SECONDS_PER_TOKEN
        given: Hidden
        if check.before is not None:
            given = await steps.recorded(check.before, self._sequence, OUTPUT, (position, tokens), seconds)
        else:
            given = "int64", [tokens], array.array("q", self._tokens[position:end]).tobytes()
        received = await steps.recorded(check.after, self._sequence, INPUT, (position, tokens), seconds)
        if (replicated := self._replicated.get(check)) is not None:
            blamed = await replicated.examine(position, given, received, seconds)
            for each in blamed:
                self._verifier.blame(each.segments, each.found, self._sequence, self._wanted.tolerance)
            return not blamed
        dtype, shape, data = given
        found = await steps.verify(check.verifier, self._sequence, position, (dtype, shape, data + received[2]), seconds)
        return self._verifier.judge(check, found, self._sequence, self._wanted.tolerance)

    async def _clean_up(self) -> None:
        """Let witnesses and verifiers forget the sequence; they do so by themselves after a while, too."""
        steps, asked = self._verifier.steps, []
        for replicated in self._replicated.values():
            replicated.forget()
        for check in self._checks:
            asked += [steps.release((hop,), self._sequence, _RECORD_SECONDS) for hop in check.verifiers]
            for hop, side in ((check.before, OUTPUT), (check.after, INPUT)):
                if hop is not None:
                    asked.append(steps.unrecord(hop, self._sequence, side, _RECORD_SECONDS))
        await asyncio.gather(*asked, return_exceptions=True)


def _failed(sequence: str, position: int, tokens: int, error: float, limit: float) -> FailedCheck:
    now = datetime.now(UTC).replace(microsecond=0)
    rounded = {"error": float(f"{error:.4g}"), "limit": float(f"{limit:.4g}")}
    return FailedCheck(since=now, sequence=sequence, position=position, tokens=tokens, **rounded)


def _checks_of(wanted: Verification | None, pipeline: Pipeline) -> tuple[Check, ...]:
    """Those whose segments and witnesses are all in the pipeline, side by side."""
    if wanted is None:
        return ()
    names = [hop.segment for hop in pipeline]
    return tuple(check for check in wanted.checks if _stands(check, names))


def _stands(check: Check, names: Sequence[str]) -> bool:
    run = [*([check.before.segment] if check.before else []), *check.segments, check.after.segment]
    at = names.index(run[0]) if run[0] in names else -1
    return at >= 0 and (check.before is not None or at == 0) and names[at : at + len(run)] == run
