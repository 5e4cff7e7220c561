"""The internal port takes the operator of its resource and nobody else; metrics have a port of their own; clients find neither."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from splitinference_gateway.server import peers
from splitinference_gateway.server.listeners import bind
from tests.gateway.certificates import IDENTITY, Authority
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
FAST = {"internal_port": 0, "insecure": False, "identity": IDENTITY}


def client(folder: Path, most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = most
    context.load_verify_locations(folder / "ca.crt")
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


@asynccontextmanager
async def secured(folder: Path, model_path: Path, authority: Authority, **settings: Any) -> AsyncIterator[Serving]:
    tls = authority.write(folder / "gateway", "gateway")
    segments = await toy_segments("a")
    async with serving(folder, model_path, segments, routed=False, tls_folder=tls, **FAST, **settings) as world:
        world.internal_url = world.internal_url.replace("http:", "https:")
        world.route(segments, revision="r1")
        yield world


async def asked(world: Serving, context: ssl.SSLContext | bool) -> int | str:
    """The status, or which kind of refusal it was."""
    try:
        async with aiohttp.ClientSession() as http, http.get(f"{world.internal_url}/internal/routes", ssl=context) as response:
            return response.status
    except (aiohttp.ClientError, OSError):
        return "refused"


async def test_the_operator_reads_the_routes_and_nobody_else(tmp_path: Path, model_path: Path) -> None:
    authority, foreign = Authority(), Authority("foreign")
    async with secured(tmp_path, model_path, authority) as world:
        assert await asked(world, client(authority.write(tmp_path / "operator", "operator"))) == 200
        for number, uris in enumerate(
            [
                (f"{IDENTITY}/gateway",),
                (f"{IDENTITY}/segment",),
                (f"{IDENTITY}",),
                (f"{IDENTITY}2/operator",),
                ("spiffe://cluster.local/ns/other/si/toy/operator",),
                (f"{IDENTITY}/operator", f"{IDENTITY}/gateway"),
            ]
        ):
            assert await asked(world, client(authority.write(tmp_path / f"peer{number}", "", *uris))) == "refused", uris
        stranger = foreign.write(tmp_path / "foreign", "operator", bundle=authority)
        assert await asked(world, client(stranger)) == "refused"
        expired = authority.write(tmp_path / "expired", "operator", age=timedelta(days=2))
        assert await asked(world, client(expired)) == "refused"
        early = authority.write(tmp_path / "early", "operator", age=-timedelta(hours=1))
        assert await asked(world, client(early)) == "refused"
        old = client(authority.write(tmp_path / "old", "operator"), ssl.TLSVersion.TLSv1_2)
        assert await asked(world, old) == "refused"
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.check_hostname = False
        nobody.load_verify_locations(tmp_path / "operator" / "ca.crt")
        assert await asked(world, nobody) == "refused"
        world.internal_url = world.internal_url.replace("https:", "http:")
        assert await asked(world, False) == "refused"


async def test_new_certificates_and_a_new_authority_are_taken_while_old_connections_stay(tmp_path: Path, model_path: Path) -> None:
    first, second = Authority("first"), Authority("second")
    old = client(first.write(tmp_path / "old", "operator", bundle=second))
    async with secured(tmp_path, model_path, first, tls_look_seconds=0.05) as world, aiohttp.ClientSession() as http:
        async with http.get(f"{world.internal_url}/internal/routes", ssl=old) as response:
            assert response.status == 200
        (tmp_path / "gateway" / "tls.crt").write_text("half a certificate")  # between two writes: what is in use stays
        assert await asked(world, old) == 200
        second.write(tmp_path / "gateway", "gateway")
        new = client(second.write(tmp_path / "new", "operator"))
        async with asyncio.timeout(30):
            while await asked(world, new) != 200:
                await asyncio.sleep(0.05)
        assert await asked(world, old) == "refused"
        async with http.get(f"{world.internal_url}/internal/routes", ssl=old) as response:  # the connection of before
            assert response.status == 200


async def test_nothing_internal_is_on_the_clients_port_and_nothing_else_on_the_others(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        expected = {world.url: set(), world.internal_url: {"/internal/routes"}, world.metrics_url: {"/metrics"}}
        for url, paths in expected.items():
            for path in ("/internal/routes", "/metrics", "/internal", "/internal/routes/"):
                async with world.http.get(url + path, allow_redirects=False) as response:
                    assert (response.status == 200) == (path in paths), (url, path)


async def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(peers.CertificatesError, match="cannot be used"):
        peers.server_context(tmp_path)


async def test_all_addresses_are_listened_on_and_clients_of_ipv4_look_like_it(tmp_path: Path, model_path: Path) -> None:
    sockets = bind("", 0)
    ports, families = {own.getsockname()[1] for own in sockets}, {own.family.name for own in sockets}
    for own in sockets:
        own.close()
    assert len(ports) == 1
    assert "AF_INET" in families
    async with serving(tmp_path, model_path, await toy_segments("a"), host="") as world:
        async with world.http.get(f"{world.url}/healthz") as response:
            assert response.status == 200
        if "AF_INET6" in families:
            port = world.url.rpartition(":")[2]
            async with world.http.get(f"http://[::1]:{port}/healthz") as response:
                assert response.status == 200


async def test_a_port_that_is_taken_is_named() -> None:
    (taken,) = bind("127.0.0.1", 0)
    taken.listen()
    port = taken.getsockname()[1]
    try:
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}"):
            bind("127.0.0.1", port)
    finally:
        taken.close()
