"""Gateway and segments send frames in ways of their own, by an event loop and by threads: here they meet, with TLS and without."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinference_gateway.pipeline.transport.wire import Wire, WireError
from splitinference_gateway.pipeline.transport.wire_tls import Identity
from tests.identities import IDENTITY
from tests.wire.peers import MODEL, Resource, Serving, serving

LONG = 60.0
pytestmark = pytest.mark.anyio


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def segment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Serving, Identity | None]]:
    """A segment's server, and a gateway's identity."""
    if not request.param:
        with serving(None, None) as world:
            yield world, None
        return
    (tmp_path / "tls").mkdir()
    resource = Resource(tmp_path / "tls")
    with serving(resource("segment"), None) as world:
        yield world, Identity(resource("gateway")._folder, IDENTITY)


async def test_frames_of_the_gateway_are_read_and_answered_by_a_segments_code(segment: tuple[Serving, Identity | None]) -> None:
    world, identity = segment
    wire = await Wire.connect("127.0.0.1", world.server.port, MODEL, identity)
    contents = [(b'{"x": %d}' % number, bytes([number]) * size) for number, size in enumerate((0, 1, 1152, 16384, 5_000_001))]
    try:
        assert await asyncio.gather(*(wire.exchange(meta, data, LONG, 1 << 30) for meta, data in contents)) == contents
    finally:
        wire.close()


async def test_a_gateway_is_known_by_its_role(segment: tuple[Serving, Identity | None]) -> None:
    world, identity = segment
    wire = await Wire.connect("127.0.0.1", world.server.port, MODEL, identity)
    meta, _ = await wire.exchange(b'{"v": 1, "op": "kv_export"}', b"\0", LONG)
    assert ("error" in json.loads(meta)) == (identity is not None)
    wire.close()


async def test_another_model_is_refused_in_the_way_that_the_gateway_reads(segment: tuple[Serving, Identity | None]) -> None:
    world, identity = segment
    with pytest.raises(WireError, match="does not serve"):
        await Wire.connect("127.0.0.1", world.server.port, "seg-0123abcd-4-7", identity)
