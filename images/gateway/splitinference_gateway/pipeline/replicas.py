"""Every step on two nodes: a replica computes what the checked segments computed, a witness compares, and a third node settles.

Neither the replica nor the third node learns what another gave, so nobody can agree without computing. The third one is asked only where
two outputs differ. It needs the sequence from its first token on, so the inputs are kept here, within a bound.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinference_gateway.pipeline.step_answers import Compared, Hidden, StepError
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_protocol.route import Check
from splitinference_protocol.wire.request import Hop

NO_OUTPUT = 1e9
"""The error of what has not the form of an output."""
MOST_KEPT_BYTES = 32 << 20
"""Inputs of all sequences that are kept for a third node."""
_log = logging.getLogger(__name__)


@dataclass
class Kept:
    """Bytes that are kept for all sequences of this gateway."""

    most: int = MOST_KEPT_BYTES
    used: int = 0

    def take(self, count: int) -> bool:
        """Count so many bytes more, if there is room."""
        if self.used + count > self.most:
            return False
        self.used += count
        return True


@dataclass(frozen=True)
class Blame:
    """Who gave a wrong output, and how far off it is; `settled`: a third node said so."""

    segments: tuple[str, ...]
    found: Compared
    settled: bool = True


@dataclass
class Replicated:
    """The checked segments of one sequence. `within`: whether two outputs so far apart can both be honest; `told`: gets each comparison."""

    steps: StepClient
    check: Check
    sequence: str
    kept: Kept
    within: Callable[[Compared], bool]
    told: Callable[[Compared], None]
    _inputs: list[tuple[int, Hidden]] = field(default_factory=list)
    _whole: bool = True
    _bytes: int = 0

    async def examine(self, position: int, given: Hidden, received: Hidden, seconds: float) -> tuple[Blame, ...]:
        """Compare an input's output on both nodes; who is to blame where they differ.

        Raises:
            StepError: the replica or the witness gave nothing that can be compared.
        """
        most = len(received[2])
        computed = await self._computed(self.check.verifier, position, given, most, seconds)
        if _form(computed) != _form(received):  # the witness has the model's own form
            wrong = Compared(given[1][0], position, NO_OUTPUT, NO_OUTPUT, position)
            return (Blame((self.check.verifier.segment,), wrong),)
        found = await self._apart(position, (computed, received), seconds)
        self.told(found)
        if self.within(found):
            self._keep(position, given)
            return ()
        return await self._settle(position, given, (computed, received), found, seconds)

    def forget(self) -> None:
        """Give back the room of what was kept."""
        self.kept.used -= self._bytes
        self._inputs, self._bytes, self._whole = [], 0, False

    async def _settle(
        self, position: int, given: Hidden, both: tuple[Hidden, Hidden], found: Compared, seconds: float
    ) -> tuple[Blame, ...]:
        replica, segments = (self.check.verifier.segment,), self.check.segments
        computed, received = both
        try:
            third = await self._third(position, given, len(received[2]), seconds)
            other = await self._apart(position, (third, computed), seconds)
            own = await self._apart(position, (third, received), seconds)
        except StepError as failure:
            # One of them is wrong, and nobody says which: neither may go on.
            _log.warning("sequence %s: %s and %s differ, and nobody settles it: %s", self.sequence, segments, replica, failure)
            return Blame(segments, found, settled=False), Blame(replica, found, settled=False)
        blamed = [Blame(who, error) for who, error in ((segments, own), (replica, other)) if not self.within(error)]
        return tuple(blamed)  # nobody, where the third output lies between the two

    async def _third(self, position: int, given: Hidden, most: int, seconds: float) -> Hidden:
        """The output of the third node, which runs what it has not run of the sequence first."""
        referee = self.check.referee
        if referee is None or not self._whole:
            raise StepError("not_kept", f"more than {self.kept.most} bytes of inputs were to be kept", "")
        while self._inputs:
            at, earlier = self._inputs[0]
            tokens, of_these = earlier[1][0], given[1][0]
            await self._computed(referee, at, earlier, most // of_these * tokens, seconds)
            self._drop_first()
        return await self._computed(referee, position, given, most, seconds)

    async def _computed(self, hop: Hop, position: int, given: Hidden, most: int, seconds: float) -> Hidden:
        return await self.steps.compute(hop, self.sequence, position, given, seconds, most=most)

    async def _apart(self, position: int, outputs: tuple[Hidden, Hidden], seconds: float) -> Compared:
        return await self.steps.compare(self.check.after, self.sequence, position, outputs, seconds)

    def _keep(self, position: int, given: Hidden) -> None:
        if not self._whole:
            return
        if not self.kept.take(len(given[2])):
            self.forget()
            return
        self._bytes += len(given[2])
        self._inputs.append((position, given))

    def _drop_first(self) -> None:
        size = len(self._inputs.pop(0)[1][2])
        self._bytes -= size
        self.kept.used -= size


def _form(hidden: Hidden) -> tuple[str, list[int]]:
    return hidden[0], list(hidden[1])


def most_audits(checks: Sequence[Check], spot: int, every: int) -> int:
    """Sequences that are checked at the same time: with replicas all that there may be."""
    return every if any(check.referee is not None for check in checks) else spot
