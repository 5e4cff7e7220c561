"""Frames: what is sent arrives, a lost peer fails what is awaited, nonsense hurts nobody else. With TLS and without."""

import os
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.frames import HEAD, MAGIC, YES, greeting
from splitinference_protocol.wire.request import Hop
from splitinference_segment.peers.hops import Hops
from splitinference_segment.peers.wire import Sealed, WireError
from splitinference_segment.peers.wire_client import Wire
from splitinference_segment.settings import Settings
from tests.segment.host import free_ports
from tests.wire.peers import LONG_S, MODEL, Resource, Serving, asked, ended, serving, until


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Serving]:
    if request.param:
        (tmp_path / "tls").mkdir()
        resource = Resource(tmp_path / "tls")
        with serving(resource("segment"), resource("segment")) as made:
            yield made
    else:
        with serving(None, None) as made:
            yield made


@pytest.mark.parametrize("size", [0, 1, 1152, 16384, 65_537, 3_000_001, 40_000_003])
def test_a_frame_comes_back_as_it_was(size: int, world: Serving) -> None:
    wire, data = world.wire(), os.urandom(size)
    assert asked(wire, b'{"x": 1}', data) == (b'{"x": 1}', data)
    wire.close()


def test_answers_find_their_requests_in_any_order(world: Serving) -> None:
    world.echo.hold.set()
    wire = world.wire()
    answers: queue.Queue[tuple[int, object]] = queue.Queue()
    for i in range(20):
        wire.send(b"%d" % i, b"x", LONG_S, lambda reply, i=i: answers.put((i, reply)))  # type: ignore[misc]
    held = [world.echo.held.get(timeout=LONG_S) for _ in range(20)]
    for meta, send in reversed(held):
        send(b"answer to " + meta, b"")
    got = dict(answers.get(timeout=LONG_S) for _ in range(20))
    assert got == {i: (b"answer to %d" % i, b"") for i in range(20)}
    wire.close()


def test_many_threads_send_large_frames_both_ways_at_once(world: Serving) -> None:
    wire = world.wire()
    contents = [os.urandom(500_000 + i) for i in range(24)]
    came: queue.Queue[tuple[int, object]] = queue.Queue()

    def send(i: int) -> None:
        wire.send(b"%d" % i, contents[i], LONG_S, lambda reply: came.put((i, reply)), 1 << 30)

    threads = [threading.Thread(target=send, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    got = dict(came.get(timeout=LONG_S) for _ in range(24))
    assert got == {i: (b"%d" % i, content) for i, content in enumerate(contents)}
    wire.close()


def test_nothing_is_decrypted_before_something_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt in vain raises an exception inside: for each frame that was a fifth of what TLS costs."""
    tried: list[int | None] = []
    read = Sealed._read

    def counted(self: Sealed, view: memoryview) -> int | None:
        tried.append(read(self, view))
        return tried[-1]

    monkeypatch.setattr(Sealed, "_read", counted)
    (tmp_path / "tls").mkdir()
    resource = Resource(tmp_path / "tls")
    with serving(resource("segment"), resource("segment")) as world:
        wire = world.wire()
        for _ in range(50):
            assert asked(wire, b"{}", bytes(1152)) == (b"{}", bytes(1152))
        wire.close()
    assert len(tried) >= 100
    assert tried.count(None) < 20, "only where a frame came in pieces"


def test_where_nobody_listens_there_is_no_wire() -> None:
    with pytest.raises(WireError):
        Wire("127.0.0.1", free_ports(1)[0], MODEL, None)


def test_a_lost_connection_fails_all_that_is_awaited_and_takes_nothing_more(world: Serving) -> None:
    world.echo.hold.set()
    wire = world.wire()
    answers: queue.Queue[object] = queue.Queue()
    wire.send(b"{}", b"x", LONG_S, answers.put)
    world.echo.held.get(timeout=LONG_S)
    world.server.close()
    assert isinstance(answers.get(timeout=LONG_S), WireError)
    assert not wire.alive
    with pytest.raises(WireError):
        wire.send(b"{}", b"x", LONG_S, answers.put)
    assert answers.empty()


def test_an_answer_that_is_late_is_told_and_then_skipped(world: Serving) -> None:
    world.echo.hold.set()
    wire = world.wire()
    assert isinstance(asked(wire, b"slow", b"x", timeout_s=0.05), TimeoutError)
    _, send = world.echo.held.get(timeout=LONG_S)
    world.echo.hold.clear()
    send(b"too late", bytes(5_000_000))  # more than anybody would take
    assert asked(wire, b"again", b"x") == (b"again", b"x")
    wire.close()


def test_a_peer_that_does_not_read_does_not_hold_up_the_sender_and_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []

        def greet() -> None:
            connected, _ = listener.accept()
            connected.recv(4096)
            connected.sendall(YES)
            kept.append(connected)

        greeting = threading.Thread(target=greet)
        greeting.start()
        wire = Wire("127.0.0.1", listener.getsockname()[1], MODEL, None)
        greeting.join()
        answers: queue.Queue[object] = queue.Queue()

        def send_much() -> None:
            for _ in range(20):
                wire.send(b"{}", bytes(8 << 20), LONG_S, answers.put)  # returns though it fits into no socket's buffer

        with pytest.raises(WireError, match="does not read"):
            send_much()
        until(lambda: not wire.alive)
        assert answers.qsize() < 12
        assert all(isinstance(answers.get(timeout=LONG_S), WireError) for _ in range(answers.qsize()))
        kept[0].close()


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", MAGIC, b"", greeting(MODEL) + HEAD.pack(1, 1 << 31, 0)])
def test_nonsense_ends_its_own_connection_alone(nonsense: bytes, world: Serving) -> None:
    wire = world.wire()
    with socket.create_connection(("127.0.0.1", world.server.port), timeout=LONG_S) as other:
        with suppress(OSError):  # it may be closed by now
            other.sendall(nonsense)
            other.shutdown(socket.SHUT_WR)
        assert ended(other)
    assert asked(wire, b"{}", b"x") == (b"{}", b"x")
    wire.close()


class Way:
    """Hops from one segment to the world's server, under the name chat-3-7."""

    def __init__(self, world: Serving, port: int = 0) -> None:
        settings = Settings(
            segment="chat-0-3",
            model_name="seg-abcd1234-0-3",
            model_path=Path(),
            start=0,
            end=3,
            peer_prefix="chat-",
            peer_addresses={"chat-3-7": f"127.0.0.1:{port or world.server.port}"},
        )
        self.hops = Hops(settings, world.identity)

    def __call__(self, segment: str = "chat-3-7", data: bytes = b"x") -> object:
        answers: queue.Queue[object] = queue.Queue()
        self.hops.send(Hop(segment, MODEL), b"{}", data, LONG_S, answers.put)
        return answers.get(timeout=LONG_S)


def test_a_wire_is_opened_when_it_is_needed_and_again_after_it_was_lost(world: Serving) -> None:
    way = Way(world)
    assert way.hops.wires == 0
    assert way() == (b"{}", b"x")
    assert way.hops.wires == 1
    for peer in tuple(world.server._peers):
        peer.connection.close()
    until(lambda: way.hops.wires == 0)
    assert way() == (b"{}", b"x"), "nothing was under way, so nothing is lost"
    way.hops.close()


def test_what_is_asked_while_a_wire_is_opened_waits_for_it(world: Serving) -> None:
    way = Way(world)
    answers: queue.Queue[object] = queue.Queue()
    sent = [str(number).encode() for number in range(200)]
    for data in sent:
        way.hops.send(Hop("chat-3-7", MODEL), b"{}", data, LONG_S, answers.put)
    assert [answers.get(timeout=LONG_S) for _ in sent] == [(b"{}", data) for data in sent], "in order: chunks of a prompt are"
    assert sum(world.server.connections.values()) == 1
    way.hops.close()


def test_a_peer_that_is_gone_is_next_hop_failed_at_once_and_not_tried_at_every_step(world: Serving) -> None:
    way = Way(world, port=free_ports(1)[0])
    for _ in range(20):
        failure = way()
        assert isinstance(failure, SegmentError)
        assert failure.code == "next_hop_failed"
    way.hops.close()


@pytest.mark.parametrize("name", ["elsewhere-3-7", "10.0.0.1", "chat-3-8"])
def test_only_segments_of_the_resource_are_reached(name: str, world: Serving) -> None:
    way = Way(world)
    with pytest.raises(SegmentError) as caught:
        way(name)
    assert caught.value.code == "bad_request"
    way.hops.close()


def test_peers_are_forgotten_when_there_are_too_many(world: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinference_segment.peers.hops.MOST_PEERS", 3)
    way = Way(world)
    names = {f"chat-3-{end}": f"127.0.0.1:{world.server.port}" for end in range(10)}
    object.__setattr__(way.hops._settings, "peer_addresses", names)
    for name in names:
        assert way(name) == (b"{}", b"x")
    assert len(way.hops._peers) == 3
    until(lambda: sum(world.server.connections.values()) == 3)
    way.hops.close()
