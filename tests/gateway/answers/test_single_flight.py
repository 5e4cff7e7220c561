"""One run for many readers: each gets all of it, and it ends with its last reader."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from splitinference_gateway.answers.single_flight import Reader, Run

pytestmark = pytest.mark.anyio


class Source:
    """Parts that a test gives one by one."""

    def __init__(self) -> None:
        self.given: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self.ended = asyncio.Event()

    async def make(self) -> AsyncGenerator[int, None]:
        try:
            while (part := await self.given.get()) is not None:
                if isinstance(part, Exception):
                    raise part
                yield part
        finally:
            self.ended.set()


async def test_a_reader_that_comes_late_gets_all_of_it() -> None:
    source, done = Source(), []
    run = Run(source.make, done.append)
    first = run.join().pieces()
    source.given.put_nowait(1)
    assert await anext(first) == 1
    late = run.join().pieces()
    assert await anext(late) == 1
    source.given.put_nowait(2)
    source.given.put_nowait(None)
    assert [part async for part in first] == [2]
    assert [part async for part in late] == [2]
    assert done == [run]
    assert run.whole
    assert [part async for part in run.join().pieces()] == [1, 2]


async def test_who_began_it_may_go_and_the_others_get_the_rest() -> None:
    source, done = Source(), []
    run = Run(source.make, done.append)
    first, second = run.join(), run.join()
    source.given.put_nowait(1)
    reading = second.pieces()
    assert await anext(reading) == 1
    first.abandon()
    first.abandon()
    source.given.put_nowait(2)
    source.given.put_nowait(None)
    assert [part async for part in reading] == [2]
    assert run.whole


async def test_the_last_reader_ends_the_run() -> None:
    source, done = Source(), []
    run = Run(source.make, done.append)
    first, second = run.join(), run.join()
    source.given.put_nowait(1)
    await anext(first.pieces())
    first.abandon()
    assert not source.ended.is_set()
    second.abandon()
    await source.ended.wait()
    async with asyncio.timeout(20):
        while not done:
            await asyncio.sleep(0)
    assert run.ended
    assert not run.whole


async def test_a_run_that_was_left_before_it_began_says_that_it_ended() -> None:
    done: list[Run[int]] = []
    run = Run(Source().make, done.append)
    run.join().abandon()
    assert done == [run]
    assert not run.whole
    await asyncio.sleep(0)
    assert done == [run]


async def test_all_readers_get_the_error() -> None:
    source = Source()
    run = Run(source.make, lambda ended: None)
    readers = [run.join(), run.join()]
    source.given.put_nowait(1)
    source.given.put_nowait(ValueError("broken"))
    for reader in readers:
        got: list[int] = []
        with pytest.raises(ValueError, match="broken"):
            await collect(reader, got)
        assert got == [1]
    assert not run.whole


async def collect(reader: Reader[int], into: list[int]) -> None:
    async for part in reader.pieces():
        into.append(part)
