"""What a station answers to peers that keep to the protocol, and to those that do not."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from splitinference.probe.wire import MOST_CONNECTIONS, ProtocolError, Station, calling
from tests.adapters.test_listen import has_ipv6

MIB = 1 << 20


@asynccontextmanager
async def station(most_bytes: int = 2 * MIB, host: str = "127.0.0.1") -> AsyncIterator[tuple[Station, int]]:
    made = Station("node-b", most_bytes)
    async with await made.serve(host, 0) as server:
        yield made, server.sockets[0].getsockname()[1]


@asynccontextmanager
async def saying(*answers: bytes) -> AsyncIterator[int]:
    """A peer that answers each line with the next of these, whatever was asked; its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for text in answers:
            await reader.readline()
            writer.write(text)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_a_station_says_who_it_is_echoes_and_takes_a_burst():
    @run
    async def _() -> None:
        async with station() as (_, port), calling("127.0.0.1", port, "node-a") as call:
            assert (call.node, call.busy) == ("node-b", False)
            assert 0 < await call.rtt_s() < 1
            done = await call.burst(MIB, 0.0)
            assert done is not None
            assert (done.size, (done.mbps or 0) > 0) == (MIB, True)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_pods_with_ipv6_alone_measure_too():
    @run
    async def _() -> None:
        async with station(host="::1") as (_, port), calling("::1", port, "node-a") as call:
            assert call.node == "node-b"
            done = await call.burst(MIB, 0.0)
            assert done is not None
            assert done.size == MIB


def test_only_one_burst_at_a_time():
    @run
    async def _() -> None:
        async with station() as (there, port), calling("127.0.0.1", port, "node-a") as call, there.burst():
            assert await call.burst(MIB, 0.0) is None
            async with calling("127.0.0.1", port, "node-c") as other:
                assert other.busy
        assert not there.bursting


def test_after_a_burst_larger_than_agreed_the_station_is_free_again():
    @run
    async def _() -> None:
        async with station(most_bytes=MIB) as (_, port), calling("127.0.0.1", port, "node-a") as call:
            with suppress(ProtocolError, OSError):
                await call.burst(64 * MIB, 0.0)
            async with calling("127.0.0.1", port, "node-c") as other:
                assert not other.busy


@pytest.mark.parametrize("noise", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xfe\n", b"burst now\n", b"\n", b"x" * 200_000])
def test_what_is_no_probe_sees_the_connection_end_and_the_station_goes_on(noise: bytes):
    @run
    async def _() -> None:
        async with station() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(noise)
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            async with calling("127.0.0.1", port, "node-a") as call:
                assert await call.rtt_s() > 0


def test_many_connections_do_not_shut_others_out_for_long():
    @run
    async def _() -> None:
        async with station() as (_, port):
            held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MOST_CONNECTIONS)]
            with pytest.raises((ProtocolError, OSError)):
                async with calling("127.0.0.1", port, "node-a"):
                    pass
            for _, writer in held:
                writer.close()
            await asyncio.sleep(0.1)
            async with calling("127.0.0.1", port, "node-a") as call:
                assert call.node == "node-b"


@pytest.mark.parametrize("answer", [b"hello\n", b"hello Node_B free\n", b"hello node-b maybe\n", b'hello b"}evil free\n', b"", b"\xff\n"])
def test_a_peer_that_greets_otherwise_is_not_measured(answer: bytes):
    @run
    async def _() -> None:
        async with saying(answer) as port:
            with pytest.raises((ProtocolError, OSError)):
                async with calling("127.0.0.1", port, "node-a"):
                    pass


@pytest.mark.parametrize("took", [b"took -5 10\n", b"took many 3\n", b"took 5\n", b"", b"took 1e9 1\n"])
def test_a_peer_that_reports_nonsense_of_a_burst_is_an_error(took: bytes):
    @run
    async def _() -> None:
        async with saying(b"hello node-b free\n", b"go\n", took) as port, calling("127.0.0.1", port, "node-a") as call:
            with pytest.raises((ProtocolError, OSError)):
                await call.burst(1000, 0.0)


def test_an_echo_of_something_else_is_an_error():
    @run
    async def _() -> None:
        async with saying(b"hello node-b free\n", b"echo 7\n") as port, calling("127.0.0.1", port, "node-a") as call:
            with pytest.raises(ProtocolError):
                await call.rtt_s()
