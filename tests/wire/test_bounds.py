"""What a peer may cost a segment: connections, threads, memory, and the time that it leaves things undone."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinference_protocol.addresses import listen
from splitinference_protocol.wire.frames import HEAD, frame
from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.wire import WireError
from splitinference_segment.peers.wire_server import InputBudget
from tests.wire.peers import LONG_S, Resource, Serving, asked, ended, serving, until


@pytest.fixture
def resource(tmp_path: Path) -> Resource:
    (tmp_path / "tls").mkdir()
    return Resource(tmp_path / "tls")


@pytest.fixture
def gateway(resource: Resource) -> Identity:
    return resource("gateway")


def bounded(resource: Resource, gateway: Identity, **bounds: Any) -> Any:
    return serving(resource("segment"), gateway, **bounds)


def served(world: Serving) -> bool:
    """A new connection of the gateway is served."""
    wire = world.wire()
    try:
        return bool(asked(wire, b"{}", b"x") == (b"{}", b"x"))
    finally:
        wire.close()


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    opened: list[socket.socket] = []
    yield opened
    for each in opened:
        each.close()


def flood(world: Serving, sockets: list[socket.socket], number: int, first: bytes = b"") -> None:
    for _ in range(number):
        each = socket.create_connection(("127.0.0.1", world.server.port), timeout=LONG_S)
        each.sendall(first) if first else None
        sockets.append(each)


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"], ids=["silent", "a begun handshake", "http"])
def test_half_open_connections_cost_no_threads_and_keep_nobody_out(
    first: bytes, resource: Resource, gateway: Identity, sockets: list[socket.socket]
) -> None:
    with bounded(resource, gateway, open_s=10 * LONG_S) as world:  # none ends because its time is up
        threads = threading.active_count()
        for _ in range(5):
            flood(world, sockets, 300, first)
            assert served(world)
            until(lambda: threading.active_count() <= threads)  # the served connection's own threads end a little after it
            assert world.server._greetings.count <= 128
            while len(sockets) > 200:  # a process has only so many descriptors
                sockets.pop(0).close()


def test_who_floods_pushes_out_its_own_address_first(resource: Resource, gateway: Identity, sockets: list[socket.socket]) -> None:
    with bounded(resource, gateway, half_open=8) as world:
        other = socket.create_connection(("127.0.0.1", world.server.port), timeout=LONG_S, source_address=("127.0.0.9", 0))
        sockets.append(other)
        until(lambda: world.server._greetings.count == 1)
        flood(world, sockets, 50)
        until(lambda: world.counted["refused", "crowded_out"] >= 43)
        secure = gateway.contexts().client.wrap_socket(other)  # it was first, and still may greet
        sockets.append(secure)


def test_a_connection_that_is_not_greeted_in_time_is_closed(resource: Resource, gateway: Identity, sockets: list[socket.socket]) -> None:
    with bounded(resource, gateway, open_s=0.1) as world:
        flood(world, sockets, 1, b"\x16")
        assert ended(sockets[0])
        assert world.counted["refused", "late"] == 1


def test_endless_handshakes_are_cut_off(resource: Resource, gateway: Identity, sockets: list[socket.socket]) -> None:
    with bounded(resource, gateway) as world:
        flood(world, sockets, 1)
        try:
            for _ in range(200):
                sockets[0].sendall(b"\x16\x03\x01\x3f\xff" + bytes(0x3FFF))
        except ConnectionError:
            pass
        assert ended(sockets[0])
        assert served(world)


def test_idle_connections_of_one_role_make_room_for_a_new_one_and_keep_no_other_role_out(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway) as world:
        segment = resource("segment")
        idle = [world.raw(segment) for _ in range(70)]
        assert world.server.connections["segment"] <= 64
        assert ended(idle[0]), "the longest idle one has given way"
        assert served(world)
        busy = world.wire()
        assert asked(busy, b"{}", b"x")
        for _ in range(70):
            world.raw(gateway)
        assert world.server.connections["gateway"] <= 64
        assert served(world)
        busy.close()


def test_a_request_in_progress_is_not_given_up_for_idle_connections(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, roles={"gateway": 3}) as world:
        world.echo.hold.set()
        wire, answers = world.wire(), []
        wire.send(b"{}", b"x", LONG_S, answers.append)
        _, send = world.echo.held.get(timeout=LONG_S)
        for _ in range(5):
            world.raw(gateway)
        send(b"answer", b"")
        until(lambda: bool(answers))
        assert answers == [(b"answer", b"")]
        wire.close()


def test_an_idle_connection_is_closed_and_a_client_closes_its_own_before(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, idle_s=0.1) as world:
        assert ended(world.raw(gateway))
        assert world.counted["closed", "idle"] == 1
    with bounded(resource, gateway) as world:
        wire = world.wire(idle_s=0.05)
        until(lambda: not wire.alive)
        assert not world.counted


def test_a_frame_that_is_not_finished_is_given_up(resource: Resource, gateway: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinference_protocol.wire.frames.FRAME_SECONDS", 0.1)
    monkeypatch.setattr("splitinference_protocol.wire.frames.SLOWEST", 1 << 40)
    with bounded(resource, gateway) as world:
        for begun in (b"\x00", frame(1, b"{}", bytes(1000))[:-1], HEAD.pack(1, 10, 1 << 20)):
            connection = world.raw(gateway)
            connection.sendall(begun)
            assert ended(connection)
        assert world.counted["closed", "unfinished"] == 3
        until(lambda: world.server.input_bytes == 0)


def test_a_frame_that_is_too_large_is_refused_in_words_without_being_kept(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, data=1000, meta=100) as world:
        wire = world.wire()
        for meta, data in ((b"{}", bytes(1001)), (bytes(101), b"x")):
            problem = json.loads(asked(wire, meta, data)[0])["error"]
            assert problem["code"] == "bad_request"
            assert f"{len(meta)} bytes of META and {len(data)} of DATA; at most 100 and 1000" in problem["message"]
        assert asked(wire, b"{}", bytes(1000)) == (b"{}", bytes(1000))
        assert not world.echo.asked["gateway"] - 1
        wire.close()
        absurd = world.raw(gateway)
        absurd.sendall(HEAD.pack(1, 10, 1 << 31))
        assert ended(absurd)


def test_large_frames_wait_unread_for_their_turn_and_small_ones_pass(resource: Resource, gateway: Identity) -> None:
    """Three unfinished frames, each as large as a frame may be, hold the budget and no more; steps of one token go on."""
    large = 1 << 20
    with bounded(resource, gateway, data=large, input=2 * large, small=1000) as world:
        hogs = [world.raw(gateway) for _ in range(3)]
        for hog in hogs:
            hog.sendall(HEAD.pack(1, 2, large - 2) + b"{}" + bytes(100))
        until(lambda: world.server.input_bytes == 2 * large)
        wire = world.wire()
        assert asked(wire, b"{}", bytes(900)) == (b"{}", bytes(900))
        answers: list[object] = []
        wire.send(b"{}", bytes(large - 2), LONG_S, answers.append, 1 << 30)
        assert world.server.input_bytes == 2 * large
        for hog in hogs:
            hog.close()
        until(lambda: bool(answers))
        assert answers == [(b"{}", bytes(large - 2))]
        until(lambda: world.server.input_bytes == 0)
        wire.close()


def test_the_budget_is_held_until_the_answer(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, small=10) as world:
        world.echo.hold.set()
        wire = world.wire()
        wire.send(b"{}", bytes(1000), LONG_S, lambda reply: None)
        _, send = world.echo.held.get(timeout=LONG_S)
        assert world.server.input_bytes == 1002
        send(b"{}", b"")
        send(b"{}", b"")
        assert world.server.input_bytes == 0
        wire.close()


def test_whoever_waits_for_the_budget_on_a_lost_connection_goes() -> None:
    budget = InputBudget(10)
    assert budget.take(100, lambda: False), "more than there is, is all there is"
    assert not budget.take(1, lambda: True)
    budget.give_back(100)
    assert budget.used == 0


def test_a_peer_that_does_not_read_is_not_read_from_and_then_closed(resource: Resource, gateway: Identity) -> None:
    """430 KiB of requests, whose answers would be 450 MiB."""
    with bounded(resource, gateway, pause=1 << 20, unsent=8 << 20) as world:
        world.echo.answer_bytes = 1 << 20
        hog = world.raw(gateway)
        hog.settimeout(0.5)
        try:
            for number in range(450):
                hog.sendall(frame(number, b"{}", bytes(1000)))
        except (OSError, TimeoutError):
            pass
        until(lambda: world.echo.asked["gateway"] > 0)
        (peer,) = world.server._peers
        until(lambda: peer.connection.unsent >= 1 << 20)
        asked_for = -1
        while asked_for != world.echo.asked["gateway"]:  # it stands still
            asked_for = world.echo.asked["gateway"]
            time.sleep(0.3)
        assert asked_for < 40, "what fits into the sockets and 1 MiB"
        assert peer.connection.unsent <= 3 << 20
        world.echo.answer_bytes = 0
        assert served(world)


def test_a_peer_that_takes_nothing_for_a_while_is_closed(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, stuck_s=0.2) as world:
        world.echo.answer_bytes = 32 << 20
        hog = world.raw(gateway)
        hog.sendall(frame(1, b"{}", b"x"))
        until(lambda: world.counted["closed", "unread"] == 1)
        until(lambda: not world.server.connections)


def test_of_all_that_do_not_read_the_one_with_most_is_closed(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, unsent_total=20 << 20, stuck_s=600) as world:
        world.echo.answer_bytes = 12 << 20
        hogs = [world.raw(gateway) for _ in range(3)]
        for hog in hogs:
            hog.sendall(frame(1, b"{}", b"x"))
        until(lambda: world.counted["closed", "unread"] >= 1)
        assert world.server._account._bytes <= 20 << 20
        world.echo.answer_bytes = 0
        assert served(world)


def test_unsent_answers_end_a_connection_at_a_limit(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, unsent=4 << 20) as world:
        world.echo.hold.set()
        hog = world.raw(gateway)
        for number in range(50):
            hog.sendall(frame(number, b"{}", b"x"))
        senders = [world.echo.held.get(timeout=LONG_S)[1] for _ in range(50)]
        for send in senders:
            send(b"{}", bytes(1 << 20))
        until(lambda: not world.server.connections)
        assert world.server._account._bytes == 0


def test_requests_in_progress_on_one_connection_are_bounded(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway, in_progress=4) as world:
        world.echo.hold.set()
        wire = world.wire()
        answers: list[object] = []
        for number in range(10):
            wire.send(b"%d" % number, b"x", LONG_S, answers.append)
        held = [world.echo.held.get(timeout=LONG_S) for _ in range(4)]
        time.sleep(0.2)
        assert world.echo.held.empty()
        world.echo.hold.clear()
        for meta, send in held:
            send(meta, b"")
        until(lambda: len(answers) == 10)
        wire.close()


def test_a_handler_that_fails_is_an_answer_without_its_words(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway) as world:
        world.server._handle = lambda *_: (_ for _ in ()).throw(RuntimeError("/secret/path"))
        wire = world.wire()
        answer = asked(wire, b"{}", b"x")
        assert b"error" in answer[0]
        assert b"secret" not in answer[0]
        wire.close()


def test_an_answer_that_is_larger_than_expected_ends_the_connection(resource: Resource, gateway: Identity) -> None:
    with bounded(resource, gateway) as world:
        world.echo.answer_bytes = 5000
        wire = world.wire()
        assert isinstance(asked(wire, b"{}", b"x", most=4999), WireError)
        assert not wire.alive


def test_a_listener_takes_ipv4_and_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = listen(0)
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", *(["::1"] if listener.family == socket.AF_INET6 else [])):
        socket.create_connection((host, port), timeout=LONG_S).close()
    listener.close()
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    listener = listen(0)
    assert listener.family == socket.AF_INET
    socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=LONG_S).close()
    with pytest.raises(OSError):
        listen(listener.getsockname()[1])
    listener.close()
