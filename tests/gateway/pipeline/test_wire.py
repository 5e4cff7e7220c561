"""Steps take the wire where a first stage has one: the same text, and what breaks or is missing is mended as over gRPC."""

import asyncio
import datetime
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.pipeline.transport.connections import Connections, NoAnswerError
from splitinference_gateway.pipeline.transport.wire import Wire, WireError
from splitinference_gateway.pipeline.transport.wire_tls import Identity, IdentityError, PrefixKey
from splitinference_protocol.wire.frames import MAX_META, MOST_ANSWER
from splitinference_protocol.wire.request import Hop
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import reference, toy_segments
from tests.gateway.toy_wire import ToyWire
from tests.identities import IDENTITY, Authority
from tests.segment.host import free_ports

pytestmark = pytest.mark.anyio

MODEL = "seg-0123abcd-0-3"
LONG = 60.0
WIRES = "splitinference_gateway_wires"
Answer = Callable[[bytes, bytes], Awaitable[tuple[bytes, bytes]]]


@dataclass
class Tls:
    """A gateway's identity, and what a segment of its resource listens with."""

    identity: Identity
    server: ssl.SSLContext


def tls_of(folder: Path, role: str = "segment", *, authority: Authority | None = None, **changes: Any) -> Tls:
    """Of one resource; `role` and `changes` are the segment's, and `authority` who signed its certificate."""
    own = Authority()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    theirs = (authority or own).write(folder / "segment", role, trusts=[own], **changes)
    context.load_cert_chain(theirs / "tls.crt", theirs / "tls.key")
    context.load_verify_locations(theirs / "ca.crt")
    return Tls(Identity(own.write(folder / "gateway", "gateway"), IDENTITY), context)


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def tls(request: pytest.FixtureRequest, tmp_path: Path) -> Tls | None:
    return tls_of(tmp_path) if request.param else None


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both loops: a gateway's process has uvloop's, whose transports are their own."""
    return "asyncio", {"use_uvloop": request.param}


async def echo(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
    return meta, data


@asynccontextmanager
async def wired(
    answer: Answer = echo, model: str = MODEL, tls: Tls | None = None, **settings: float
) -> AsyncIterator[tuple[Wire, ToyWire]]:
    """A wire to a toy, with TLS where that is given."""
    peer = ToyWire(lambda: MODEL, answer)
    port = await peer.start(0, tls.server if tls else None)
    try:
        wire = await Wire.connect("127.0.0.1", port, model, tls.identity if tls else None, **settings)
        yield wire, peer
        wire.close()
    finally:
        await peer.die()


@pytest.mark.parametrize("size", [0, 1, 4096, 3_000_001])
async def test_a_frame_comes_back_as_it_was(size: int, tls: Tls | None) -> None:
    data = bytes(i & 0xFF for i in range(1000)) * (size // 1000) + b"x" * (size % 1000)
    async with wired(tls=tls) as (wire, _):
        assert await wire.exchange(b'{"x": 1}', data, LONG, 1 << 30) == (b'{"x": 1}', data)


async def test_answers_find_their_requests_in_any_order(tls: Tls | None) -> None:
    async def last_first(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        await asyncio.sleep(0.01 * (20 - int(meta)))
        return b"answer to " + meta, b""

    async with wired(last_first, tls=tls) as (wire, _):
        answers = await asyncio.gather(*(wire.exchange(b"%d" % i, b"x", LONG) for i in range(20)))
    assert answers == [(b"answer to %d" % i, b"") for i in range(20)]


async def test_an_answer_that_is_late_or_unwanted_is_dropped_and_the_wire_stays(tls: Tls | None) -> None:
    go_on = asyncio.Event()

    async def slow(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        if meta == b"slow":
            await go_on.wait()
        return meta, data

    async with wired(slow, tls=tls) as (wire, _):
        with pytest.raises(TimeoutError):
            await wire.exchange(b"slow", b"", 0.05)
        given_up = asyncio.create_task(wire.exchange(b"slow", b"", LONG))
        await asyncio.sleep(0)
        given_up.cancel()
        go_on.set()
        assert await wire.exchange(b"quick", b"", LONG) == (b"quick", b"")
        assert wire.alive


async def test_a_lost_connection_fails_all_that_is_awaited_and_takes_nothing_more(tls: Tls | None) -> None:
    async def never(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        await asyncio.sleep(LONG)
        return meta, data

    async with wired(never, tls=tls) as (wire, peer):
        awaited = [asyncio.create_task(wire.exchange(b"{}", b"x", LONG)) for _ in range(3)]
        while peer.frames < 3:
            await asyncio.sleep(0.01)
        peer.cut()
        results = await asyncio.gather(*awaited, return_exceptions=True)
        assert [type(result) for result in results] == [WireError] * 3
        assert not wire.alive
        with pytest.raises(WireError):
            await wire.exchange(b"{}", b"x", LONG)


async def test_a_wire_that_is_left_answers_what_is_under_way_and_closes(tls: Tls | None) -> None:
    go_on = asyncio.Event()

    async def slow(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        await go_on.wait()
        return meta, data

    async with wired(slow, tls=tls) as (wire, peer):
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
        await Wire.connect("127.0.0.1", free_ports(1)[0], MODEL, None)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"",
        b"SIW1\0" + struct.pack("<QII", 0, MAX_META + 1, 0),
        b"SIW1\0" + struct.pack("<QII", 0, 2, MOST_ANSWER + 1),
    ],
)
async def test_what_is_no_wire_is_left_alone(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        with pytest.raises(WireError):
            await (await Wire.connect("127.0.0.1", server.sockets[0].getsockname()[1], MODEL, None)).exchange(b"{}", b"", LONG)


async def on_wires(world: Serving, number: int) -> None:
    """Until the gateway has so many wires; a request makes it look for one."""
    async with asyncio.timeout(LONG):
        while await world.metric(WIRES) != number:
            await world.complete("x", 1)
            await asyncio.sleep(0.05)


def text(prompt: str, tokens: int) -> str:
    return bytes(reference(prompt.encode(), tokens)).decode(errors="replace")


async def test_a_lost_wire_is_replaced_and_the_text_goes_on(tmp_path: Path, model_path: Path) -> None:
    a, b = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, [a, b], step_seconds=10) as world:
        assert await world.complete("hello", 20) == text("hello", 20)
        assert await world.metric(WIRES) == 1
        reading = asyncio.create_task(world.complete("hello again", 60))
        while a.wire.frames < 50:
            await asyncio.sleep(0)
        a.wire.cut()
        assert await reading == text("hello again", 60)
        assert await world.metric('splitinference_gateway_replays_total{reason="transport"}') == 1
        assert await world.metric(WIRES) == 1


async def test_the_wire_to_a_segment_of_no_route_is_closed(tmp_path: Path, model_path: Path) -> None:
    a, b = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, [a, b]) as world:
        await world.complete("hello", 2)
        world.gateway.steps.connections.retain({"b"})
        while a.wire.connections:
            await asyncio.sleep(0.01)
        assert await world.metric(WIRES) == 0


async def test_many_that_ask_at_once_share_one_connection() -> None:
    (segment,) = await toy_segments("a")
    connections = Connections(lambda name: segment.peers[name])
    hop = Hop(segment="a", model=segment.hop["model"])
    await asyncio.gather(*(connections.send(hop, b'{"v": 1, "op": "probe"}', b"\0", LONG) for _ in range(50)))
    assert segment.wire.connections == 1
    await connections.close()
    await segment.die()


async def test_a_segment_that_is_gone_is_told_apart_from_a_late_one_and_found_again_when_it_is_back() -> None:
    (segment,) = await toy_segments("a")
    connections = Connections(lambda name: segment.peers[name])
    hop = Hop(segment="a", model=segment.hop["model"])

    async def probe(seconds: float = LONG) -> object:
        return await connections.send(hop, b'{"v": 1, "op": "probe"}', b"\0", seconds)

    segment.stalled = True
    with pytest.raises(NoAnswerError) as late:
        await probe(0.1)
    await segment.die()
    with pytest.raises(NoAnswerError) as gone:
        await probe()
    assert (late.value.in_time, gone.value.in_time) == (False, True)
    with pytest.raises(NoAnswerError):
        await probe()
    segment.stalled = False
    await segment.start()
    async with asyncio.timeout(LONG):
        while True:
            try:
                assert await probe()
                break
            except NoAnswerError:
                await asyncio.sleep(0.02)
    await connections.close()
    await segment.die()


async def test_a_segment_that_cannot_be_reached_is_not_tried_at_every_request() -> None:
    asked = 0

    def address_of(name: str) -> str:
        nonlocal asked
        asked += 1
        return f"127.0.0.1:{port}"

    (port,) = free_ports(1)
    connections = Connections(address_of)
    for _ in range(200):
        with pytest.raises(NoAnswerError):
            await connections.send(Hop(segment="a", model=MODEL), b"{}", b"\0", LONG)
    assert asked < 50
    await connections.close()


async def test_an_unused_wire_is_closed_and_opened_again(tls: Tls | None) -> None:
    async with wired(tls=tls, idle_seconds=0.05) as (wire, peer):
        assert await wire.exchange(b"{}", b"x", LONG) == (b"{}", b"x")
        while peer.connections:
            await asyncio.sleep(0.01)
        assert not wire.alive


async def test_an_answer_that_is_not_finished_in_time_ends_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitinference_protocol.wire.frames.FRAME_SECONDS", 0.05)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(6 + len(MODEL))
        writer.write(b"SIW1\0" + struct.pack("<QII", 0, 2, 100) + b"{}half")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        wire = await Wire.connect("127.0.0.1", server.sockets[0].getsockname()[1], MODEL, None)
        with pytest.raises(WireError, match="not finished in time"):
            await wire.exchange(b"{}", b"x", LONG)


HOUR = datetime.timedelta(hours=1)
STRANGERS: dict[str, dict[str, Any]] = {
    "another authority": {"authority": Authority()},
    "another resource": {"identity": "spiffe://cluster.local/ns/team-a/si/other"},
    "a gateway": {"role": "gateway"},
    "no name": {"names": []},
    "an expired one": {"begins": -3 * HOUR, "lasts": HOUR},
    "one of an hour from now": {"begins": HOUR},
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_a_segment_that_is_none_of_this_resource_gets_no_request(stranger: str, tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def see(meta: bytes, data: bytes) -> tuple[bytes, bytes]:
        seen.append(meta)
        return meta, data

    with pytest.raises(WireError):
        async with wired(see, tls=tls_of(tmp_path, **STRANGERS[stranger])) as (wire, _):
            await wire.exchange(b"{}", b"x", LONG)
    assert not seen


async def test_renewed_certificates_are_used_from_the_next_connection_on(tmp_path: Path) -> None:
    tls = tls_of(tmp_path)
    before = tls.identity.context()
    assert tls.identity.context() is before
    Authority().write(tls.identity.folder, "gateway")
    assert tls.identity.context() is not before
    (tls.identity.folder / "tls.key").write_bytes(b"half")
    kept = tls.identity.context()
    assert isinstance(kept, ssl.SSLContext)
    (tls.identity.folder / "ca.crt").unlink()
    assert tls.identity.context() is kept
    with pytest.raises(IdentityError, match=r"ca\.crt"):
        Identity(tls.identity.folder, IDENTITY).context()


async def test_the_prefix_key_is_the_files_or_random(tmp_path: Path) -> None:
    now = 0.0
    file = tmp_path / "prefix.key"
    key = PrefixKey(tmp_path, clock=lambda: now)
    own = key()
    assert len(own) == 32
    assert own != PrefixKey(tmp_path)()
    file.write_bytes(b"short")
    now = 20.0
    assert key() == own
    file.write_bytes(b"k" * 32)
    now = 40.0
    assert key() == b"k" * 32
    assert "kkk" not in repr(key)


async def test_a_segments_own_words_on_its_failures_do_not_reach_clients(tmp_path: Path, model_path: Path) -> None:
    (a,) = await toy_segments("a")
    async with serving(tmp_path, model_path, [a]) as world:
        a.errors.extend(["internal"] * 4)
        status, said, _ = await world.post("/v1/completions", {"model": "toy", "prompt": "hello", "max_tokens": 2})
        assert status == 503
        assert "told to" not in str(said), "which are a segment's words"
        assert "the segment failed" in str(said)


async def test_where_a_segment_is_does_not_reach_clients(tmp_path: Path, model_path: Path) -> None:
    (a,) = await toy_segments("a")
    async with serving(tmp_path, model_path, [a], replay_seconds=0.2) as world:
        await a.die()
        status, said, _ = await world.post("/v1/completions", {"model": "toy", "prompt": "hello", "max_tokens": 2})
        assert status == 503
        assert "127.0.0.1" not in str(said)
        assert str(a.port) not in str(said)
