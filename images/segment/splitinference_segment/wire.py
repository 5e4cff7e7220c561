"""The wire: frames between the Python backends of two segments, over one lasting TCP connection, past both Triton frontends.

A hop by gRPC wakes half a dozen threads in four processes, whose code is no longer in the caches after a step's layers went through
them; a frame wakes one thread. What is in a frame is what gRPC would carry: META and DATA. Format, little-endian, version 1:

    connecting side: b"SIW1", u16 length, name of the model that it expects; answer: b"SIW1", u8 0 (yes) or 1 (another model is here)
    then, both ways: u64 number, u32 bytes of META, u32 bytes of DATA, META, DATA; an answer has its request's number
"""

import contextlib
import socket
import struct
import threading
from collections import deque
from typing import Any

MAGIC = b"SIW1"
HEAD = struct.Struct("<QII")
MAX_META = 1 << 20
MAX_DATA = 1 << 31
PIECE = 4 << 20
OPEN_S = 5.0  # to connect, and to be greeted
SILENT_MS = 5_000  # what a peer that is gone may leave unacknowledged

Buffer = bytes | bytearray | memoryview


class WireError(Exception):
    """The connection cannot be had or is no more; the message says why."""


class Connection:
    """One socket. Frames are written by any thread, without waiting; they are read by the one thread that calls `frames`."""

    def __init__(self, connected: socket.socket) -> None:
        """Take over a connected socket."""
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", SILENT_MS)):
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        self._socket = connected
        self.reader = connected.makefile("rb", buffering=1 << 16)
        self._left: deque[bytes] = deque()  # what the kernel did not take at once
        self._changed = threading.Condition()
        self._writer: threading.Thread | None = None
        self._closed = False

    def write(self, number: int, meta: bytes, data: Buffer) -> None:
        """Send one frame; what does not fit into the kernel's buffer is sent by a thread of its own.

        Raises:
            WireError: the connection is closed.
        """
        parts: list[Buffer] = [HEAD.pack(number, len(meta), len(data)), meta, data]
        with self._changed:
            if self._closed:
                raise WireError("the connection is closed")
            sent = 0
            if not self._left:
                try:
                    sent = self._socket.sendmsg(parts, (), socket.MSG_DONTWAIT)
                except BlockingIOError:
                    sent = 0
                except OSError as problem:
                    raise WireError(str(problem)) from problem
            if sent < HEAD.size + len(meta) + len(data):
                self._left.append(b"".join(parts)[sent:])
                if self._writer is None:
                    self._writer = threading.Thread(target=self._write_left, name="wire-writer", daemon=True)
                    self._writer.start()
                self._changed.notify()

    def read(self) -> tuple[int, bytes, bytearray]:
        """The next frame.

        Raises:
            WireError: the other side closed, or sent what is no frame.
        """
        try:
            number, meta_bytes, data_bytes = HEAD.unpack(self._exactly(HEAD.size))
            if meta_bytes > MAX_META or data_bytes > MAX_DATA:
                raise WireError(f"{meta_bytes} bytes of META and {data_bytes} of DATA are no frame")
            return number, bytes(self._exactly(meta_bytes)), self._exactly(data_bytes)
        except (OSError, ValueError) as problem:  # ValueError: closed here
            raise WireError(str(problem)) from problem

    def close(self) -> None:
        """End both directions; a thread that reads is woken. May be called twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._socket.close()  # the descriptor goes when the reader is closed too

    def _exactly(self, count: int) -> bytearray:
        """So many bytes; memory grows with what came, not with what was announced."""
        content, filled = bytearray(min(count, PIECE)), 0
        while filled < count:
            if filled == len(content):
                content += bytes(min(count - filled, filled))
            with memoryview(content) as view:
                got = self.reader.readinto(view[filled:])
            if not got:
                raise WireError("the other side closed the connection")
            filled += got
        return content

    def _write_left(self) -> None:
        while True:
            with self._changed:
                while not self._left and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                content = self._left[0]
            try:
                self._socket.sendall(content)
            except OSError:
                self.close()
                return
            with self._changed:
                self._left.popleft()


def read_all(plain: Any, count: int) -> bytes:
    """Exactly `count` bytes of an unbuffered file.

    Raises:
        WireError: it ended before.
    """
    content = b""
    while len(content) < count:
        piece = plain.read(count - len(content))
        if not piece:
            raise WireError("the other side closed the connection")
        content += piece
    return content
