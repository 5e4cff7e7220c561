"""A segment is proved by what it answers, not by what Triton says of itself."""

import json
import socket
import time

import pytest

from splitinference.adapters.triton import TritonSegments
from tests.adapters.serving import Request, Response, serving


def answer(meta: object) -> Response:
    data = list(json.dumps(meta).encode())
    return Response(json.dumps({"outputs": [{"name": "DATA", "data": [0]}, {"name": "META", "data": data}]}).encode())


def prove(port: int, timeout: float = 2.0):
    return TritonSegments(timeout, port).prove("team", "chat-0-4-x", "seg-1-0-4", "127.0.0.1")


def test_a_segment_that_computes_is_proved():
    asked: list[Request] = []

    def segment(request: Request) -> Response:
        asked.append(request)
        return answer({"v": 1, "ok": True, "ms": 3.2})

    with serving(segment) as port:
        proof = prove(port)
    assert proof.ok
    assert proof.milliseconds is not None
    assert asked[0].path == "/v2/models/seg-1-0-4/infer"
    inputs = {tensor["name"]: tensor for tensor in json.loads(asked[0].body)["inputs"]}
    meta = json.loads(bytes(inputs["META"]["data"]))
    assert (meta["v"], meta["op"]) == (1, "probe")
    assert inputs["META"]["shape"] == [len(inputs["META"]["data"])]
    assert inputs["DATA"]["data"] == [0]


def test_no_proxy_is_asked_for_a_pods_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving(lambda _: answer({"v": 1, "ok": True})) as port:
        assert prove(port).ok


@pytest.mark.parametrize(
    ("response", "why"),
    [
        (answer({"v": 1, "error": {"code": "internal", "message": "NaN"}}), "internal: NaN"),
        (answer({"v": 1}), "failed its own test"),
        (answer([1]), "something else"),
        (Response(b"{}"), "something else"),
        (Response(b"<html>"), "something else"),
        (Response(json.dumps({"error": "Request for unknown model: 'seg-1-0-4'"}).encode(), status=400), "unknown model"),
        (Response(b"down", status=503), "503: down"),
    ],
)
def test_whatever_else_it_answers_is_no_proof_and_says_why(response, why):
    with serving(lambda _: response) as port:
        proof = prove(port)
    assert not proof.ok
    assert proof.dead
    assert why in proof.why
    assert "team/chat-0-4-x" in proof.why


def test_a_segment_that_is_not_there_is_no_proof():
    with serving(lambda _: answer({})) as port:
        pass
    proof = prove(port)
    assert "cannot be reached" in proof.why
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


def test_a_segment_that_is_busy_is_not_dead():
    with serving(lambda _: answer({"v": 1, "error": {"code": "overloaded", "message": "queue"}})) as port:
        proof = prove(port)
    assert not proof.ok
    assert not proof.dead


def test_a_segment_that_hangs_is_no_proof_within_the_time_limit():
    def hangs(_: Request) -> Response:
        time.sleep(1)
        return answer({"ok": True})

    with serving(hangs) as port:
        started = time.monotonic()
        proof = prove(port, timeout=0.2)
        assert time.monotonic() - started < 0.9
    assert "did not answer within 0.2 s" in proof.why
    assert not proof.dead
