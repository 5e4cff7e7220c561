"""Steps take the wire where a first stage has one: the same text, and what breaks or is missing is mended as over gRPC."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from splitinference_gateway.connections import Connections, NoAnswerError
from splitinference_gateway.route import Hop
from splitinference_gateway.wire import MAX_META, Wire, WireError
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import reference, toy_segments
from tests.gateway.toy_wire import ToyWire
from tests.segment.host import free_ports

pytestmark = pytest.mark.anyio

MODEL = "seg-0123abcd-0-3"
LONG = 60.0
WIRES = "splitinference_gateway_wires"
Answer = Callable[[bytes, bytes], Awaitable[tuple[bytes, bytes]]]


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: a gateway's process has uvloop's, whose transports are their own."""
    return "asyncio", {"use_uvloop": request.param}


async def echo(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
    return meta, data


@asynccontextmanager
async def wired(answer: Answer = echo, model: str = MODEL) -> AsyncIterator[tuple[Wire, ToyWire]]:
    peer = ToyWire(MODEL, answer)
    port = await peer.start()
    try:
        wire = await Wire.connect("127.0.0.1", port, model)
        yield wire, peer
        wire.close()
    finally:
        await peer.die()


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
async def test_a_frame_comes_back_as_it_was(size: int) -> None:
    data = bytes(i & 0xFF for i in range(1000)) * (size // 1000) + b"x" * (size % 1000)
    async with wired() as (wire, _):
        assert await wire.exchange(b'{"x": 1}', data, LONG) == (b'{"x": 1}', data)


async def test_answers_find_their_requests_in_any_order() -> None:
    async def last_first(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        await asyncio.sleep(0.01 * (20 - int(meta)))
        return b"answer to " + meta, b""

    async with wired(last_first) as (wire, _):
        answers = await asyncio.gather(*(wire.exchange(b"%d" % i, b"x", LONG) for i in range(20)))
    assert answers == [(b"answer to %d" % i, b"") for i in range(20)]


async def test_an_answer_that_is_late_or_unwanted_is_dropped_and_the_wire_stays() -> None:
    go_on = asyncio.Event()

    async def slow(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        if meta == b"slow":
            await go_on.wait()
        return meta, data

    async with wired(slow) as (wire, _):
        with pytest.raises(TimeoutError):
            await wire.exchange(b"slow", b"", 0.05)
        given_up = asyncio.create_task(wire.exchange(b"slow", b"", LONG))
        await asyncio.sleep(0)
        given_up.cancel()
        go_on.set()
        assert await wire.exchange(b"quick", b"", LONG) == (b"quick", b"")
        assert wire.alive


async def test_a_lost_connection_fails_all_that_is_awaited_and_takes_nothing_more() -> None:
    async def never(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        await asyncio.sleep(LONG)
        return meta, data

    async with wired(never) as (wire, peer):
        awaited = [asyncio.create_task(wire.exchange(b"{}", b"x", LONG)) for _ in range(3)]
        while peer.frames < 3:
            await asyncio.sleep(0.01)
        peer.cut()
        results = await asyncio.gather(*awaited, return_exceptions=True)
        assert [type(result) for result in results] == [WireError] * 3
        assert not wire.alive
        with pytest.raises(WireError):
            await wire.exchange(b"{}", b"x", LONG)


async def test_a_wire_that_is_left_answers_what_is_under_way_and_closes() -> None:
    go_on = asyncio.Event()

    async def slow(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        await go_on.wait()
        return meta, data

    async with wired(slow) as (wire, peer):
        awaited = asyncio.create_task(wire.exchange(b"{}", b"x", LONG))
        while not peer.frames:
            await asyncio.sleep(0.01)
        wire.leave()
        assert not wire.alive
        go_on.set()
        assert await awaited == (b"{}", b"x")
        while peer.connections:
            await asyncio.sleep(0.01)


async def test_another_model_is_refused() -> None:
    with pytest.raises(WireError, match="does not serve"):
        async with wired(model="seg-0123abcd-3-7"):
            pass


async def test_where_nobody_listens_there_is_no_wire() -> None:
    with pytest.raises(WireError):
        await Wire.connect("127.0.0.1", free_ports(1)[0], MODEL)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", b"SIW1\0" + struct.pack("<QII", 0, MAX_META + 1, 0)])
async def test_what_is_no_wire_is_left_alone(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with pytest.raises(WireError):
            await (await Wire.connect("127.0.0.1", server.sockets[0].getsockname()[1], MODEL)).exchange(b"{}", b"", LONG)


async def on_wires(world: Serving, number: int) -> None:
    """Until the gateway has so many wires; a request makes it look for one."""
    async with asyncio.timeout(LONG):
        while await world.metric(WIRES) != number:
            await world.complete("x", 1)
            await asyncio.sleep(0.05)


def text(prompt: str, tokens: int) -> str:
    return bytes(reference(prompt.encode(), tokens)).decode(errors="replace")


async def test_steps_take_the_wire_and_a_lost_one_is_replaced(tmp_path: Path, model_path: Path) -> None:
    a, b = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, [a, b], step_seconds=10) as world:
        await on_wires(world, 1)
        before = a.wire.frames, a.by_grpc
        assert await world.complete("hello", 20) == text("hello", 20)
        assert a.wire.frames - before[0] >= 20
        assert a.by_grpc == before[1]
        reading = asyncio.create_task(world.complete("hello again", 60))
        while a.wire.frames < before[0] + 40:
            await asyncio.sleep(0)
        a.wire.cut()
        assert await reading == text("hello again", 60)
        assert await world.metric('splitinference_gateway_replays_total{reason="transport"}') == 1
        await on_wires(world, 1)


async def test_without_a_wire_steps_go_by_grpc(tmp_path: Path, model_path: Path) -> None:
    a, b = await toy_segments("a", "b")
    a.wired = False
    async with serving(tmp_path, model_path, [a, b]) as world:
        assert await world.complete("hello", 20) == text("hello", 20)
        assert a.counts["wire"] == 1, "asked once in a while, not at every step"
        assert await world.metric(WIRES) == 0


async def test_a_client_that_leaves_is_released_over_the_wire(tmp_path: Path, model_path: Path) -> None:
    a, b = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, [a, b]) as world:
        await on_wires(world, 1)
        by_grpc = a.by_grpc
        async with world.client as client:
            stream = await client.completions.create(model="toy", prompt="hello", max_tokens=500, stream=True)
            await anext(aiter(stream))
            await stream.close()
        await world.idle()
        assert a.by_grpc == by_grpc


async def test_the_wire_to_a_segment_of_no_route_is_closed(tmp_path: Path, model_path: Path) -> None:
    a, b = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, [a, b]) as world:
        await on_wires(world, 1)
        world.gateway.steps.connections.retain({"b"})
        while a.wire.connections:
            await asyncio.sleep(0.01)
        assert await world.metric(WIRES) == 0


@pytest.mark.parametrize("told", ["10.0.0.1:80", 0, 70_000, -1, [8003], "localhost"])
async def test_what_a_segment_says_of_its_wire_is_a_port_and_nothing_else(told: object) -> None:
    (segment,) = await toy_segments("a")
    segment.told = told
    connections = Connections(lambda name: segment.peers[name])
    hop = Hop(segment="a", model=segment.hop["model"])
    while not segment.counts["wire"]:
        assert await connections.send(hop, b'{"op": "probe"}', b"\0", LONG)
    await asyncio.sleep(0.2)
    assert connections.wires == 0
    assert await connections.send(hop, b'{"op": "probe"}', b"\0", LONG)
    await connections.close()
    await segment.die()


async def test_a_segment_that_is_gone_is_told_apart_from_a_late_one() -> None:
    (segment,) = await toy_segments("a")
    connections = Connections(lambda name: segment.peers[name])
    hop = Hop(segment="a", model=segment.hop["model"])
    segment.stalled = True
    with pytest.raises(NoAnswerError) as late:
        await connections.send(hop, b'{"v": 1, "op": "probe"}', b"\0", 0.1)
    await segment.die()
    with pytest.raises(NoAnswerError) as gone:
        await connections.send(hop, b'{"v": 1, "op": "probe"}', b"\0", LONG)
    assert (late.value.in_time, gone.value.in_time) == (False, True)
    await connections.close()
