"""The operator is reached by both families of addresses."""

import asyncio
import socket
import urllib.request
from contextlib import suppress

import kopf
import pytest
from kopf._core.engines.probing import health_reporter

from splitinference.adapters.telemetry import Telemetry
from splitinference_protocol.addresses import any_address, any_address_of


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


BOTH = ["127.0.0.1", pytest.param("[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"))]


def status_of(url: str) -> int:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return int(answer.status)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("host", BOTH)
def test_metrics_are_scraped_by_either_family(host):
    port = free_port()
    server = Telemetry().serve(port)
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=10) as answer:
            assert answer.status == 200
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("pod_ip", "host"), [("10.1.2.3", "127.0.0.1"), pytest.param("fd00::7", "[::1]", marks=BOTH[1].marks)])  # type: ignore[attr-defined]
def test_health_is_asked_for_at_the_pods_own_family(pod_ip, host):
    port = free_port()

    async def asked() -> int:
        server = asyncio.create_task(
            health_reporter(
                f"http://{any_address_of(pod_ip)}:{port}/healthz",
                memo=None,
                indices={},
                registry=kopf.OperatorRegistry(),
                settings=kopf.OperatorSettings(),
                ready_flag=(ready := asyncio.Event()),
            )
        )
        await ready.wait()
        try:
            return await asyncio.to_thread(status_of, f"http://{host}:{port}/healthz")
        finally:
            server.cancel()
            with suppress(asyncio.CancelledError):
                await server

    assert asyncio.run(asked()) == 200


def test_a_machine_without_ipv6_listens_on_ipv4(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("Address family not supported by protocol")

    monkeypatch.setattr(socket, "socket", refuse)
    assert any_address() == "0.0.0.0"
