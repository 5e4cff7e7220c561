"""The port for metrics and health: `GET /metrics` is what Triton says on its own loopback, `GET /healthz` is ok or not ok.

Triton's HTTP server is not shown to other pods. This one reads a short request in a short time, from few connections at once. Of too many,
the oldest one of the address with the most of them gives way: who floods the port does not keep the kubelet out, and so ends no segment.
Triton is asked once a second at most, whoever asks.

Health is a real inference: Triton says "ready" even when the process that computes is dead. The kubelet asks here and does not start a
program in the pod, which costs a hundred times as much.
"""

import contextlib
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from splitinference_segment.server.probe import ProbeError, ask

MOST_CONNECTIONS = 16
MOST_HEAD = 8 << 10
MOST_BODY = 16 << 20
READ_S = 5.0
WRITE_S = 15.0
FRESH_S = 1.0
PROBE_S = 5.0  # a token that takes longer than this fails the test
_KIND = "text/plain; version=0.0.4; charset=utf-8"


class MetricsProxy:
    """Listens in threads of its own until `close`."""

    def __init__(
        self,
        listener: socket.socket,
        source_port: int,
        healthy: Callable[[], bool],
        *,
        most: int = MOST_CONNECTIONS,
        read_s: float = READ_S,
    ) -> None:
        """Serve on the listener what 127.0.0.1:source_port says, and what `healthy` does."""
        self._listener, self._most, self._read_s = listener, most, read_s
        self._source, self._healthy = Source(source_port), healthy
        self._open: dict[socket.socket, str] = {}  # the address of each, oldest first
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._closing = False
        threading.Thread(target=self._accept, name="metrics-accept", daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connected in self._open:
                _end(connected)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connected, address = self._listener.accept()
            except OSError:
                if not self._closing:
                    time.sleep(0.05)  # no descriptors left, most likely
                continue
            with self._room:
                while len(self._open) >= self._most:  # the thread of the oldest one ends when its connection does
                    (busiest, _), *_ = Counter(self._open.values()).most_common(1)
                    _end(next(each for each, where in self._open.items() if where == busiest))
                    self._room.wait(1.0)
                self._open[connected] = str(address[0])
            threading.Thread(target=self._serve, args=(connected,), name="metrics", daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        try:
            status, body = self._answer(_head(connected, time.monotonic() + self._read_s))
            head = f"HTTP/1.1 {status}\r\nContent-Type: {_KIND}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connected.settimeout(WRITE_S)
            connected.sendall(head.encode() + body)
        except OSError:
            pass
        finally:
            with self._room:
                del self._open[connected]
                connected.close()
                self._room.notify_all()

    def _answer(self, head: bytes) -> tuple[str, bytes]:
        method, _, rest = head.split(b"\r\n", 1)[0].partition(b" ")
        path, _, version = rest.partition(b" ")
        if not version.startswith(b"HTTP/1."):
            return "400 Bad Request", b"not HTTP/1.1\n"
        if (asked := path.partition(b"?")[0]) not in (b"/metrics", b"/healthz"):
            return "404 Not Found", b"only /metrics and /healthz are here\n"
        if method != b"GET":
            return "405 Method Not Allowed", b"only GET is answered\n"
        if asked == b"/healthz":
            return ("200 OK", b"ok\n") if self._healthy() else ("503 Service Unavailable", b"not ok\n")
        body = self._source.read()
        return ("503 Service Unavailable", b"the server does not answer\n") if body is None else ("200 OK", body)


class Health:
    """Whether one token runs through the segment's layers. Asked many times at once, it tries once, and not again for a second."""

    def __init__(self, port: int, model: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`port` is that of Triton's HTTP server on the loopback. `problem` says what was wrong the last time, for the log alone."""
        self._port, self._model, self._clock = port, model, clock
        self._lock = threading.Lock()
        self._tried_at, self._ok = float("-inf"), False
        self.problem = "not tried yet"

    def __call__(self) -> bool:
        """Blocks for PROBE_S at most, and as long as somebody else's try."""
        with self._lock:
            if self._clock() - self._tried_at >= FRESH_S:
                self._ok = self._tried()
                self._tried_at = self._clock()
            return self._ok

    def _tried(self) -> bool:
        try:
            answer = ask(self._port, self._model, {"op": "probe"}, PROBE_S)
            problem = "" if answer.get("ok") is True else str(answer.get("error", answer))[:500]
        except (OSError, ValueError, KeyError, IndexError, AttributeError, ProbeError) as wrong:
            problem = str(wrong) or type(wrong).__name__
        if problem != self.problem and (problem or self.problem):
            print(f"segment-serve: the segment's own test: {problem or 'passed'}", file=sys.stderr, flush=True)
        self.problem = problem
        return not problem


class Source:
    """Triton's metrics, a second old at most."""

    def __init__(self, port: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._port, self._clock = port, clock
        self._lock = threading.Lock()
        self._read_at, self._last = float("-inf"), b""

    def read(self) -> bytes | None:
        """None: it does not answer."""
        with self._lock:
            if self._clock() - self._read_at < FRESH_S:
                return self._last
            try:
                self._last = self._asked()
            except (OSError, ValueError):
                return None
            self._read_at = self._clock()
            return self._last

    def _asked(self) -> bytes:
        until = time.monotonic() + READ_S
        with socket.create_connection(("127.0.0.1", self._port), timeout=READ_S) as source:
            source.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            came = bytearray()
            while len(came) < MOST_BODY:
                source.settimeout(max(0.01, until - time.monotonic()))
                piece = source.recv(1 << 16)
                if not piece:
                    break
                came += piece
                head, mark, body = came.partition(b"\r\n\r\n")
                length = _length(bytes(head)) if mark else None
                if length is not None and len(body) >= length:
                    break
        head, _, body = bytes(came).partition(b"\r\n\r\n")
        length = _length(head)
        if b" 200 " not in head.split(b"\r\n", 1)[0] or length is None or len(body) < length:
            raise ValueError("not an answer with metrics")
        return bytes(body[:length])


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None


def _head(connected: socket.socket, until: float) -> bytes:
    """All up to the empty line. OSError when it is too long, too slow or not complete."""
    came = bytearray()
    while b"\r\n\r\n" not in came:
        left = until - time.monotonic()
        if left <= 0 or len(came) > MOST_HEAD:
            raise TimeoutError
        connected.settimeout(left)
        piece = connected.recv(4096)
        if not piece:
            raise ConnectionResetError
        came += piece
    return bytes(came)


def _end(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)
