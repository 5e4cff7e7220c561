"""What an attack costs: memory of the gateway and the processes that it started, how /healthz answers, what another client gets."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

OTHER_KEY = "sk-other"
_PROBE_SECONDS = 0.1
_ASK_SECONDS = 0.4
_PATIENCE = aiohttp.ClientTimeout(total=20)


@dataclass
class Watch:
    """`health`: seconds that /healthz took, each time; `others`: statuses that another client got."""

    peak_mib: float = 0.0
    health: list[float] = field(default_factory=list)
    others: list[int] = field(default_factory=list)
    slowest_other: float = 0.0

    def health_percentile(self, share: float) -> float:
        """Seconds below which this share of the answers were."""
        ordered = sorted(self.health)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("inf")

    @property
    def served(self) -> float:
        """Share of the other client's requests that got their answer."""
        return sum(status == 200 for status in self.others) / len(self.others) if self.others else 0.0


def memory_mib(pid: int) -> float:
    """Of a process and all that it started; pages that several use count once."""
    total = 0
    for process in _with_children(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total / 1024


def _with_children(pid: int) -> list[int]:
    found = [pid]
    for process in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{process}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
    return found


@asynccontextmanager
async def watched(pid: int, url: str, body: dict[str, object], most_mib: float) -> AsyncIterator[Watch]:
    """Watch while the body runs. Ends the body where the gateway is gone, or has taken `most_mib`."""
    watch = Watch()

    async def memory() -> None:
        while True:
            watch.peak_mib = max(watch.peak_mib, await asyncio.to_thread(memory_mib, pid))
            if watch.peak_mib > most_mib:
                raise MemoryError(f"the gateway has {watch.peak_mib:.0f} MiB")
            await asyncio.sleep(0.1)

    async def health() -> None:
        async with _client("127.0.0.9") as http:
            while True:
                started = time.monotonic()
                answered = False
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with http.get(f"{url}/healthz") as response:
                        answered = response.status == 200
                watch.health.append(time.monotonic() - started if answered else max(20.0, time.monotonic() - started))
                await asyncio.sleep(_PROBE_SECONDS)

    async def other() -> None:
        headers = {"Authorization": f"Bearer {OTHER_KEY}"}
        async with _client("127.0.0.8") as http:
            while True:
                started, status = time.monotonic(), 0
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with http.post(f"{url}/v1/completions", json=body, headers=headers) as response:
                        await response.read()
                        status = response.status
                watch.others.append(status)
                watch.slowest_other = max(watch.slowest_other, time.monotonic() - started)
                await asyncio.sleep(_ASK_SECONDS)

    tasks = [asyncio.create_task(work()) for work in (memory, health, other)]
    try:
        yield watch
        while not watch.others:  # the first may have waited for as long as the attack
            await asyncio.sleep(0.05)
            if tasks[0].done():
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _client(source: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(local_addr=(source, 0), force_close=True), timeout=_PATIENCE)
