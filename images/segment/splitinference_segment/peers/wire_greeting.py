"""How a connection to the wire begins, on the listening side: handshake of TLS, who the peer is, which model it expects.

One thread does it for all connections, as bytes come. What is not done in time, says too much or is nobody we know is closed; when too
many have begun, the oldest one of the address with most of them gives way. So nobody who may not speak here keeps out anyone who may.
"""

import contextlib
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from splitinference_protocol.wire import frames
from splitinference_segment.peers.identity import Identity, IdentityError
from splitinference_segment.peers.wire import RECEIVE, Buffer, Codec, Plain, Sealed, WireError

HALF_OPEN = 128  # connections that have not been greeted
MOST_BYTES = 64 << 10  # certificates and greeting of one peer
ANYBODY = ""  # the role of whoever connects, where there are no certificates

Refused = Callable[[str], None]


@dataclass(eq=False)
class Half:
    """A connection that has not been greeted yet."""

    connected: socket.socket
    address: str
    until: float
    tls: ssl.SSLObject | None
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    role: str | None = None
    came: int = 0
    greeting: bytearray = field(default_factory=bytearray)

    def codec(self) -> Codec:
        """For the frames that follow."""
        if self.tls is None:
            return Plain(self.connected)
        return Sealed(self.connected, self.tls, self.incoming, self.outgoing)


class Greetings:
    """Those who are not greeted yet. Used by one thread alone, but for `count`."""

    def __init__(
        self, model: str, identity: Identity | None, refused: Refused, *, most: int = HALF_OPEN, seconds: float = frames.OPEN_SECONDS
    ) -> None:
        self._model, self._identity, self._refused = model.encode(), identity, refused
        self._most, self._seconds = most, seconds
        self._halves: dict[socket.socket, Half] = {}  # oldest first

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._halves)

    def begin(self, connected: socket.socket, address: str) -> socket.socket | None:
        """Take a connection; who has to give way for it, if anyone: already closed."""
        connected.setblocking(False)
        given_way = self._make_room()
        tls, incoming, outgoing = None, ssl.MemoryBIO(), ssl.MemoryBIO()
        if self._identity is not None:
            tls = self._identity.contexts().server.wrap_bio(incoming, outgoing, server_side=True)
        role = ANYBODY if tls is None else None
        self._halves[connected] = Half(connected, address, time.monotonic() + self._seconds, tls, incoming, outgoing, role)
        return given_way

    def came(self, connected: socket.socket) -> Half | None:
        """Bytes are there to be read: the connection, once it is greeted.

        Raises:
            WireError: it is closed now.
        """
        half = self._halves[connected]
        try:
            if not self._read(half):
                return None
        except (OSError, WireError, IdentityError) as problem:
            self.drop(connected, _reason(problem))
            raise WireError(str(problem)) from problem
        del self._halves[connected]
        return half

    def late(self) -> list[socket.socket]:
        """Close those whose time is over."""
        now = time.monotonic()
        late = [half.connected for half in self._halves.values() if half.until <= now]
        for connected in late:
            self.drop(connected, "late")
        return late

    def drop(self, connected: socket.socket, reason: str) -> None:
        """Close one."""
        if self._halves.pop(connected, None) is not None:
            self._refused(reason)
            connected.close()

    def close(self) -> None:
        """Close all."""
        for connected in self._halves:
            connected.close()
        self._halves.clear()

    def _make_room(self) -> socket.socket | None:
        if len(self._halves) < self._most:
            return None
        (busiest, _), *_ = Counter(half.address for half in self._halves.values()).most_common(1)
        oldest = next(half.connected for half in self._halves.values() if half.address == busiest)
        self.drop(oldest, "crowded_out")
        return oldest

    def _read(self, half: Half) -> bool:
        """Whether it is greeted now."""
        try:
            came = half.connected.recv(RECEIVE if half.tls is not None else self._missing(half))
        except BlockingIOError:
            return False
        if not came:
            raise WireError("it closed the connection")
        half.came += len(came)
        if half.came > MOST_BYTES:
            raise WireError("too much for a greeting")
        if half.tls is None:
            half.greeting += came
        else:
            half.incoming.write(came)
            try:
                if half.role is None:
                    half.tls.do_handshake()
                    if self._identity is not None:
                        half.role = self._identity.role_of(half.tls)
                while missing := self._missing(half):
                    piece = half.tls.read(missing)
                    if not piece:
                        raise WireError("it closed the connection")
                    half.greeting += piece
            except ssl.SSLWantReadError:
                pass
            finally:
                self._flush(half, [half.outgoing.read()])
        if self._missing(half):
            return False
        fits = frames.greeted_model(half.greeting) == self._model
        self._flush(half, half.codec().sealed([frames.YES if fits else frames.ANOTHER_MODEL, b"", b""]))
        if not fits:
            raise WireError("it expects another model")
        return True

    def _missing(self, half: Half) -> int:
        """Bytes of the greeting that are still to come, as far as that is known."""
        try:
            return frames.greeting_left(half.greeting)
        except ValueError as wrong:
            raise WireError(str(wrong)) from wrong

    def _flush(self, half: Half, parts: list[Buffer]) -> None:
        """A handshake fits into any socket's buffer; a peer for which it does not is none."""
        content = b"".join(parts)
        if content:
            with contextlib.suppress(BlockingIOError):
                if half.connected.send(content) == len(content):
                    return
            raise WireError("it does not read")


def _reason(problem: Exception) -> str:
    match problem:
        case ssl.SSLCertVerificationError():
            return "certificate"
        case ssl.SSLError():
            return "tls"
        case IdentityError():
            return "identity"
        case _:
            return "greeting"
