"""What the tests of the wire share: identities of one resource, a server that echoes, and raw connections to it."""

import json
import queue
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitinference_protocol.wire.answers import error
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.frames import YES, greeting
from splitinference_protocol.wire.operations import check_role
from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.wire_client import Wire
from splitinference_segment.peers.wire_server import Bounds, Send, WireServer
from tests.identities import IDENTITY, Authority

MODEL = "seg-abcd1234-3-7"
LONG_S = 60.0
GREETING = greeting(MODEL)


@dataclass
class Resource:
    """The identities of one SplitInference, each in a folder of its own."""

    folder: Path
    authority: Authority = field(default_factory=Authority)

    def __call__(self, role: str, **changes: Any) -> Identity:
        name = f"{role}-{len(list(self.folder.iterdir()))}"
        return Identity(self.authority.write(self.folder / name, role, **changes), IDENTITY)


class Echo:
    """Answers with what came, or keeps the request to itself while `hold` is set. Knows the roles as a segment does."""

    def __init__(self) -> None:
        self.hold = threading.Event()
        self.held: queue.Queue[tuple[bytes, Send]] = queue.Queue()
        self.answer_bytes = 0  # instead of what came
        self.asked: Counter[str] = Counter()

    def __call__(self, role: str, meta: bytes, data: bytearray, send: Send) -> None:
        self.asked[role] += 1
        try:
            if meta.startswith(b'{"v"'):
                check_role(json.loads(meta)["op"], role)
        except SegmentError as failure:
            send(error(failure, "chat-3-7"), b"")
            return
        if self.hold.is_set():
            self.held.put((meta, send))
        else:
            send(meta, bytes(self.answer_bytes) if self.answer_bytes else bytes(data))


@dataclass
class Serving:
    """A server under test."""

    server: WireServer
    echo: Echo
    counted: Counter[tuple[str, str]]
    identity: Identity | None
    opened: list[socket.socket] = field(default_factory=list)

    def wire(self, identity: Identity | None = None, **settings: Any) -> Wire:
        return Wire("127.0.0.1", self.server.port, MODEL, identity or self.identity, **settings)

    def raw(self, identity: Identity) -> ssl.SSLSocket:
        """A greeted connection that is no Wire."""
        plain = socket.create_connection(("127.0.0.1", self.server.port), timeout=LONG_S)
        secure = identity.contexts().client.wrap_socket(plain)
        secure.sendall(GREETING)
        self.opened.append(secure)
        assert secure.recv(5) == YES
        return secure


@contextmanager
def serving(identity: Identity | None, client: Identity | None, **bounds: Any) -> Iterator[Serving]:
    """`client` is who `wire` connects as."""
    counted: Counter[tuple[str, str]] = Counter()
    echo = Echo()

    def count(name: str, reason: str) -> None:
        counted[name, reason] += 1

    def refuse(sentence: str) -> bytes:
        return error(SegmentError("bad_request", sentence), "chat-3-7")

    server = WireServer(0, MODEL, echo, identity=identity, refuse=refuse, bounds=Bounds(**{"look_s": 0.02, **bounds}), count=count)
    world = Serving(server, echo, counted, client)
    try:
        yield world
    finally:
        server.close()
        for each in world.opened:
            each.close()


def asked(wire: Wire, meta: bytes, data: bytes, timeout_s: float = LONG_S, most: int = 1 << 30) -> Any:
    answers: queue.Queue[object] = queue.Queue()
    wire.send(meta, data, timeout_s, answers.put, most)
    return answers.get(timeout=LONG_S)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(connection: socket.socket) -> bool:
    """The other side closes; what it says before is dropped."""
    connection.settimeout(LONG_S)
    try:
        while connection.recv(1 << 16):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True
