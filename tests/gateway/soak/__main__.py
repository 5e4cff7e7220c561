"""`python -m tests.gateway.soak --seconds N`: exit 0 and one line of figures when nothing failed and nothing leaked.

Runs in images/gateway/Dockerfile.test. Figures: `memory_mib_per_hour` is the least-squares slope of private memory after the warm-up, of
the gateway and of the segments that were never killed. `pauses`: the time between two tokens of a sequence that went on along another
route meanwhile, with its KV (handover), by running its tokens again (replay), or so because something had broken (mending).
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.gateway.soak import faults, leaks
from tests.gateway.soak.leaks import MIB, Series
from tests.gateway.soak.load import Load
from tests.gateway.soak.pauses import pauses
from tests.gateway.soak.world import MODEL, World, world

CLIENTS = 5
SAMPLE_SECONDS = 1.0
WARM_SHARE = 0.2
SPARE_DESCRIPTORS = 16  # connections between two peers come and go; one lost with every kill would be more
IDLE_SECONDS = 30.0
TIDY_SECONDS = 7.0  # the gateway closes what belongs to old routes every 5 s


@dataclass(frozen=True)
class Holding:
    """What is open when nobody asks anything."""

    gateway_descriptors: int
    descriptors: dict[str, int]
    regions: dict[str, int]


async def eventually(true: Callable[[], Any], seconds: float, otherwise: Callable[[], str]) -> list[str]:
    """Empty when it came true in time, else a sentence."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(true):
        if time.monotonic() > end:
            return [await asyncio.to_thread(otherwise)]
        await asyncio.sleep(0.3)
    return []


def holding(here: World) -> Holding:
    """Measured now."""
    processes = {segment.name: here.processes(segment) for segment in here.segments}
    return Holding(
        leaks.descriptors([here.gateway.pid]),
        {name: leaks.descriptors(own) for name, own in processes.items()},
        {segment.name: len(leaks.regions(f"si_{segment.name}_")) for segment in here.segments},
    )


async def at_rest(here: World) -> list[str]:
    """Back on the first route with nothing in flight; what is held nevertheless."""
    here.route("left", 0.5)
    found = await eventually(
        lambda: here.told()["queued"] == 0 == here.counted("running_sequences"), IDLE_SECONDS, lambda: f"busy: {here.told()}"
    )
    found += await eventually(lambda: len(here.told()["routes"]) == 1, IDLE_SECONDS, lambda: f"routes in flight: {here.told()['routes']}")
    for segment, gauge in itertools.product(here.segments, ("sequences", "kv_bytes")):
        measured = partial(segment.measured, gauge)
        found += await eventually(
            lambda m=measured: m() == 0, IDLE_SECONDS, lambda s=segment, g=gauge, m=measured: f"{s.name} still holds {g}: {m():.0f}"
        )
    await asyncio.sleep(TIDY_SECONDS)
    return found


async def watch(here: World, series: dict[str, Series], began: float) -> None:
    """Sample memory, for ever."""
    while True:
        now = time.monotonic() - began
        series["gateway"].add(now, leaks.memory([here.gateway.pid]))
        for segment in here.stays:
            series[segment.name].add(now, leaks.memory(here.processes(segment)))
        await asyncio.sleep(SAMPLE_SECONDS)


async def warm(here: World, load: Load) -> None:
    """Both pipelines and the way between them, there and back, so that every lasting connection is made."""
    for pipeline in ("left", "right", "left"):
        here.route(pipeline, 0.5)
        asking = [asyncio.create_task(load.client(1000 + i)) for i in range(CLIENTS)]
        await asyncio.sleep(4)
        here.route("right" if pipeline == "left" else "left", 0.5)
        await asyncio.sleep(3)
        load.stopping = True
        await asyncio.gather(*asking)
        load.stopping = False


async def soak(here: World, seconds: float, seed: int) -> tuple[dict[str, Any], list[str]]:
    """The figures, and what is wrong."""
    load, counts, chance = Load(here.url, MODEL), Counter[str](), random.Random(seed)
    await warm(here, load)
    found = await at_rest(here)
    before = holding(here)
    began = time.monotonic()
    series = {name: Series(name, WARM_SHARE * seconds) for name in ("gateway", *(segment.name for segment in here.stays))}
    background = [
        asyncio.create_task(work)
        for work in (
            faults.keeper(here),
            faults.prober(here, counts),
            faults.cutovers(here, chance, counts),
            faults.kills(here, random.Random(seed + 1), counts),
            watch(here, series, began),
        )
    ]
    clients = [asyncio.create_task(load.client(i)) for i in range(CLIENTS)]
    done, _ = await asyncio.wait([*background, *clients], timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # nothing of it ends by itself, but by an error
    for task in background[2:]:  # what is broken is still mended
        task.cancel()
    load.stopping = True
    await asyncio.gather(*clients)
    found += await eventually(here.all_ready, faults.READY_SECONDS, lambda: "not every segment is ready at the end")
    for task in background[:2]:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    found += await at_rest(here)
    after = holding(here)
    found += [leak for one in series.values() if (leak := one.leak())]
    if after.gateway_descriptors > before.gateway_descriptors + SPARE_DESCRIPTORS:
        found.append(f"the gateway has {after.gateway_descriptors} file descriptors, at first {before.gateway_descriptors}")
    for name, number in after.descriptors.items():
        if number > before.descriptors[name] + SPARE_DESCRIPTORS:
            found.append(f"{name} has {number} file descriptors, at first {before.descriptors[name]}")
    if after.regions != before.regions:
        found.append(f"regions of shared memory: {after.regions}, at first {before.regions}")
    found += [f"another text than before: {wrong}" for wrong in load.wrong] + [f"failed: {why}" for why in load.failures]
    figures = {
        "seconds": round(time.monotonic() - began),
        "requests": load.counts["finished"] + load.counts["cancelled"] + load.counts["failed"],
        **{name: load.counts[name] for name in ("cancelled", "failed", "pieces")},
        **{f"killed_{kind}": counts[f"killed_{kind}"] for kind in faults.KINDS},
        "restarts": here.restarts,
        "stuck": counts["stuck"],
        "cutovers": counts["cutovers"],
        **{name: int(here.counted(f"{name}_total")) for name in ("handovers", "handover_fallbacks", "replays")},
        "pauses": {by: asdict(seen) for by, seen in pauses(here.metrics()).items()},
        "longest_gap_s": round(load.longest_gap, 2),
        "memory_mib": {name: round(one.samples[-1].memory_bytes / MIB, 1) for name, one in series.items() if one.samples},
        "memory_mib_per_hour": {name: round(one.slope * 3600 / MIB, 1) for name, one in series.items()},
        "descriptors": [before.gateway_descriptors, after.gateway_descriptors],
    }
    return figures, found


def main() -> int:
    """Exit 1 with a line for each thing that is wrong."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0, help="of load")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # so that what runs is ended too
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        with world(Path(folder), Path(os.environ["SI_TEST_MODEL_PATH"])) as here:
            figures, found = asyncio.run(soak(here, options.seconds, options.seed))
        found += [f"left in /dev/shm: {name}" for name in leaks.regions(f"si_{MODEL}-")]
    for line in found:
        sys.stderr.write(f"soak: {line}\n")
    sys.stdout.write(json.dumps({"ok": not found, **figures}) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
