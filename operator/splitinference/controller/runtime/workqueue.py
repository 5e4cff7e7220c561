"""One pass at a time for each resource: woken by a change, and at the latest after a while. Nothing else decides when a pass runs.

An event only means "look again": a wake during a pass makes one more pass after it, however many wakes there were.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
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


class Passes:
    """The loops. All methods are called in the event loop; the passes themselves run in the executor's threads."""

    def __init__(
        self,
        one_pass: Callable[[Key], Pass],
        executor: Executor,
        resync_seconds: float,
        retry_seconds: float,
        report: Callable[[Key, Pass, float], None],
    ) -> None:
        """`one_pass` raises nothing that is expected; `report` is told how each pass ended and how many seconds it took."""
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
