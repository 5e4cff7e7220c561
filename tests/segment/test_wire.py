"""Frames between segments: what is sent arrives, a lost peer fails what is awaited, nonsense hurts nobody else."""

import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from random_models import unsplit_greedy
from servers import Chains

from splitinference_segment.wire import HEAD, MAGIC, WireError
from splitinference_segment.wire_client import Wire
from splitinference_segment.wire_server import WireServer

MODEL = "seg-abcd1234-3-7"
Send = Callable[[bytes, bytes], None]
LONG_S = 60.0


def echo(meta: bytes, data: torch.Tensor, send: Send) -> None:
    send(meta, data.numpy().tobytes())


@pytest.fixture
def echoing() -> Iterator[WireServer]:
    server = WireServer(0, MODEL, echo)
    yield server
    server.close()


def asked(wire: Wire, meta: bytes, data: bytes, timeout_s: float = LONG_S) -> object:
    answers: queue.Queue[object] = queue.Queue()
    wire.send(meta, data, timeout_s, answers.put)
    return answers.get(timeout=LONG_S)


@pytest.mark.parametrize("size", [1, 1152, 16384, 3_000_001, 40_000_003])
def test_a_frame_comes_back_as_it_was(size: int, echoing: WireServer) -> None:
    wire = Wire("127.0.0.1", echoing.port, MODEL)
    data = torch.randint(0, 255, (size,), dtype=torch.uint8).numpy().tobytes()
    assert asked(wire, b'{"x": 1}', data) == (b'{"x": 1}', data)
    wire.close()


def test_no_data_is_one_zero_byte_as_through_triton(echoing: WireServer) -> None:
    wire = Wire("127.0.0.1", echoing.port, MODEL)
    assert asked(wire, b"{}", b"") == (b"{}", b"\0")
    wire.close()


def test_answers_find_their_requests_in_any_order() -> None:
    held: list[tuple[bytes, Send]] = []
    all_there = threading.Event()

    def hold(meta: bytes, data: torch.Tensor, send: Send) -> None:
        held.append((meta, send))
        if len(held) == 20:
            all_there.set()

    server = WireServer(0, MODEL, hold)
    wire = Wire("127.0.0.1", server.port, MODEL)
    answers: queue.Queue[tuple[int, object]] = queue.Queue()
    for i in range(20):
        wire.send(b"%d" % i, b"x", LONG_S, lambda reply, i=i: answers.put((i, reply)))
    assert all_there.wait(LONG_S)
    for meta, send in reversed(held):
        send(b"answer to " + meta, b"")
    got = dict(answers.get(timeout=LONG_S) for _ in range(20))
    assert got == {i: (b"answer to %d" % i, b"") for i in range(20)}
    wire.close()
    server.close()


def test_another_model_is_refused(echoing: WireServer) -> None:
    with pytest.raises(WireError, match="does not serve"):
        Wire("127.0.0.1", echoing.port, "seg-abcd1234-4-7")


def test_where_nobody_listens_there_is_no_wire() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(WireError):
        Wire("127.0.0.1", port, MODEL)


def test_a_lost_connection_fails_all_that_is_awaited_and_takes_nothing_more() -> None:
    arrived = threading.Event()
    server = WireServer(0, MODEL, lambda meta, data, send: arrived.set())
    wire = Wire("127.0.0.1", server.port, MODEL)
    answers: queue.Queue[object] = queue.Queue()
    wire.send(b"{}", b"x", LONG_S, answers.put)
    assert arrived.wait(LONG_S)
    server.close()
    assert isinstance(answers.get(timeout=LONG_S), WireError)
    assert not wire.alive
    with pytest.raises(WireError):
        wire.send(b"{}", b"x", LONG_S, answers.put)
    assert answers.empty()


def test_an_answer_that_is_late_is_told_and_then_ignored() -> None:
    senders: queue.Queue[Send] = queue.Queue()
    server = WireServer(0, MODEL, lambda meta, data, send: senders.put(send) if meta == b"slow" else send(b"quick", b""))
    wire = Wire("127.0.0.1", server.port, MODEL)
    assert isinstance(asked(wire, b"slow", b"x", timeout_s=0.05), TimeoutError)
    senders.get(timeout=LONG_S)(b"too late", b"")
    assert asked(wire, b"again", b"x") == (b"quick", b"")
    wire.close()
    server.close()


def test_a_peer_that_does_not_read_does_not_hold_up_the_sender() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connected, _ = listener.accept()
            connected.recv(4096)
            connected.sendall(MAGIC + b"\0")
            kept.append(connected)

        kept: list[socket.socket] = []
        greeting = threading.Thread(target=greet)
        greeting.start()
        wire = Wire("127.0.0.1", listener.getsockname()[1], MODEL)
        greeting.join()
        answers: queue.Queue[object] = queue.Queue()
        for _ in range(8):
            wire.send(b"{}", bytes(8 << 20), LONG_S, answers.put)  # returns though 64 MiB fit into no socket's buffer
        wire.close()
        assert all(isinstance(answers.get(timeout=LONG_S), WireError) for _ in range(8))
        kept[0].close()


@pytest.mark.parametrize(
    "nonsense", [b"GET / HTTP/1.1\r\n\r\n", MAGIC, b"", MAGIC + struct.pack("<H", len(MODEL)) + MODEL.encode() + HEAD.pack(1, 1 << 30, 0)]
)
def test_nonsense_ends_its_own_connection_alone(nonsense: bytes, echoing: WireServer) -> None:
    wire = Wire("127.0.0.1", echoing.port, MODEL)
    with socket.create_connection(("127.0.0.1", echoing.port), timeout=LONG_S) as other:
        other.sendall(nonsense)
        other.shutdown(socket.SHUT_WR)
        while other.recv(4096):
            pass  # the server closes
    assert asked(wire, b"{}", b"x") == (b"{}", b"x")
    wire.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_a_wire_steps_go_by_grpc(models: dict[str, Path], prompt: list[int], chains: Chains) -> None:
    chain = chains.start(models["llama"], [0, 3, 7], SI_WIRE_PORT="0")
    client = chain.client()
    assert client.generate(prompt, 30) == unsplit_greedy(models["llama"], prompt, 30)
    assert client.stats()["wires"] == 0
    chain.close()


def test_tokens_are_the_same_over_the_wire_and_a_peer_that_was_killed_is_wired_again(
    models: dict[str, Path], prompt: list[int], chains: Chains
) -> None:
    expected = unsplit_greedy(models["llama"], prompt, 30)
    chain = chains.start(models["llama"], [0, 3, 5, 7])
    client = chain.client()
    assert client.generate(prompt, 30) == expected  # the first steps by gRPC
    until(lambda: client.stats()["wires"] == 1)
    assert client.generate(prompt, 30) == expected
    chain.servers[1].kill()
    assert client.step("s", 0, prompt)["error"]["code"] == "next_hop_failed"
    chain.servers[1].start()
    chain.servers[1].wait_ready()

    def again() -> bool:
        return "error" not in client.step("s", 0, prompt) and client.stats()["wires"] == 1

    until(again)
    assert client.generate(prompt, 30) == expected
    chain.close()
