"""What the pods of a gateway say of their routes, together; and that only the resource's gateway is asked, and not for long."""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from splitinference.adapters.peers.gateway import GatewayRoutes, merged
from splitinference.controller.identity import Owner, Role
from splitinference_protocol.report import GatewayReport, ObservedTraffic
from tests.adapters.secured import CHAT, OTHER, being, listening, peers


def a_pod(
    ip: str = "127.0.0.1", component: str = "gateway", phase: str = "Running", ready: bool = True, stopping: bool = False
) -> dict[str, Any]:
    metadata = {"name": "p", "labels": {"app.kubernetes.io/component": component}}
    if stopping:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": metadata, "status": {"podIP": ip, "phase": phase, "conditions": conditions}}


def report(revision: str = "new", **in_flight: int) -> bytes:
    routes = {name: {"inFlight": count, "state": "serving" if name == revision else "draining"} for name, count in in_flight.items()}
    return json.dumps({"revision": revision, "routes": routes, "observed": {"requests": 7}, "later": 1}).encode()


def page(content: bytes, status: int = 200, more: str = "") -> bytes:
    return f"HTTP/1.1 {status} x\r\nContent-Length: {len(content)}\r\n{more}\r\n".encode() + content


def answering(content: bytes, asked: list[bytes] | None = None) -> Callable[[ssl.SSLSocket], None]:
    """Answer each request on the connection with these bytes."""

    def serve(secured: ssl.SSLSocket) -> None:
        with secured.makefile("rb") as file:
            while line := file.readline():
                if line.startswith(b"GET") and asked is not None:
                    asked.append(line)
                if line == b"\r\n":
                    secured.sendall(content)

    return serve


@contextmanager
def routes(*pods: dict[str, Any], port: int, timeout: float = 20.0) -> Iterator[GatewayRoutes]:
    asking = GatewayRoutes(peers(), lambda kind, namespace, instance: pods, timeout, port)
    try:
        yield asking
    finally:
        asking.close()


def ask(*pods: dict[str, Any], port: int, timeout: float = 20.0) -> GatewayReport | None:
    with routes(*pods, port=port, timeout=timeout) as asking:
        return asking.routes(CHAT)


def test_a_gateway_is_asked_at_its_pods_address_by_the_operator_of_its_resource():
    asked: list[bytes] = []
    shaken: list[str] = []
    with being(Role.GATEWAY, answering(page(report(new=2, old=1)), asked), shaken=shaken) as port:
        said = ask(a_pod(), a_pod(component="segment"), a_pod(phase="Pending"), port=port)
    assert said is not None
    assert (said.revision, said.routes["old"].in_flight, said.observed.requests) == ("new", 1, 7)
    assert asked == [b"GET /internal/routes HTTP/1.1\r\n"]
    assert shaken == ["spiffe://cluster.local/ns/team/si/chat/operator"]


def test_it_is_asked_again_and_again_over_one_connection():
    shaken: list[str] = []
    with being(Role.GATEWAY, answering(page(report(new=2))), shaken=shaken) as port, routes(a_pod(), port=port) as asking:
        assert all(asking.routes(CHAT) is not None for _ in range(50))
    assert len(shaken) == 1


def test_a_connection_that_the_gateway_closed_is_made_anew():
    shaken: list[str] = []

    def once(secured: ssl.SSLSocket) -> None:
        secured.recv(1 << 16)
        secured.sendall(page(report(new=2)))

    with being(Role.GATEWAY, once, shaken=shaken) as port, routes(a_pod(), port=port) as asking:
        assert all(asking.routes(CHAT) is not None for _ in range(3))
    assert len(shaken) == 3


def test_a_gateway_that_wants_the_connection_closed_gets_it_closed():
    shaken: list[str] = []
    with (
        being(Role.GATEWAY, answering(page(report(new=2), more="Connection: close\r\n")), shaken=shaken) as port,
        routes(a_pod(), port=port) as asking,
    ):
        assert all(asking.routes(CHAT) is not None for _ in range(2))
    assert len(shaken) == 2


def test_none_where_nobody_answers():
    assert ask(port=1) is None
    assert ask(a_pod(), port=1) is None


@pytest.mark.parametrize(
    "content",
    [
        page(b"<html>"),
        page(b"[]"),
        page(b"{}", status=500),
        page(b'{"routes": {"a": {"inFlight": -1}}}'),
        page(b"[" * 500_000),
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 x\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_none_where_it_answers_with_something_else(content: bytes):
    def serve(secured: ssl.SSLSocket) -> None:
        secured.recv(1 << 16)
        secured.sendall(content)

    with being(Role.GATEWAY, serve) as port:
        assert ask(a_pod(), port=port) is None


# --- who it is, how long and how much ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "role", "ago"),
    [
        (OTHER, Role.GATEWAY, timedelta()),
        (CHAT, Role.SEGMENT, timedelta()),
        (CHAT, Role.GATEWAY, timedelta(hours=25)),
        (CHAT, Role.GATEWAY, timedelta(hours=-2)),
    ],
)
def test_a_pod_that_only_has_the_labels_of_a_gateway_is_not_believed(owner: Owner, role: Role, ago: timedelta):
    with being(role, answering(page(report(new=2))), owner, ago=ago) as port:
        assert ask(a_pod(), port=port) is None


def test_a_gateway_without_tls_is_not_believed():
    def serve(plain: socket.socket) -> None:
        plain.recv(1 << 16)
        plain.sendall(page(report(new=2)))

    with listening(serve) as port:
        assert ask(a_pod(), port=port) is None


def endless(first: bytes, piece: bytes, pause: float = 0.0) -> Callable[[ssl.SSLSocket], None]:
    def serve(secured: ssl.SSLSocket) -> None:
        secured.recv(1 << 16)
        secured.sendall(first)
        while True:
            secured.sendall(piece)
            time.sleep(pause)

    return serve


@pytest.mark.parametrize(
    "serve",
    [
        endless(b"HTTP/1.1 200 x\r\n\r\n", b"x" * 65536),
        endless(b"HTTP/1.1 200 x\r\nContent-Length: 99999999999999\r\n\r\n", b" " * 65536),
        endless(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n"),
        endless(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffff\r\n", b" " * 65536),
        endless(b"HTTP/1.1 200 x\r\n", b"a: b\r\n" * 1000),
        endless(b"HTTP/1.1 ", b"2" * 65536),
        endless(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    ],
)
def test_an_answer_without_end_is_cut_off_after_a_mebibyte(serve: Callable[[ssl.SSLSocket], None]):
    """The time limit of a minute is not what ends it: the peer sends as fast as it can."""
    with being(Role.GATEWAY, serve) as port:
        assert ask(a_pod(), port=port, timeout=60) is None


@pytest.mark.parametrize(
    "serve",
    [
        endless(b"HTTP/1.1 200 x\r\nContent-Length: 99999\r\n\r\n", b" ", 0.01),
        endless(b"HTTP/1.1 200 x\r\n", b"a", 0.01),
        lambda secured: secured.recv(1 << 16) and secured.recv(1),
    ],
)
def test_an_answer_that_drips_or_never_comes_is_given_up(serve: Callable[[ssl.SSLSocket], None]):
    """Each byte comes in time, so a limit for each read alone would never end it."""
    with being(Role.GATEWAY, serve) as port:
        assert ask(a_pod(), port=port, timeout=1) is None


# --- figures -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ["NaN", "-4", '"quick"', "1e999", "null", "true"])
def test_an_odd_time_is_not_known_and_the_rest_of_the_report_is_read(odd: str):
    """JSON has no NaN, Python's reader takes it all the same: routes must be drained whatever a clock said."""
    figures = '{"requests": 7, "timePerOutputTokenMs": {"p50": %s, "p95": 9}, "stages": {"s": {"computeMs": %s, "queueMs": 2, "steps": 5}}}'
    text = '{"revision": "new", "routes": {"old": {"inFlight": 3}}, "observed": ' + figures % (odd, odd) + "}"
    found = GatewayReport.model_validate(json.loads(text))
    assert found.routes["old"].in_flight == 3
    assert (found.observed.time_per_output_token_ms.p50, found.observed.time_per_output_token_ms.p95) == (None, 9)
    assert (found.observed.stages["s"].compute_ms, found.observed.stages["s"].queue_ms) == (None, 2)


@pytest.mark.parametrize("observed", [{"requests": -1}, {"requests": "many"}, {"windowSeconds": 0}, {"stages": 5}, "nothing", None])
def test_figures_that_cannot_be_read_are_none_seen_and_routes_are_read(observed: object):
    found = GatewayReport.model_validate({"revision": "new", "routes": {"old": {"inFlight": 3}}, "observed": observed})
    assert (found.routes["old"].in_flight, found.observed) == (3, ObservedTraffic())


def test_one_of_two_that_should_answer_and_does_not_makes_all_unknown():
    with being(Role.GATEWAY, answering(page(report(new=1)))) as port:
        assert ask(a_pod(), a_pod(ip="127.0.0.2"), port=port) is None


def test_one_that_is_being_stopped_or_is_known_to_be_down_does_not():
    with being(Role.GATEWAY, answering(page(report(new=1)))) as port:
        assert ask(a_pod(), a_pod(ip="127.0.0.2", stopping=True), port=port) is not None
        assert ask(a_pod(), a_pod(ip="127.0.0.2", ready=False), port=port) is not None


def said(revision: str, requests: int, **in_flight: int) -> GatewayReport:
    routes = {name: {"inFlight": count, "state": "serving" if name == revision else "draining"} for name, count in in_flight.items()}
    return GatewayReport.model_validate({"revision": revision, "routes": routes, "observed": {"requests": requests}})


def test_what_is_in_flight_anywhere_counts():
    both = merged([said("new", 3, new=1, old=2), said("old", 9, old=4)])
    assert both is not None
    assert both.routes["old"].in_flight == 6
    assert both.routes["old"].state == "serving"
    assert both.routes["new"].in_flight == 1
    assert both.observed.requests == 9


def test_a_route_is_not_everywhere_until_all_have_it():
    assert merged([said("new", 1), said("old", 1)]).revision is None
    assert merged([said("new", 1), said("new", 1)]).revision == "new"


def test_tokens_of_all_gateways_count_and_other_figures_are_those_of_the_busiest():
    def gateway(requests: int, tokens: float | None, kv: float) -> GatewayReport:
        observed = {"requests": requests, "tokensPerSecond": tokens, "kvReserved": kv}
        return GatewayReport.model_validate({"revision": "new", "routes": {}, "observed": observed})

    both = merged([gateway(3, 10.0, 0.9), gateway(9, 30.0, 0.25), gateway(0, None, 0.0)])
    assert both is not None
    assert (both.observed.tokens_per_second, both.observed.kv_reserved, both.observed.requests) == (40.0, 0.25, 9)
