"""Sending to the next segment: its name checked and resolved, over a lasting wire, answers by callback.

A wire is opened when it is first needed, in a thread of its own, and again after it was lost: then the name is resolved afresh, as a
segment that went and came back has another address. While it cannot be opened, sending fails at once, and it is tried again ever
less often, once a second in the end.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from splitinference_protocol.addresses import separated
from splitinference_protocol.wire.errors import BAD_REQUEST, DEADLINE_EXCEEDED, NEXT_HOP_FAILED, OVERLOADED, SegmentError
from splitinference_protocol.wire.frames import MOST_ANSWER
from splitinference_protocol.wire.request import SEGMENT_NAME, Hop
from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.wire import WireError
from splitinference_segment.peers.wire_client import Wire
from splitinference_segment.settings import Settings

GRACE_S = 0.25  # the next segment answers "deadline exceeded" itself, with its name; only its silence ends the call here
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 1.0  # between two tries to connect
MOST_WAITING = 256  # requests, while a wire is being opened
MOST_WAITING_BYTES = 64 << 20
MOST_PEERS = 64
_log = logging.getLogger(__name__)

Reply = tuple[bytes, bytes]
Came = Callable[[Reply | SegmentError], None]


def address_of(name: str, settings: Settings) -> str:
    """host:port of a peer's wire. SegmentError `bad_request` for a name that is not one of this resource's segments."""
    if not SEGMENT_NAME.fullmatch(name):
        raise SegmentError(BAD_REQUEST, f"{name!r:.100} is not a segment's name (one DNS label)")
    if not name.startswith(settings.peer_prefix):
        raise SegmentError(BAD_REQUEST, f"{name!r} does not start with {settings.peer_prefix!r}: not a segment of this resource")
    if settings.peer_addresses:
        if name not in settings.peer_addresses:
            raise SegmentError(BAD_REQUEST, f"{name!r} is not among the given peers")
        return settings.peer_addresses[name]
    return f"{name}{settings.peer_suffix}:{settings.wire_port}"


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A request that is to be sent."""

    meta: bytes
    data: bytes
    until: float
    most: int
    done: Came


@dataclass(eq=False)
class _Peer:
    """The way to one segment."""

    hop: Hop
    wire: Wire | None = None
    connecting: bool = False
    waiting: list[_Waiting] = field(default_factory=list)
    pause_s: float = 0.0
    try_at: float = 0.0
    problem: str = ""
    used_at: float = 0.0


class Hops:
    """Ways to peers, made when first needed and kept."""

    def __init__(self, settings: Settings, identity: Identity | None) -> None:
        """Nothing is opened yet."""
        self._settings, self._identity = settings, identity
        self._peers: dict[Hop, _Peer] = {}
        self._closed = False
        self._lock = threading.Lock()

    def send(self, hop: Hop, meta: bytes, data: bytes, timeout_s: float, done: Came, *, most: int = MOST_ANSWER) -> None:
        """Send without waiting. `done` is called once, maybe on another thread. `most`: bytes that the answer's DATA may have.

        Raises:
            SegmentError: the name is not one of this resource's segments; `done` is not called.
        """
        address_of(hop.segment, self._settings)
        request = _Waiting(meta, data, time.monotonic() + timeout_s + GRACE_S, most, done)
        with self._lock:
            peer = self._peer(hop)
            wire = peer.wire
        if wire is not None:
            try:
                _send(wire, hop, request)
                return
            except WireError as problem:
                _log.info("the wire to %s is lost: %s", hop.segment, problem)
        failure = self._queue(peer, wire, request)
        if failure is not None:
            done(failure)

    @property
    def wires(self) -> int:
        """Peers to which there is a wire."""
        with self._lock:
            return sum(peer.wire is not None and peer.wire.alive for peer in self._peers.values())

    def close(self) -> None:
        """Close every wire; what is under way fails."""
        with self._lock:
            self._closed = True
            peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            if peer.wire is not None:
                peer.wire.close()

    def _peer(self, hop: Hop) -> _Peer:
        """With the lock. Of too many peers the one that was not used for longest is forgotten."""
        peer = self._peers.get(hop)
        if peer is None:
            idle = [p for p in self._peers.values() if not p.connecting and not (p.wire is not None and p.wire.awaited)]
            if len(self._peers) >= MOST_PEERS and idle:
                oldest = min(idle, key=lambda p: p.used_at)
                del self._peers[oldest.hop]
                if oldest.wire is not None:
                    oldest.wire.close()
            peer = self._peers[hop] = _Peer(hop)
        peer.used_at = time.monotonic()
        return peer

    def _queue(self, peer: _Peer, lost: Wire | None, request: _Waiting) -> SegmentError | None:
        """Let it wait for a new wire; why not, if it cannot."""
        name = peer.hop.segment
        with self._lock:
            if peer.wire is lost:
                peer.wire = None
            if self._closed:
                return SegmentError(NEXT_HOP_FAILED, "the segment is stopping")
            if not peer.connecting and time.monotonic() < peer.try_at:
                return SegmentError(NEXT_HOP_FAILED, f"{name}: {peer.problem}")
            waiting = sum(len(each.data) for each in peer.waiting)
            if len(peer.waiting) >= MOST_WAITING or waiting + len(request.data) > max(MOST_WAITING_BYTES, len(request.data)):
                return SegmentError(OVERLOADED, f"{len(peer.waiting)} requests wait for a connection to {name}")
            peer.waiting.append(request)
            if peer.connecting:
                return None
            peer.connecting = True
        threading.Thread(target=self._connect, args=(peer,), name="wire-connect", daemon=True).start()
        return None

    def _connect(self, peer: _Peer) -> None:
        wire, problem = None, ""
        try:
            host, port = separated(address_of(peer.hop.segment, self._settings))
            wire = Wire(host, port, peer.hop.model, self._identity)
        except (WireError, SegmentError, ValueError) as failure:
            problem = str(failure)
            _log.info("no wire to %s: %s", peer.hop.segment, problem)
        with self._lock:
            if wire is not None and self._closed:
                wire.close()
                wire, problem = None, "the segment is stopping"
            peer.problem = problem
            peer.pause_s = 0.0 if wire is not None else min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * peer.pause_s))
            peer.try_at = time.monotonic() + peer.pause_s
        while waiting := self._rest(peer, wire):
            for request in waiting:
                try:
                    if wire is None:
                        raise WireError(problem)
                    _send(wire, peer.hop, request)
                except WireError as failure:
                    request.done(SegmentError(NEXT_HOP_FAILED, f"{peer.hop.segment}: {failure}"))

    def _rest(self, peer: _Peer, wire: Wire | None) -> list[_Waiting]:
        """What still waits; when nothing does, the wire is everybody's. So what came first is sent first, as chunks of a prompt are."""
        with self._lock:
            waiting, peer.waiting = peer.waiting, []
            if not waiting:
                peer.wire, peer.connecting = wire, False
            return waiting


def _send(wire: Wire, hop: Hop, request: _Waiting) -> None:
    """Raises WireError when nothing was sent; `done` is not called then."""

    def came(reply: Reply | WireError | TimeoutError) -> None:
        match reply:
            case TimeoutError():
                request.done(SegmentError(DEADLINE_EXCEEDED, f"{hop.segment} did not answer before the deadline"))
            case WireError():
                request.done(SegmentError(NEXT_HOP_FAILED, f"{hop.segment}: {reply}"))
            case _:
                request.done(reply)

    left_s = request.until - time.monotonic()
    if left_s <= 0:
        came(TimeoutError())
    else:
        wire.send(request.meta, request.data, left_s, came, request.most)
