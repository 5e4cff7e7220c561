"""How META and DATA get to a segment and back: over one wire per segment, opened when it is needed and again after it was lost."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from splitinference_gateway.pipeline.transport.wire import Wire, WireError
from splitinference_gateway.pipeline.transport.wire_tls import Identity
from splitinference_protocol.addresses import separated
from splitinference_protocol.wire.frames import MOST_ANSWER
from splitinference_protocol.wire.request import Hop

_GRACE_SECONDS = 0.25  # a segment that notices the deadline itself can still say which stage was late
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.1, 1.0  # between two tries to connect
_log = logging.getLogger(__name__)

Reply = tuple[bytes, bytes]
"""META and DATA."""


@dataclass(eq=False)
class NoAnswerError(Exception):
    """A segment did not answer; `in_time`: it failed before its time was over."""

    message: str
    in_time: bool


@dataclass(eq=False)
class _Peer:
    """The way to one segment."""

    wire: Wire | None = None
    opening: "asyncio.Task[Wire] | None" = None
    model: str = ""  # that is being connected to
    pause: float = 0.0
    try_at: float = 0.0
    problem: str = ""


@dataclass
class Connections:
    """One wire per segment. `address_of`: host:port of a segment's wire, by name. Without an identity there is no TLS: on loopback."""

    address_of: Callable[[str], str]
    identity: Identity | None = None
    _peers: dict[str, _Peer] = field(default_factory=dict)
    _tasks: set["asyncio.Task[Any]"] = field(default_factory=set)

    @property
    def wires(self) -> int:
        """Segments to which there is a wire."""
        return sum(peer.wire is not None and peer.wire.alive for peer in self._peers.values())

    async def send(self, hop: Hop, meta: bytes, data: bytes, seconds: float, most: int = MOST_ANSWER) -> Reply:
        """Exchange one request; `most`: bytes that the answer's DATA may have.

        Raises:
            NoAnswerError: the segment cannot be reached, is lost meanwhile, or does not answer within `seconds`.
        """
        until = time.monotonic() + seconds + _GRACE_SECONDS
        try:
            wire = await self._wire(hop, until)
            return await wire.exchange(meta, data, max(0.0, until - time.monotonic()), most)
        except TimeoutError as late:
            raise NoAnswerError(f"no answer within {seconds:.1f} s", in_time=False) from late
        except WireError as lost:
            raise NoAnswerError(str(lost), in_time=True) from lost

    def reconnect(self, segment: str) -> None:
        """Forget the connection to a segment: what is under way may still be answered."""
        peer = self._peers.pop(segment, None)
        if peer is not None:
            if peer.wire is not None:
                peer.wire.leave()
            if peer.opening is not None:
                self._background(_left(peer.opening))

    def retain(self, segments: set[str]) -> None:
        """Close the connections to all segments but these."""
        for segment in self._peers.keys() - segments:
            self.reconnect(segment)

    async def close(self) -> None:
        """Close all at once; what is under way fails."""
        peers, self._peers = list(self._peers.values()), {}
        tasks = {*self._tasks, *(peer.opening for peer in peers if peer.opening is not None)}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in peers:
            if peer.wire is not None:
                peer.wire.close()

    async def _wire(self, hop: Hop, until: float) -> Wire:
        """The wire, opened if there is none. All that wait for it share one try.

        Raises:
            WireError: it cannot be had, or was not to be had a moment ago.
            TimeoutError: not until then.
        """
        peer = self._peers.setdefault(hop.segment, _Peer())
        if peer.wire is not None and peer.wire.alive and peer.wire.model == hop.model:
            return peer.wire
        if peer.opening is None or peer.model != hop.model:
            if peer.problem and peer.model == hop.model and time.monotonic() < peer.try_at:
                raise WireError(peer.problem)
            peer.model = hop.model
            peer.opening = self._background(self._open(peer, hop))
        async with asyncio.timeout(max(0.0, until - time.monotonic())):
            try:
                return await asyncio.shield(peer.opening)
            except asyncio.CancelledError:
                if peer.opening is not None and peer.opening.cancelled():
                    raise WireError("the gateway is ending") from None
                raise

    async def _open(self, peer: _Peer, hop: Hop) -> Wire:
        host, port = separated(self.address_of(hop.segment))
        try:
            wire = await Wire.connect(host, port, hop.model, self.identity)
        except WireError as problem:
            _log.info("no wire to %s: %s", hop.segment, problem)
            if peer.model == hop.model:
                peer.problem = str(problem)
                peer.pause = min(_LONGEST_PAUSE_SECONDS, max(_FIRST_PAUSE_SECONDS, 2 * peer.pause))
                peer.try_at = time.monotonic() + peer.pause
                peer.opening = None
            raise
        if peer.wire is not None:
            peer.wire.leave()
        peer.wire = wire
        if peer.model == hop.model:
            peer.opening, peer.problem, peer.pause = None, "", 0.0
        return wire

    def _background(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for it has it too, and maybe nobody does any more


async def _left(opening: "asyncio.Task[Wire]") -> None:
    """A wire to a segment that is not wanted any more."""
    with contextlib.suppress(WireError):
        (await opening).leave()
