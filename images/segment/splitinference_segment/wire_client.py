"""The asking side of the wire: see wire.py."""

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable

from splitinference_segment.wire import MAGIC, OPEN_S, Buffer, Connection, WireError, read_all

LOOK_S = 0.1  # how often deadlines are looked at, while anything is awaited

Done = Callable[["tuple[bytes, bytes] | WireError | TimeoutError"], None]


class Wire:
    """A connection to one segment's WireServer. `send` never waits; a lost connection fails all that is awaited and stays lost."""

    def __init__(self, host: str, port: int, model: str) -> None:
        """Connect; blocks for OPEN_S at most.

        Raises:
            WireError: it does not listen, or serves another model.
        """
        name = model.encode()
        try:
            connected = socket.create_connection((host, port), timeout=OPEN_S)
            try:
                connected.sendall(MAGIC + struct.pack("<H", len(name)) + name)
                with connected.makefile("rb", buffering=0) as plain:
                    answer = read_all(plain, len(MAGIC) + 1)
            except (OSError, WireError):
                connected.close()
                raise
        except OSError as problem:
            raise WireError(str(problem)) from problem
        if answer != MAGIC + b"\0":
            connected.close()
            raise WireError(f"{host}:{port} does not serve {model}")
        self._connection = Connection(connected)
        self._awaited: dict[int, tuple[float, Done]] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._lost: WireError | None = None
        threading.Thread(target=self._read, name="wire-client", daemon=True).start()
        threading.Thread(target=self._look, name="wire-deadlines", daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether frames can be sent."""
        return self._lost is None

    def send(self, meta: bytes, data: Buffer, timeout_s: float, done: Done) -> None:
        """Send; `done` is called once, with META and DATA of the answer, or with why there is none.

        Raises:
            WireError: the connection is lost; nothing was sent, and `done` is not called.
        """
        number = next(self._numbers)
        with self._changed:
            if self._lost is not None:
                raise self._lost
            self._awaited[number] = (time.monotonic() + timeout_s, done)
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
        return None if found is None else found[1]

    def _read(self) -> None:
        try:
            while True:
                number, meta, data = self._connection.read()
                done = self._take(number)
                if done is not None:
                    done((meta, bytes(data)))
        except WireError as problem:
            self._lose(problem)
        finally:
            self._lose(WireError("the reader ended"))
            self._connection.reader.close()

    def _look(self) -> None:
        """End what has waited too long."""
        while True:
            with self._changed:
                while not self._awaited and self._lost is None:
                    self._changed.wait()
                if self._lost is not None:
                    return
                now = time.monotonic()
                late = [number for number, (deadline, _) in self._awaited.items() if deadline < now]
                overdue = [self._awaited.pop(number)[1] for number in late]
            for done in overdue:
                done(TimeoutError())
            time.sleep(LOOK_S)

    def _lose(self, why: WireError) -> None:
        with self._changed:
            if self._lost is not None:
                return
            self._lost = why
            awaited, self._awaited = self._awaited, {}
            self._changed.notify_all()
        self._connection.close()
        for _, done in awaited.values():
            done(why)
