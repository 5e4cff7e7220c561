"""The wire: frames between gateway and segments, and from segment to segment, over one lasting TCP connection with mutual TLS.

It leads from Python to Python, past Triton's frontends. A frame wakes one thread. The format is in splitinference_protocol.wire.frames;
this is its side for threads.
"""

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from splitinference_protocol.wire import frames
from splitinference_protocol.wire.frames import HEAD, UNSENT

PIECE = 4 << 20
RECEIVE = 1 << 16
RECORD = 1 << 14  # most that TLS puts into one

Buffer = bytes | bytearray | memoryview


class WireError(Exception):
    """The connection cannot be had or is no more; the message says why."""


class Codec(Protocol):
    """What is between frames and the socket. `sealed` is called with the connection's lock held, the others by the thread that reads."""

    def ready(self, count: int) -> bytearray | None:
        """So many bytes of what has come already; None where they are not all there. A small frame comes in one piece."""

    def receive(self, view: memoryview, lock: threading.Lock) -> int:
        """Wait for content and put it into `view`: how many bytes; 0 at the end."""

    def sealed(self, parts: list[Buffer]) -> list[Buffer]:
        """What is to be sent for these parts of a frame."""


class _Pieces:
    """Content that came in pieces: the rest of the last one, a piece of plain text or a record of TLS."""

    def __init__(self) -> None:
        self._rest = memoryview(b"")

    def ready(self, count: int) -> bytearray | None:
        """So many bytes of the rest; None where it has fewer."""
        if len(self._rest) < count:
            return None
        taken, self._rest = bytearray(self._rest[:count]), self._rest[count:]
        return taken

    def _part(self, view: memoryview) -> int:
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class Plain(_Pieces):
    """No encryption: for tests and benchmarks on loopback."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__()
        self._socket = connected

    def receive(self, view: memoryview, lock: threading.Lock) -> int:
        """As it came."""
        if not self._rest:
            if len(view) >= RECEIVE:
                return self._socket.recv_into(view)
            self._rest = memoryview(self._socket.recv(RECEIVE))
        return self._part(view)

    def sealed(self, parts: list[Buffer]) -> list[Buffer]:
        """As it is."""
        return parts


class Sealed(_Pieces):
    """TLS without a socket of its own: an SSLSocket must not be used by two threads at once, and its writes may wait."""

    def __init__(self, connected: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        super().__init__()
        self._socket, self._tls, self._incoming, self._outgoing = connected, tls, incoming, outgoing

    def receive(self, view: memoryview, lock: threading.Lock) -> int:
        """Decrypted. The thread waits for bytes without the lock. A small frame is one record, and read at once."""
        if self._rest:
            return self._part(view)
        came = b""
        while True:
            with lock:
                self._incoming.write(came)
                # To try in vain would cost an exception for each frame.
                count = self._read(view) if self._incoming.pending or self._tls.pending() else None
                if count is not None:
                    return count
                if self._outgoing.pending > RECEIVE:  # answers to a peer that keeps changing its key
                    return 0
            came = self._socket.recv(RECEIVE)
            if not came:
                return 0

    def _read(self, view: memoryview) -> int | None:
        """With the lock: one record, or for a large view as much of it as it takes; None where it has not all come, 0 at the end."""
        try:
            if len(view) >= RECORD:
                return int(self._tls.read(len(view), view))
            self._rest = memoryview(self._tls.read(RECORD))
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLEOFError:
            return 0
        return self._part(view)

    def sealed(self, parts: list[Buffer]) -> list[Buffer]:
        """Encrypted; small parts share a record."""
        small, *large = [b"".join(parts[:2]), parts[2]] if len(parts[2]) > RECEIVE else [b"".join(parts)]
        for part in (small, *large):
            if len(part):
                self._tls.write(part)
        return [self._outgoing.read()]


class Account:
    """Bytes that wait to be sent on all connections of one server; `over` is called when they are too many."""

    def __init__(self, limit: int, over: Callable[[], None]) -> None:
        self._limit, self._over, self._bytes = limit, over, 0
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more, or fewer."""
        with self._lock:
            self._bytes += count
            over = count > 0 and self._bytes > self._limit
        if over:
            self._over()


class Connection:
    """One socket. Frames are written by any thread, without waiting; they are read by the one thread that calls `read`."""

    def __init__(
        self, connected: socket.socket, codec: Codec | None = None, *, unsent: int = UNSENT, account: Account | None = None
    ) -> None:
        """Take over a connected socket. `unsent`: bytes that may wait for the peer before the connection is given up."""
        connected.settimeout(None)
        frames.keep(connected)
        self._socket, self._codec = connected, codec or Plain(connected)
        self._limit, self._account = unsent, account
        self._left: deque[Buffer] = deque()  # what the kernel did not take at once
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._writing = False
        self._closed = ""
        self.unsent = 0
        self.progress_at = time.monotonic()  # when the peer last took something, while anything waits
        self.frame_until = float("inf")  # when the frame that is being read has to be complete

    @property
    def closed(self) -> str:
        """Why it was closed here; empty: it was not."""
        return self._closed

    def write(self, number: int, meta: bytes, data: Buffer) -> None:
        """Send one frame; what does not fit into the kernel's buffer is sent by a thread of its own.

        Raises:
            WireError: the connection is closed, or the peer has left too much unread.
        """
        with self._lock:
            if self._closed:
                raise WireError(self._closed)
            full = self.unsent > self._limit
            if not full:
                left = self._send([frames.head(number, meta, data), meta, data])
        if full:
            self.close("the peer does not read what is sent to it")
            raise WireError(self._closed)
        if left and self._account is not None:
            self._account.add(left)

    def read(self, most_meta: int, most_data: int) -> tuple[int, bytes, bytearray]:
        """The next frame.

        Raises:
            WireError: the other side closed, or sent what is no frame.
        """
        number, meta_bytes, data_bytes = self.read_head()
        if meta_bytes > most_meta or data_bytes > most_data:
            raise WireError(f"{meta_bytes} bytes of META and {data_bytes} of DATA; at most {most_meta} and {most_data} are taken")
        return number, bytes(self.read_exactly(meta_bytes)), self.read_end(data_bytes)

    def read_head(self) -> tuple[int, int, int]:
        """Number, bytes of META and bytes of DATA of the next frame. Raises WireError as above."""
        first = self.read_exactly(1)
        began = time.monotonic()
        self.frame_until = began + frames.frame_seconds(0)
        number, meta_bytes, data_bytes = HEAD.unpack(first + self.read_exactly(HEAD.size - 1))
        self.frame_until = began + frames.frame_seconds(meta_bytes + data_bytes)
        return number, meta_bytes, data_bytes

    def read_end(self, count: int) -> bytearray:
        """The last part of a frame."""
        content = self.read_exactly(count)
        self.frame_until = float("inf")
        return content

    def skip(self, count: int) -> None:
        """Leave out the rest of a frame, without keeping it."""
        while count:
            count -= len(self.read_exactly(min(count, RECEIVE)))
        self.frame_until = float("inf")

    def wait_while(self, busy: Callable[[], bool]) -> None:
        """Until it is not, or the connection is closed. What changes it calls `wake`."""
        with self._changed:
            while busy() and not self._closed:
                self._changed.wait(1.0)

    def wake(self) -> None:
        """Let `wait_while` look again."""
        with self._changed:
            self._changed.notify_all()

    def close(self, why: str = "the connection was closed here") -> None:
        """End both directions; a thread that reads is woken. May be called twice, by any thread."""
        with self._changed:
            if self._closed:
                return
            self._closed = why
            self._left.clear()
            left, self.unsent = self.unsent, 0
            self._changed.notify_all()
        if self._account is not None:
            self._account.add(-left)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """Give the descriptor back: by the thread that reads, after its last read."""
        self.close()
        self._socket.close()

    def read_exactly(self, count: int) -> bytearray:
        """So many bytes; memory grows with what came, not with what was announced. Raises WireError as `read` does."""
        if (ready := self._codec.ready(count)) is not None:
            return ready
        content, filled = bytearray(min(count, PIECE)), 0
        try:
            while filled < count:
                if filled == len(content):
                    content += bytes(min(count - filled, filled))
                with memoryview(content) as view:
                    got = self._codec.receive(view[filled:], self._lock)
                if not got:
                    raise WireError(self._closed or "the other side closed the connection")
                filled += got
        except (OSError, ValueError) as problem:  # ValueError: closed here
            raise WireError(self._closed or str(problem)) from problem
        return content

    def _send(self, parts: list[Buffer]) -> int:
        """With the lock: send what the kernel takes; how many bytes are left for the writer."""
        try:
            sealed = self._codec.sealed(parts)
            sent = 0 if self._left else self._socket.sendmsg(sealed, (), socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except (OSError, ValueError) as problem:
            raise WireError(str(problem)) from problem
        left = sum(map(len, sealed)) - sent
        if left:
            self.progress_at = self.progress_at if self.unsent else time.monotonic()
            self._left.append(b"".join(sealed)[sent:] if len(sealed) > 1 else memoryview(sealed[0])[sent:])
            self.unsent += left
            if not self._writing:
                self._writing = True
                threading.Thread(target=self._write_left, name="wire-writer", daemon=True).start()
        return left

    def _write_left(self) -> None:
        """Until nothing is left."""
        while True:
            with self._changed:
                if not self._left or self._closed:
                    self._writing = False
                    self._changed.notify_all()
                    return
                content = memoryview(self._left[0])
            try:
                sent = self._socket.send(content)
            except OSError as problem:
                self.close(str(problem))
                continue
            with self._changed:
                if self._closed:
                    continue
                self.progress_at = time.monotonic()
                self.unsent -= sent
                if sent == len(content):
                    self._left.popleft()
                else:
                    self._left[0] = content[sent:]
                self._changed.notify_all()
            if self._account is not None:
                self._account.add(-sent)
