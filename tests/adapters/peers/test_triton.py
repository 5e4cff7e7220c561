"""A segment is proved by what it answers over the wire, not by what Triton says of itself; and only the segment that was meant is asked."""

import json
import socket
import ssl
import struct
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from splitinference.adapters.peers.mutual import Peers
from splitinference.adapters.peers.triton import TritonSegments
from splitinference.controller.identity import Credentials, Owner, Role
from splitinference.controller.ports import Proof, UnavailableError
from tests.adapters.secured import CHAT, OTHER, being, listening, peers

HEAD = struct.Struct("<QII")
MODEL = "seg-1-0-4"


def prove(port: int, timeout: float = 20.0, address: str = "127.0.0.1") -> Proof:
    return TritonSegments(peers(), timeout, port).prove(CHAT, "chat-0-4-x", MODEL, address)


def exactly(file: Any, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise ConnectionResetError
    return bytes(content)


def a_segment(answer: Callable[[dict[str, Any], bytes], tuple[bytes, bytes]], model: str = MODEL) -> Callable[[ssl.SSLSocket], None]:
    """The wire of a segment with this model."""

    def serve(secured: ssl.SSLSocket) -> None:
        with secured.makefile("rb") as file:
            assert exactly(file, 4) == b"SIW1"
            named = exactly(file, struct.unpack("<H", exactly(file, 2))[0]).decode()
            secured.sendall(b"SIW1" + bytes([named != model]))
            number, meta_bytes, data_bytes = HEAD.unpack(exactly(file, HEAD.size))
            meta, data = answer(json.loads(exactly(file, meta_bytes)), exactly(file, data_bytes))
            secured.sendall(HEAD.pack(number, len(meta), len(data)) + meta + data)
            file.read(1)

    return serve


def saying(meta: object, data: bytes = b"\0") -> Callable[[ssl.SSLSocket], None]:
    return a_segment(lambda asked, sent: (json.dumps(meta).encode(), data))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_segment_that_computes_is_proved_by_the_operator_of_its_resource(address: str):
    asked: list[tuple[dict[str, Any], bytes]] = []
    shaken: list[str] = []

    def compute(meta: dict[str, Any], data: bytes) -> tuple[bytes, bytes]:
        asked.append((meta, data))
        return json.dumps({"v": 1, "ok": True, "ms": 3.2}).encode(), b"x" * 100

    try:
        with being(Role.SEGMENT, a_segment(compute), address=address, shaken=shaken) as port:
            proof = prove(port, address=address)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    assert proof.ok, proof.why
    assert proof.milliseconds is not None
    ((meta, data),) = asked
    assert (meta["v"], meta["op"], data) == (1, "probe", b"\0")
    assert meta["deadline_ms"] > 0
    assert shaken == ["spiffe://cluster.local/ns/team/si/chat/operator"]


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (saying({"v": 1, "error": {"code": "internal", "message": "NaN"}}), "internal: NaN"),
        (saying({"v": 1}), "failed its own test"),
        (saying([1]), "META is no object"),
        (a_segment(lambda *_: (b"<html>", b"")), "META is no JSON"),
        (a_segment(lambda *_: (b"[" * 500_000, b"")), "META is no JSON"),
        (a_segment(lambda *_: (b"\xff{}", b"")), "META is no JSON"),
        (saying({"ok": True}, b"x" * (1 << 21)), "is no answer to a question"),
        (a_segment(lambda *_: (b"{}", b""), model="seg-2-0-4"), "another model than seg-1-0-4"),
        (lambda secured: secured.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), "not that of the wire"),
        (lambda secured: secured.sendall(b"SIW1\x00" + HEAD.pack(7, 2, 0) + b"{}"), "frame 7"),
    ],
)
def test_whatever_else_it_answers_is_no_proof_and_says_why(serve: Callable[[ssl.SSLSocket], None], why: str):
    def and_waits(secured: ssl.SSLSocket) -> None:
        serve(secured)
        secured.recv(1 << 16)

    with being(Role.SEGMENT, and_waits) as port:
        proof = prove(port)
    assert (proof.ok, proof.dead, proof.unreachable) == (False, True, False)
    assert why in proof.why
    assert "team/chat-0-4-x" in proof.why


def test_a_segment_that_is_busy_is_not_dead():
    for code in ("overloaded", "deadline_exceeded", "kv_full"):
        with being(Role.SEGMENT, saying({"v": 1, "error": {"code": code, "message": "queue"}})) as port:
            proof = prove(port)
        assert (proof.ok, proof.dead) == (False, False)


# --- who it is -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "role", "ago", "why"),
    [
        (OTHER, Role.SEGMENT, timedelta(), "certificate was not accepted"),
        (Owner(namespace="team", name="chat", uid="u-before"), Role.SEGMENT, timedelta(), "certificate was not accepted"),
        (CHAT, Role.GATEWAY, timedelta(), "si/chat/gateway, expected"),
        (CHAT, Role.OPERATOR, timedelta(), "si/chat/operator, expected"),
        (CHAT, Role.SEGMENT, timedelta(hours=25), "expired"),
        (CHAT, Role.SEGMENT, timedelta(hours=-2), "not yet valid"),
    ],
)
def test_somebody_else_at_the_address_is_asked_nothing_and_is_not_taken_for_a_dead_segment(
    owner: Owner, role: Role, ago: timedelta, why: str
):
    heard: list[bytes] = []
    with being(role, lambda secured: heard.append(secured.recv(1)), owner, ago=ago) as port:
        proof = prove(port)
    assert (proof.ok, proof.dead, proof.unreachable) == (False, False, False)
    assert why in proof.why
    assert not any(heard)


def test_a_server_without_tls_is_asked_nothing():
    with listening(lambda plain: plain.sendall(b"SIW1\x00" * 100)) as port:
        proof = prove(port)
    assert (proof.ok, proof.dead) == (False, False)
    assert "is not trusted" in proof.why


def test_an_operator_without_a_root_key_says_so():
    class Without:
        def credentials(self, owner: Owner, role: Role, now: object) -> Credentials:
            raise UnavailableError("the Secret system/root has no root.key")

        prefix_key = forget = credentials

    found = TritonSegments(Peers(Without(), type("", (), {"now": lambda self: None})(), "x"), 1.0, 1).prove(CHAT, "s", MODEL, "127.0.0.1")  # type: ignore[arg-type]
    assert not found.ok
    assert "no certificate to show: the Secret system/root has no root.key" in found.why


# --- how long, and how much ----------------------------------------------------------------------------------------------------------


def test_a_segment_that_is_not_there_is_no_proof():
    with listening(lambda _: None) as port:
        pass
    proof = prove(port)
    assert "Connection refused" in proof.why
    assert proof.dead


def test_a_node_that_does_not_answer_at_all_is_out_of_reach():
    """A socket that listens and whose queue is full takes no connection, as a machine that is off."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(0)
        port = silent.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", port))
        proof = prove(port, timeout=0.3)
        for each in waiting:
            each.close()
    assert (proof.ok, proof.dead, proof.unreachable) == (False, False, True)
    assert "no connection within 0.3 s" in proof.why


def never_shakes_hands(plain: socket.socket) -> None:
    while plain.recv(1 << 16):
        pass


def drips(secured: ssl.SSLSocket) -> None:
    """Each byte comes in time; all together would take years."""
    secured.sendall(b"SIW1\x00" + HEAD.pack(1, 1 << 19, 0))
    while True:
        secured.sendall(b" ")
        time.sleep(0.01)


def test_a_segment_that_never_shakes_hands_is_given_up_and_is_not_dead():
    with listening(never_shakes_hands) as port:
        proof = prove(port, timeout=0.3)
    assert "did not answer within 0.3 s" in proof.why
    assert (proof.dead, proof.unreachable) == (False, False)


@pytest.mark.parametrize("serve", [drips, lambda secured: secured.recv(1 << 16) and secured.recv(1 << 16) and secured.recv(1)])
def test_a_segment_that_hangs_or_drips_is_given_up_and_is_not_dead(serve: Callable[[ssl.SSLSocket], None]):
    """Without a limit for all of it the drip would never end, and neither would this test."""
    with being(Role.SEGMENT, serve) as port:
        proof = prove(port, timeout=1.0)
    assert "did not answer within 1 s" in proof.why
    assert (proof.dead, proof.unreachable) == (False, False)


def test_one_that_closes_in_the_middle_is_no_proof_and_not_dead():
    with being(Role.SEGMENT, lambda secured: secured.sendall(b"SIW1\x00" + HEAD.pack(1, 100, 0) + b"{")) as port:
        proof = prove(port)
    assert (proof.ok, proof.dead) == (False, False)
