"""One pass at a time for each resource, woken by changes, and never forgotten."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from splitinference.controller.runtime.workqueue import Ended, FairSlots, Key, Pass, Passes

CHAT = ("team", "chat")
OTHER = ("team", "other")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


class Recorder:
    """A pass that notes when it ran, and how many ran at once. With a gate, a pass of CHAT ends only when the gate is open."""

    def __init__(self, gate: threading.Event | None = None, ends: Callable[[Key, int], Pass] = lambda key, count: Pass(Ended.DONE)) -> None:
        self.ran: list[Key] = []
        self.times: list[float] = []
        self.reported: list[Ended] = []
        self.most_at_once = 0
        self._running: dict[Key, int] = {}
        self._gate = gate
        self._ends = ends
        self._lock = threading.Lock()

    def __call__(self, key: Key) -> Pass:
        with self._lock:
            self._running[key] = self._running.get(key, 0) + 1
            self.most_at_once = max(self.most_at_once, self._running[key])
            self.ran.append(key)
            self.times.append(time.monotonic())
        if self._gate is not None and key == CHAT:
            assert self._gate.wait(60)
        with self._lock:
            self._running[key] -= 1
        return self._ends(key, self.ran.count(key))

    def report(self, key: Key, done: Pass, seconds: float) -> None:
        self.reported.append(done.ended)


@asynccontextmanager
async def running(recorder: Recorder, threads: ThreadPoolExecutor, resync: float = 60, retry: float = 0.3) -> AsyncIterator[Passes]:
    passes = Passes(recorder, threads, resync, retry, recorder.report)
    try:
        yield passes
    finally:
        await passes.stop()


async def until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.01)


def test_a_new_resource_is_looked_at_at_once(threads):
    async def scenario() -> None:
        recorder = Recorder()
        async with running(recorder, threads) as passes:
            passes.wake(CHAT)
            await until(lambda: recorder.ran == [CHAT])

    asyncio.run(scenario())


def test_many_changes_during_a_pass_are_one_more_pass(threads):
    async def scenario() -> None:
        recorder = Recorder(gate := threading.Event())
        async with running(recorder, threads) as passes:
            passes.wake(CHAT)
            await until(lambda: len(recorder.ran) == 1)
            for _ in range(20):
                passes.wake(CHAT)
                await asyncio.sleep(0)
            gate.set()
            await until(lambda: len(recorder.reported) == 2)
            passes.wake(OTHER)
            await until(lambda: OTHER in recorder.ran)
        assert recorder.ran == [CHAT, CHAT, OTHER], "a third pass would have come before the other resource's"
        assert recorder.most_at_once == 1

    asyncio.run(scenario())


def test_a_slow_resource_does_not_hold_up_another(threads):
    async def scenario() -> None:
        recorder = Recorder(gate := threading.Event())
        async with running(recorder, threads) as passes:
            passes.wake(CHAT)
            await until(lambda: recorder.ran == [CHAT])
            passes.wake(OTHER)
            await until(lambda: recorder.reported == [Ended.DONE])
            assert recorder.ran == [CHAT, OTHER]
            gate.set()

    asyncio.run(scenario())


def test_without_any_change_it_looks_again_after_a_while_and_sooner_if_the_pass_says_so(threads):
    async def scenario(resync: float, again: float | None) -> None:
        recorder = Recorder(ends=lambda key, count: Pass(Ended.DONE, again))
        async with running(recorder, threads, resync=resync) as passes:
            passes.wake(CHAT)
            await until(lambda: len(recorder.ran) == 3)

    asyncio.run(scenario(resync=0.3, again=None))
    asyncio.run(scenario(resync=60, again=0.3))


def test_what_concerns_all_wakes_all(threads):
    async def scenario() -> None:
        recorder = Recorder()
        async with running(recorder, threads) as passes:
            passes.wake(CHAT)
            passes.wake(OTHER)
            await until(lambda: len(recorder.reported) == 2)
            passes.wake_all()
            await until(lambda: len(recorder.ran) == 4)

    asyncio.run(scenario())


def test_a_pass_that_breaks_is_tried_again_later_each_time(threads, caplog):
    def breaks(key: Key, count: int) -> Pass:
        raise RuntimeError("broken")

    async def scenario() -> None:
        recorder = Recorder(ends=breaks)
        async with running(recorder, threads, retry=0.2) as passes:
            passes.wake(CHAT)
            await until(lambda: len(recorder.ran) == 4)
        gaps = [later - earlier for earlier, later in zip(recorder.times, recorder.times[1:], strict=False)]
        assert gaps[0] < gaps[1] < gaps[2]
        assert set(recorder.reported) == {Ended.FAILED}

    asyncio.run(scenario())
    assert "a pass failed" in caplog.text


def test_a_resource_that_is_gone_has_no_loop_and_may_come_back(threads):
    async def scenario() -> None:
        recorder = Recorder(ends=lambda key, count: Pass(Ended.GONE))
        async with running(recorder, threads) as passes:
            passes.wake(CHAT)
            await until(lambda: not passes.keys)
            passes.wake_known(CHAT)
            passes.wake(OTHER)
            await until(lambda: OTHER in recorder.ran)
            assert recorder.ran.count(CHAT) == 1, "what is left of a resource that is gone wakes nothing"
            passes.wake(CHAT)
            await until(lambda: recorder.ran.count(CHAT) == 2)

    asyncio.run(scenario())


def test_a_resource_that_comes_back_during_its_last_pass_is_not_forgotten(threads):
    async def scenario() -> None:
        recorder = Recorder(gate := threading.Event(), lambda key, count: Pass(Ended.GONE if count == 1 else Ended.DONE))
        async with running(recorder, threads) as passes:
            passes.wake(CHAT)
            await until(lambda: len(recorder.ran) == 1)
            passes.wake(CHAT)
            gate.set()
            await until(lambda: len(recorder.ran) == 2)
            assert passes.keys == {CHAT}

    asyncio.run(scenario())


def test_nothing_follows_the_end(threads):
    async def scenario() -> Any:
        recorder = Recorder()
        async with running(recorder, threads, resync=0.01) as passes:
            passes.wake(CHAT)
            await until(lambda: len(recorder.ran) >= 1)
        ran = len(recorder.ran)
        await asyncio.sleep(0.2)
        assert len(recorder.ran) == ran

    asyncio.run(scenario())


async def _a_namespace_with_many_passes_does_not_take_all_slots_from_another() -> None:
    slots, order, go = FairSlots(2), list[str](), asyncio.Event()

    async def one(namespace: str) -> None:
        async with slots.slot(namespace):
            order.append(namespace)
            await go.wait()

    tasks = [asyncio.create_task(one("many")) for _ in range(6)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(one("few")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert order == ["many", "many"], "slots are not left empty"
    go.set()
    await asyncio.gather(*tasks)
    assert order[2] == "few", order
    assert len(order) == 7


async def _who_is_cancelled_while_waiting_keeps_no_slot() -> None:
    slots, held = FairSlots(1), asyncio.Event()

    async def holder() -> None:
        async with slots.slot("a"):
            await held.wait()

    async def passer() -> None:
        async with slots.slot("b"):
            pass

    first = asyncio.create_task(holder())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(passer())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    held.set()
    await first
    await asyncio.wait_for(passer(), 60)


def test_a_namespace_with_many_passes_does_not_take_all_slots_from_another() -> None:
    asyncio.run(_a_namespace_with_many_passes_does_not_take_all_slots_from_another())


def test_who_is_cancelled_while_waiting_keeps_no_slot() -> None:
    asyncio.run(_who_is_cancelled_while_waiting_keeps_no_slot())
