"""The asking side of the wire: see wire.py."""

import itertools
import socket
import ssl
import threading
import time
from collections.abc import Callable

from splitinference_protocol.addresses import joined
from splitinference_protocol.wire import frames
from splitinference_protocol.wire.frames import ANSWER_BYTES, IDLE_SECONDS, MAX_META, MOST_ANSWER, OPEN_SECONDS
from splitinference_protocol.wire.operations import SEGMENT
from splitinference_segment.peers.identity import Identity, IdentityError
from splitinference_segment.peers.wire import RECEIVE, Buffer, Codec, Connection, Plain, Sealed, WireError

LOOK_S = 0.1  # how often deadlines are looked at, while anything is awaited

Done = Callable[["tuple[bytes, bytes] | WireError | TimeoutError"], None]


class Wire:
    """A connection to one segment's WireServer. `send` never waits; a lost connection fails all that is awaited and stays lost."""

    def __init__(self, host: str, port: int, model: str, identity: Identity | None, *, idle_s: float = IDLE_SECONDS) -> None:
        """Connect; blocks for OPEN_SECONDS at most, and for the look into DNS.

        Raises:
            WireError: it does not listen, is not of this resource, or serves another model.
        """
        try:
            connected = socket.create_connection((host, port), timeout=OPEN_SECONDS)
            try:
                codec = _greeted(connected, model, identity, time.monotonic() + OPEN_SECONDS)
            except BaseException:
                connected.close()
                raise
        except (OSError, IdentityError) as problem:
            raise WireError(f"{joined(host, port)}: {problem}") from problem
        self._connection = Connection(connected, codec)
        self._idle_s = idle_s
        self._awaited: dict[int, tuple[float, int, Done]] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._used_at = time.monotonic()
        self._lost: WireError | None = None
        threading.Thread(target=self._read, name="wire-client", daemon=True).start()
        threading.Thread(target=self._look, name="wire-deadlines", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether frames can be sent."""
        return self._lost is None

    @property
    def awaited(self) -> int:
        """Answers that are still to come."""
        return len(self._awaited)

    def send(self, meta: bytes, data: Buffer, timeout_s: float, done: Done, most: int = MOST_ANSWER) -> None:
        """Send; `done` is called once, with META and DATA of the answer, or with why there is none. `most`: bytes that DATA may have.

        Raises:
            WireError: the connection is lost; nothing was sent, and `done` is not called.
        """
        number = next(self._numbers)
        with self._changed:
            if self._lost is not None:
                raise self._lost
            self._used_at = time.monotonic()
            self._awaited[number] = (self._used_at + timeout_s, most, done)
            if len(self._awaited) == 1:
                self._changed.notify()
        try:
            self._connection.write(number, meta, data)
        except WireError:
            if self._take(number) is None:
                return  # the reader saw the loss first, and has told `done`
            raise

    def close(self) -> None:
        """Close; what is awaited fails."""
        self._lose(WireError("the connection was closed here"))

    def _take(self, number: int) -> Done | None:
        with self._changed:
            found = self._awaited.pop(number, None)
        return None if found is None else found[2]

    def _read(self) -> None:
        connection = self._connection
        try:
            while True:
                number, meta_bytes, data_bytes = connection.read_head()
                with self._changed:
                    _, most, _ = self._awaited.get(number, (0.0, -1, None))
                if most < 0:  # nobody waits for it any more
                    connection.skip(meta_bytes + data_bytes)
                    continue
                if meta_bytes > MAX_META or data_bytes > most:
                    raise WireError(f"an answer of {meta_bytes} bytes of META and {data_bytes} of DATA, expected {most} at most")
                meta, data = bytes(connection.read_exactly(meta_bytes)), connection.read_end(data_bytes)
                done = self._take(number)
                if done is not None:
                    done((meta, bytes(data)))
        except WireError as problem:
            self._lose(problem)
        finally:
            self._lose(WireError("the reader ended"))
            connection.release()

    def _look(self) -> None:
        """End what has waited too long, and the connection when it is not used or a frame stays unfinished."""
        while True:
            with self._changed:
                if not self._awaited and self._lost is None:
                    self._changed.wait(max(LOOK_S, self._used_at + self._idle_s - time.monotonic()))
                if self._lost is not None:
                    return
                now = time.monotonic()
                late = [number for number, (deadline, _, _) in self._awaited.items() if deadline < now]
                overdue = [self._awaited.pop(number)[2] for number in late]
                idle = not self._awaited and now - self._used_at >= self._idle_s
            for done in overdue:
                done(TimeoutError())
            if idle:
                self._lose(WireError("the connection was not used"))
            elif now > self._connection.frame_until:
                self._lose(WireError("an answer was not finished in time"))
            else:
                time.sleep(LOOK_S)

    def _lose(self, why: WireError) -> None:
        with self._changed:
            if self._lost is not None:
                return
            self._lost = why
            awaited, self._awaited = self._awaited, {}
            self._changed.notify_all()
        self._connection.close(str(why))
        for _, _, done in awaited.values():
            done(why)


def _greeted(connected: socket.socket, model: str, identity: Identity | None, until: float) -> Codec:
    """Handshake and greeting. Raises WireError, OSError or IdentityError."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = None if identity is None else identity.contexts().client.wrap_bio(incoming, outgoing)

    def wait() -> bytes:
        left = until - time.monotonic()
        if left <= 0:
            raise WireError("no greeting in time")
        connected.settimeout(left)
        came = connected.recv(RECEIVE)
        if not came:
            raise WireError("the other side closed the connection")
        return came

    codec: Codec = Plain(connected)
    if tls is not None and identity is not None:
        codec = Sealed(connected, tls, incoming, outgoing)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                connected.sendall(outgoing.read())
                incoming.write(wait())
        role = identity.role_of(tls)
        if role != SEGMENT:
            raise IdentityError(f"the peer is a {role}, expected a segment")
    for part in codec.sealed([frames.greeting(model), b"", b""]):
        connected.sendall(part)
    answer = bytearray()
    while len(answer) < ANSWER_BYTES:
        if tls is None:
            connected.settimeout(max(0.001, until - time.monotonic()))
            piece = connected.recv(ANSWER_BYTES - len(answer))
        else:
            try:
                piece = tls.read(ANSWER_BYTES - len(answer))
            except ssl.SSLWantReadError:
                incoming.write(wait())
                continue
        if not piece:
            raise WireError("the other side closed the connection")
        answer += piece
    if answer != frames.YES:
        raise WireError(f"it does not serve {model}")
    return codec
