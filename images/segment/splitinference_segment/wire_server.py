"""The listening side of the wire: see wire.py."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable

import torch

from splitinference_segment.wire import MAGIC, OPEN_S, Connection, WireError, read_all

MAX_CONNECTIONS = 64

Handle = Callable[[bytes, torch.Tensor, Callable[[bytes, bytes], None]], None]


class WireServer:
    """Takes connections of other segments and hands their frames to `handle`, which answers each once, from any thread."""

    def __init__(self, port: int, model: str, handle: Handle) -> None:
        """Listen on `port`, or on any other if it is taken: peers ask for the number."""
        self._model, self._handle = model.encode(), handle
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server(("", port), backlog=MAX_CONNECTIONS)
        except OSError:
            self._listener = socket.create_server(("", 0), backlog=MAX_CONNECTIONS)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="wire-accept", daemon=True).start()

    def close(self) -> None:
        """Close the listener and every connection."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                full = len(self._connections) >= MAX_CONNECTIONS
            if full:
                connected.close()
            else:
                threading.Thread(target=self._serve, args=(connected,), name="wire-server", daemon=True).start()

    def _serve(self, connected: socket.socket) -> None:
        try:
            connected.settimeout(OPEN_S)
            with connected.makefile("rb", buffering=0) as plain:
                greeting = read_all(plain, len(MAGIC) + 2)
                expected = read_all(plain, struct.unpack("<H", greeting[len(MAGIC) :])[0])
            fits = expected == self._model
            if greeting[: len(MAGIC)] != MAGIC:
                raise WireError("no greeting")
            connected.sendall(MAGIC + bytes([not fits]))
            if not fits:
                raise WireError("another model")
        except (OSError, WireError):
            connected.close()
            return
        connection = Connection(connected)
        with self._lock:
            self._connections.add(connection)
        try:
            while True:
                number, meta, data = connection.read()

                def send(meta: bytes, data: bytes, number: int = number) -> None:
                    with contextlib.suppress(WireError):  # nobody waits for the answer any more
                        connection.write(number, meta, data)

                self._handle(meta, torch.frombuffer(data, dtype=torch.uint8) if data else torch.zeros(1, dtype=torch.uint8), send)
        except WireError:
            return
        finally:
            connection.close()
            connection.reader.close()
            with self._lock:
                self._connections.discard(connection)
