"""One pass at a time for each resource: woken by a change, and at the latest after a while. Nothing else decides when a pass runs.

An event only means "look again": a wake during a pass makes one more pass after it, however many wakes there were.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""Namespace and name of a resource."""

SPACING_SECONDS = 0.2
"""At least so long between two passes of one resource: a burst of events is one reason to look."""
LONGEST_RETRY_SECONDS = 60.0


class Ended(StrEnum):
    """How a pass ended: with all done that could be, there is no such resource, what it needs does not answer, or it broke."""

    DONE = "done"
    GONE = "gone"
    RETRY = "retry"
    FAILED = "failed"


@dataclass(frozen=True)
class Pass:
    """What a pass says: how it ended, whether the next should come sooner than usual, and whether the solver was asked."""

    ended: Ended
    again_seconds: float | None = None
    solved: bool = False


@dataclass
class _Loop:
    wake: asyncio.Event
    task: asyncio.Task[None]


class FairSlots:
    """So many passes at a time. When one ends, the namespace with the fewest under way goes next; of equals who waited longest.

    All methods are called in the event loop.
    """

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._running: dict[str, int] = {}
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def slot(self, namespace: str) -> AsyncIterator[None]:
        """Waits for a slot, and keeps it until the end of the block."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((namespace, ready))
        self._grant()
        try:
            await ready
        except asyncio.CancelledError:
            if (namespace, ready) in self._waiting:
                self._waiting.remove((namespace, ready))
            else:
                self._release(namespace)
            raise
        try:
            yield
        finally:
            self._release(namespace)

    def _release(self, namespace: str) -> None:
        self._free += 1
        self._running[namespace] -= 1
        if not self._running[namespace]:
            del self._running[namespace]
        self._grant()

    def _grant(self) -> None:
        while self._free and self._waiting:
            # Of equals min takes the first, which has waited longest.
            namespace, ready = chosen = min(self._waiting, key=lambda waiting: self._running.get(waiting[0], 0))
            self._waiting.remove(chosen)
            self._free -= 1
            self._running[namespace] = self._running.get(namespace, 0) + 1
            ready.set_result(None)


class Passes:
    """The loops. All methods are called in the event loop; the passes themselves run in the executor's threads."""

    def __init__(
        self,
        one_pass: Callable[[Key], Pass],
        executor: Executor,
        resync_seconds: float,
        retry_seconds: float,
        report: Callable[[Key, Pass, float], None],
        *,
        slots: int = 8,
    ) -> None:
        """`one_pass` raises nothing that is expected; `report` is told how each pass ended and how many seconds it took.

        `slots`: passes at a time, shared fairly among namespaces.
        """
        self._slots = FairSlots(slots)
        self._one_pass = one_pass
        self._executor = executor
        self._resync = resync_seconds
        self._retry = retry_seconds
        self._report = report
        self._loops: dict[Key, _Loop] = {}

    @property
    def keys(self) -> frozenset[Key]:
        """The resources that have a loop."""
        return frozenset(self._loops)

    def wake(self, key: Key) -> None:
        """There is such a resource, and something about it changed."""
        if (found := self._loops.get(key)) is not None:
            found.wake.set()
            return
        event = asyncio.Event()
        event.set()
        self._loops[key] = _Loop(event, asyncio.create_task(self._run(key, event), name=f"passes of {key[0]}/{key[1]}"))

    def wake_known(self, key: Key) -> None:
        """As `wake`, for what may be left of a resource that is gone."""
        if key in self._loops:
            self.wake(key)

    def wake_all(self) -> None:
        """Something that concerns all resources changed."""
        for found in self._loops.values():
            found.wake.set()

    async def stop(self) -> None:
        """End all loops; a pass that runs in a thread is not interrupted, but nothing follows it."""
        tasks = [found.task for found in self._loops.values()]
        self._loops.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Key, wake: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        done = Pass(Ended.DONE)
        while True:
            try:
                await asyncio.wait_for(wake.wait(), self._delay(failures, done.again_seconds))
            except TimeoutError:
                log.debug("%s/%s: a pass is due", *key)
            wake.clear()
            async with self._slots.slot(key[0]):
                started = time.monotonic()
                try:
                    done = await loop.run_in_executor(self._executor, self._one_pass, key)
                except Exception:
                    # The loop must outlive whatever a pass does: without it the resource would never be looked at again.
                    log.exception("%s/%s: a pass failed", *key)
                    done = Pass(Ended.FAILED)
            self._report(key, done, time.monotonic() - started)
            if done.ended is Ended.GONE and not wake.is_set():
                self._loops.pop(key, None)
                return
            failures = failures + 1 if done.ended in (Ended.FAILED, Ended.RETRY) else 0
            await asyncio.sleep(SPACING_SECONDS)

    def _delay(self, failures: int, again_seconds: float | None) -> float:
        if not failures:
            return self._resync if again_seconds is None else min(again_seconds, self._resync)
        # 2 ** 10 is beyond any limit; more would only make large numbers.
        return float(min(self._retry * 2 ** min(failures - 1, 10), LONGEST_RETRY_SECONDS))
