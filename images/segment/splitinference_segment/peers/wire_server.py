"""The listening side of the wire: see wire.py. What a peer may cost is bounded: threads, memory, and how long it leaves things undone."""

import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from splitinference_protocol.addresses import listen
from splitinference_protocol.wire.frames import OPEN_SECONDS, UNSENT
from splitinference_protocol.wire.operations import GATEWAY, LOADER, OPERATOR, SEGMENT
from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.wire import Account, Connection, WireError
from splitinference_segment.peers.wire_greeting import ANYBODY, Greetings, Half

ROLES: Mapping[str, int] = {GATEWAY: 64, SEGMENT: 64, OPERATOR: 8, LOADER: 8, ANYBODY: 64}
"""Most connections of each role. One more, and the one that is idle for longest gives way."""

Send = Callable[[bytes, bytes], None]
Handle = Callable[[str, bytes, bytearray, Send], None]
"""Role of the peer, META, DATA, and how to answer: once, from any thread."""
Refuse = Callable[[str], bytes]
"""META of the answer to a frame that is too large, from a sentence."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """What a peer may cost. Bytes, seconds, numbers."""

    meta: int = 1 << 20  # of one frame
    data: int = 256 << 20  # of one frame
    input: int = 512 << 20  # of all frames that are read or being worked on; a frame that does not fit waits, unread
    small: int = 64 << 10  # a frame up to here never waits for others
    in_progress: int = 512  # requests of one connection; with more nothing is read from it
    pause: int = 4 << 20  # with so much unsent nothing is read from a connection
    unsent: int = UNSENT  # with so much unsent a connection is closed
    unsent_total: int = 4 * UNSENT  # with so much unsent the connection with most of it is closed
    stuck_s: float = 30.0  # a peer that takes nothing for so long, of what waits for it, is closed
    idle_s: float = 600.0  # without any frame; peers connect again when they need to
    open_s: float = OPEN_SECONDS
    half_open: int = 128
    roles: Mapping[str, int] = field(default_factory=lambda: ROLES)
    look_s: float = 0.5


class InputBudget:
    """Bytes of large frames. Whoever finds too few waits, and reads nothing meanwhile."""

    def __init__(self, total: int) -> None:
        self._free, self._total = total, total
        self._changed = threading.Condition()

    @property
    def used(self) -> int:
        """Bytes taken now."""
        return self._total - self._free

    def take(self, count: int, gone: Callable[[], bool]) -> bool:
        """Wait for so many; False when the connection is gone first. More than there are in all is as good as all."""
        count = min(count, self._total)
        with self._changed:
            while self._free < count:
                if gone():
                    return False
                self._changed.wait(1.0)
            self._free -= count
        return True

    def give_back(self, count: int) -> None:
        """They are free again."""
        if not count:
            return
        with self._changed:
            self._free += min(count, self._total)
            self._changed.notify_all()


@dataclass(eq=False)
class _Peer:
    """An open connection."""

    connection: Connection
    role: str
    address: str
    frame_at: float
    in_progress: int = 0


class WireServer:
    """Takes connections of gateways, segments and the operator, and hands their frames to `handle`."""

    def __init__(
        self,
        port: int,
        model: str,
        handle: Handle,
        *,
        identity: Identity | None,
        refuse: Refuse = str.encode,
        bounds: Bounds | None = None,
        count: Callable[[str, str], None] = lambda name, reason: None,
    ) -> None:
        """Listen on `port`, for IPv4 and IPv6. `count` gets `refused` or `closed`, and a reason.

        Raises:
            OSError: the port is taken.
        """
        self._handle, self._refuse, self._count = handle, refuse, count
        self._bounds = bounds or Bounds()
        self._greetings = Greetings(
            model, identity, lambda reason: count("refused", reason), most=self._bounds.half_open, seconds=self._bounds.open_s
        )
        self._peers: set[_Peer] = set()
        self._lock = threading.Lock()
        self._input = InputBudget(self._bounds.input)
        self._account = Account(self._bounds.unsent_total, self._relieve)
        self._listener = listen(port)
        self.port: int = self._listener.getsockname()[1]
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._woken, self._waker = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._closing = False
        self._keeper = threading.Thread(target=self._keep, name="wire-server", daemon=True)
        self._keeper.start()

    def close(self) -> None:
        """Close the listener and every connection."""
        with self._lock:
            closed, self._closing = self._closing, True
        if closed:
            return
        with contextlib.suppress(OSError):  # it has seen it by itself
            self._waker.send(b"x")
        self._keeper.join(timeout=10)
        with self._lock:
            peers, self._peers = self._peers, set()
        for peer in peers:
            peer.connection.close()

    @property
    def connections(self) -> Mapping[str, int]:
        """Open ones by role."""
        with self._lock:
            return Counter(peer.role for peer in self._peers)

    @property
    def input_bytes(self) -> int:
        """Bytes of large frames that are read or being worked on."""
        return self._input.used

    def _keep(self) -> None:
        """The one thread that accepts, greets, and looks after time limits."""
        look_at = time.monotonic() + self._bounds.look_s
        while not self._closing:
            for key, _ in self._selector.select(max(0.0, look_at - time.monotonic())):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj is not self._woken and key.fileobj.fileno() >= 0:
                    self._greet(key.fileobj)
            if time.monotonic() >= look_at:
                for late in self._greetings.late():
                    self._forget(late)
                self._look()
                look_at = time.monotonic() + self._bounds.look_s
        self._selector.close()
        self._listener.close()
        self._greetings.close()
        self._woken.close()
        self._waker.close()

    def _accept(self) -> None:
        for _ in range(64):
            try:
                connected, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as problem:  # no descriptors left, most likely
                _log.warning("a connection cannot be accepted: %s", problem)
                time.sleep(0.05)
                return
            given_way = self._greetings.begin(connected, str(address[0]))
            if given_way is not None:
                self._forget(given_way)
            self._selector.register(connected, selectors.EVENT_READ)

    def _greet(self, connected: socket.socket) -> None:
        try:
            half = self._greetings.came(connected)
        except WireError as problem:
            _log.info("a connection is refused: %s", problem)
            self._forget(connected)
            return
        if half is not None:
            self._forget(connected)
            self._open(half)

    def _forget(self, connected: socket.socket) -> None:
        """A closed socket has no descriptor to find it by."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connected)

    def _open(self, half: Half) -> None:
        role = half.role or ANYBODY
        try:
            connection = Connection(half.connected, half.codec(), unsent=self._bounds.unsent, account=self._account)
        except OSError:  # gone already
            half.connected.close()
            return
        peer = _Peer(connection, role, half.address, time.monotonic())
        with self._lock:
            given_way = self._give_way(role)
            self._peers.add(peer)
        if given_way is not None:
            self._count("closed", "crowded_out")
            given_way.connection.close("others need the place of this connection")
        threading.Thread(target=self._serve, args=(peer,), name="wire-reader", daemon=True).start()

    def _give_way(self, role: str) -> _Peer | None:
        """With the lock: who leaves for one more of this role; of the address with most, the one that is idle for longest."""
        same = [peer for peer in self._peers if peer.role == role]
        if len(same) < self._bounds.roles.get(role, 1):
            return None
        busiest = Counter(peer.address for peer in same).most_common(1)[0][0]
        leaves = min((peer for peer in same if peer.address == busiest), key=lambda peer: (peer.in_progress > 0, peer.frame_at))
        self._peers.discard(leaves)
        return leaves

    def _serve(self, peer: _Peer) -> None:
        connection, bounds = peer.connection, self._bounds
        try:
            while True:
                connection.wait_while(lambda: connection.unsent > bounds.pause or peer.in_progress >= bounds.in_progress)
                number, meta_bytes, data_bytes = connection.read_head()
                if meta_bytes > 4 * bounds.meta or data_bytes > 4 * bounds.data:
                    raise WireError(f"{meta_bytes} bytes of META and {data_bytes} of DATA are no frame")
                if meta_bytes > bounds.meta or data_bytes > bounds.data:
                    connection.skip(meta_bytes + data_bytes)
                    self._count("refused", "too_large")
                    sentence = f"a request of {meta_bytes} bytes of META and {data_bytes} of DATA; at most {bounds.meta} and {bounds.data}"
                    connection.write(number, self._refuse(sentence), b"")
                    continue
                self._take(peer, number, meta_bytes, data_bytes)
        except WireError as problem:
            _log.debug("a connection of role %r ended: %s", peer.role, problem)
        finally:
            with self._lock:
                self._peers.discard(peer)
            connection.release()

    def _take(self, peer: _Peer, number: int, meta_bytes: int, data_bytes: int) -> None:
        """Read the rest of one frame, within the budget, and hand it over."""
        connection = peer.connection
        counted = meta_bytes + data_bytes if meta_bytes + data_bytes > self._bounds.small else 0
        if counted:
            until, connection.frame_until = connection.frame_until, float("inf")  # waiting is not the peer's fault
            began = time.monotonic()
            if not self._input.take(counted, lambda: bool(connection.closed)):
                raise WireError(connection.closed)
            connection.frame_until = until + time.monotonic() - began
        try:
            meta, data = bytes(connection.read_exactly(meta_bytes)), connection.read_end(data_bytes)
        except WireError:
            self._input.give_back(counted)
            raise
        with self._lock:
            peer.frame_at = time.monotonic()
            peer.in_progress += 1
        answered = threading.Lock()

        def send(meta: bytes, data: bytes) -> None:
            if not answered.acquire(blocking=False):
                return
            self._input.give_back(counted)
            with self._lock:
                peer.in_progress -= 1
                full = peer.in_progress == self._bounds.in_progress - 1
            with contextlib.suppress(WireError):  # nobody waits for the answer any more
                connection.write(number, meta, data)
            if full:
                connection.wake()

        try:
            self._handle(peer.role, meta, data, send)
        except Exception:  # noqa: BLE001 - a reader must outlive the failure of one request
            _log.exception("a request could not be handled")
            send(self._refuse("the segment failed"), b"")

    def _look(self) -> None:
        """Close what is idle, unfinished, or not read."""
        now = time.monotonic()
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            connection = peer.connection
            if now > connection.frame_until:
                self._cut(peer, "unfinished", "a frame was not finished in time")
            elif connection.unsent and now - connection.progress_at > self._bounds.stuck_s:
                self._cut(peer, "unread", "the peer does not read what is sent to it")
            elif now - peer.frame_at > self._bounds.idle_s and not peer.in_progress and not connection.unsent:
                self._cut(peer, "idle", "nothing came for a while")

    def _relieve(self) -> None:
        """Too much is unsent in all: whoever reads least gives way."""
        with self._lock:
            heaviest = max(self._peers, key=lambda peer: peer.connection.unsent, default=None)
        if heaviest is not None:
            self._cut(heaviest, "unread", "the peer does not read what is sent to it")

    def _cut(self, peer: _Peer, reason: str, sentence: str) -> None:
        if not peer.connection.closed:
            self._count("closed", reason)
            peer.connection.close(sentence)
