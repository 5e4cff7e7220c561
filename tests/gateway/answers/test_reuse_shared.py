"""Answers on a real server that gateways share: what others on that server can do, and what happens while it is away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from splitinference_gateway.answers.reuse_shared import HEAD_BYTES, SharedAnswers, connection
from splitinference_gateway.answers.reuse_store import Entry
from splitinference_gateway.metrics import Metrics
from tests.gateway.answers.test_reuse import ask, result, reusing
from tests.gateway.cache_server import CacheServer, cache_server

pytestmark = pytest.mark.anyio
NAME, OTHER = b"n" * 32, b"o" * 32
MOST = 1000


def answers(server: CacheServer, *, key: bytes = b"k" * 32, now: list[float] | None = None, **more: Any) -> SharedAnswers:
    clock = (lambda: now[0]) if now is not None else (lambda: 1000.0)
    return SharedAnswers(connection(server.url, None, 20), "si:a", lambda: key, Metrics(), 20.0, clock, **more)


@asynccontextmanager
async def shared(server: CacheServer, **more: Any) -> AsyncIterator[SharedAnswers]:
    made = answers(server, **more)
    try:
        yield made
    finally:
        await made.close()


async def written(made: SharedAnswers, name: bytes, entry: Entry) -> None:
    made.put(name, entry)
    await asyncio.gather(*made._tasks)


def entry(content: bytes = b"answer", left: float = 100.0) -> Entry:
    return Entry(content, 1000.0, 1000.0 + left)


async def failures(made: SharedAnswers, reason: str) -> float:
    return made.metrics.registry.get_sample_value("splitinference_gateway_reuse_server_failures_total", {"reason": reason}) or 0.0


async def test_what_one_gateway_wrote_another_one_reads(tmp_path: Path) -> None:
    async with cache_server(tmp_path) as server, shared(server) as one, shared(server) as two, server.client() as raw:
        assert await two.get(NAME, MOST) is None
        await written(one, NAME, entry())
        assert await two.get(NAME, MOST) == entry()
        assert await two.get(OTHER, MOST) is None
        assert 0 < await raw.pttl(f"si:a:{NAME.hex()}") <= 100_000, "the server drops it, too"
        assert await failures(two, "not_ours") == 0


async def test_nobody_else_can_put_words_into_our_mouth(tmp_path: Path) -> None:
    """Entries that were changed, moved to another name, made by another key, or grown."""
    async with cache_server(tmp_path) as server, shared(server) as ours, server.client() as raw:
        await written(ours, NAME, entry())
        good = await raw.get(f"si:a:{NAME.hex()}")
        assert good is not None
        async with shared(server, key=b"x" * 32) as foreign:
            await written(foreign, OTHER, entry(b"evil"))
        assert await ours.get(OTHER, MOST) is None
        for place in range(0, len(good), 7):
            changed = bytearray(good)
            changed[place] ^= 1
            await raw.set(f"si:a:{NAME.hex()}", bytes(changed))
            assert await ours.get(NAME, MOST) is None, place
        await raw.set(f"si:a:{OTHER.hex()}", good)
        assert await ours.get(OTHER, MOST) is None, "an answer to another request"
        for foreign_value in (b"", b"x", good[:HEAD_BYTES], good + b"more", b"y" * 1_000_000):
            await raw.set(f"si:a:{NAME.hex()}", foreign_value)
            assert await ours.get(NAME, MOST) is None
        await raw.delete(f"si:a:{NAME.hex()}")
        await raw.lpush(f"si:a:{NAME.hex()}", "a list")
        assert await ours.get(NAME, MOST) is None
        assert await failures(ours, "not_ours") > 5


async def test_an_old_entry_that_is_put_back_does_not_count(tmp_path: Path) -> None:
    now = [1000.0]
    async with cache_server(tmp_path) as server, shared(server, now=now) as ours, server.client() as raw:
        await written(ours, NAME, entry(left=50))
        good = await raw.get(f"si:a:{NAME.hex()}")
        assert good is not None
        now[0] = 1050.0
        await raw.set(f"si:a:{NAME.hex()}", good)
        assert await ours.get(NAME, MOST) is None
        now[0] = 900.0
        assert await ours.get(NAME, MOST) is None, "it comes from a future that no honest clock is in"


async def test_all_gateways_forget_together_and_again_when_the_server_lost_its_memory(tmp_path: Path) -> None:
    async with cache_server(tmp_path) as server, shared(server) as one, shared(server) as two, server.client() as raw:
        await written(one, NAME, entry())
        good = await raw.get(f"si:a:{NAME.hex()}")
        assert good is not None
        one.forget()
        await asyncio.gather(*one._tasks)
        assert await two.get(NAME, MOST) is None
        await written(two, NAME, entry(b"new"))
        assert await one.get(NAME, MOST) == entry(b"new")
        await raw.set(f"si:a:{NAME.hex()}", good)
        await raw.delete("si:a:epoch")
        assert await one.get(NAME, MOST) is None, "without the server's mark nothing counts"
        await written(one, OTHER, entry())
        assert await two.get(OTHER, MOST) == entry()
        assert await two.get(NAME, MOST) is None


async def test_what_is_to_be_forgotten_is_not_read_while_the_server_does_not_know_it(tmp_path: Path) -> None:
    clock = [0.0]
    async with cache_server(tmp_path) as server, shared(server, monotonic=lambda: clock[0]) as ours:
        await written(ours, NAME, entry())
        await server.stop()
        ours.forget()
        await asyncio.gather(*ours._tasks)
        assert await failures(ours, "write") == 1
        await server.start()
        assert await ours.get(NAME, MOST) is None, "it pauses"
        clock[0] += 1000
        assert await ours.get(NAME, MOST) is None
        await written(ours, NAME, entry())
        assert await ours.get(NAME, MOST) == entry()


async def test_a_server_that_is_away_is_asked_again_later_and_less_and_less(tmp_path: Path) -> None:
    clock = [0.0]
    async with cache_server(tmp_path) as server, shared(server, monotonic=lambda: clock[0]) as ours:
        await server.stop()
        pauses = []
        for _ in range(7):
            assert await ours.get(NAME, MOST) is None
            pauses.append(ours._ask_again - clock[0])
            assert await ours.get(NAME, MOST) is None
            ours.put(NAME, entry())
            assert not ours._tasks, "nothing is written while it pauses"
            clock[0] = ours._ask_again
        assert pauses == [1, 2, 4, 8, 16, 30, 30]
        assert await failures(ours, "read") == await failures(ours, "paused") == await failures(ours, "not_written") == 7
        await server.start()
        await written(ours, NAME, entry())
        assert await ours.get(NAME, MOST) == entry()


async def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    made = SharedAnswers(connection(f"redis://127.0.0.1:{port}", None, 60), "si:a", lambda: b"k" * 32, Metrics(), seconds=0.05)
    try:
        assert await made.get(NAME, MOST) is None
        assert await failures(made, "read") == 1
        assert await made.get(NAME, MOST) is None
        assert await failures(made, "paused") == 1
    finally:
        await made.close()
        listener.close()
        await listener.wait_closed()


async def test_password_and_user_come_from_files_that_may_change(tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "password").write_text("first\n")
    async with cache_server(tmp_path / "server", "--requirepass", "first") as server:
        client = connection(server.url, folder, 20)
        assert await client.ping()
        await client.aclose()
        async with Redis.from_url(server.url, password="first") as admin:
            await admin.config_set("requirepass", "second")
            await admin.acl_setuser("gate", enabled=True, passwords=["+third"], categories=["+@all"], keys=["splitinference:*"])
        (folder / "password").write_text("second\n")
        client = connection(server.url, folder, 20)
        assert await client.ping()
        await client.aclose()
        (folder / "username").write_text("gate")
        (folder / "password").write_text("third")
        client = connection(server.url.replace("redis://", "valkey://"), folder, 20)
        assert await client.set("splitinference:a", "b")
        await client.aclose()


@pytest.mark.parametrize("url", ["", "host:6379", "http://host", "redis://", "redis://:password@host:6379", "unix:///run/redis.sock"])
def test_what_is_no_address_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not redis://"):
        connection(url, None, 1)


async def test_two_gateways_share_and_go_on_alone(tmp_path: Path, model_path: Path) -> None:
    """One server, two gateways with one key; then the server is stopped under requests."""
    tls = {"reuse_server_seconds": 5.0}
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with (
        cache_server(tmp_path / "server") as server,
        reusing(folders[0], model_path, reuse_server=server.url, **tls) as one,
        reusing(folders[1], model_path, reuse_server=server.url, **tls) as two,
    ):
        for world in (one, two):
            world.gateway.reuse.key = lambda: b"k" * 32
            assert world.gateway.reuse.shared is not None
            world.gateway.reuse.shared.key = lambda: b"k" * 32
        _, first, _ = await ask(one)
        async with server.client() as raw, asyncio.timeout(20):
            while await raw.dbsize() < 2:
                await asyncio.sleep(0.01)
        _, second, headers = await ask(two)
        assert headers["X-Cache"] == "HIT"
        assert first["choices"] == second["choices"]
        assert await result(two, "server_hit") == 1
        _, _, headers = await ask(two, "ben")
        assert headers["X-Cache"] == "MISS", "another client, also by way of the server"
        await server.stop()
        for number in range(3):
            status, _, headers = await ask(two, prompt=f"new {number}")
            assert (status, headers["X-Cache"]) == (200, "MISS")
        assert (await ask(two))[2]["X-Cache"] == "HIT", "its own memory is there still"
        assert await two.metric('splitinference_gateway_reuse_server_failures_total{reason="read"}') >= 1
