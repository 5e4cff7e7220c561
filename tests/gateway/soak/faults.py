"""What happens to the segments meanwhile: cutovers, and kills of stubs, servers and whole pods; one segment is down at a time."""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

from tests.gateway.real_segments import Segment
from tests.gateway.soak.world import World

KINDS = ("stub", "server", "pod")
STUCK_SECONDS = 60.0  # so long without a good probe, and a kubelet kills the container; a server whose stub is dead ends long before
PROBE_SECONDS = 5.0
READY_SECONDS = 240.0


async def keeper(here: World) -> None:
    """Start again what ended, for ever."""
    while True:
        await asyncio.to_thread(here.keep)
        await asyncio.sleep(0.5)


async def prober(here: World, counts: Counter[str]) -> None:
    """Kill what does not answer its probe for long, as a kubelet does, for ever."""
    well = dict.fromkeys((segment.name for segment in here.segments), time.monotonic())
    while True:
        for segment in here.segments:
            if await asyncio.to_thread(segment.ready):
                well[segment.name] = time.monotonic()
            elif time.monotonic() - well[segment.name] > STUCK_SECONDS:
                counts["stuck"] += 1
                well[segment.name] = time.monotonic()
                await asyncio.to_thread(segment.kill)
        await asyncio.sleep(PROBE_SECONDS)


async def cutovers(here: World, chance: random.Random, counts: Counter[str]) -> None:
    """From one pipeline to the other and back, for ever."""
    pipeline = "left"
    while True:
        await asyncio.sleep(chance.uniform(4, 15))
        pipeline = "right" if pipeline == "left" else "left"
        here.route(pipeline, round(chance.uniform(0.2, 4), 2))
        counts["cutovers"] += 1


async def kills(here: World, chance: random.Random, counts: Counter[str]) -> None:
    """Kill something, wait until all is ready again, for ever."""
    killable = [segment for segment in here.segments if segment not in here.stays]
    for number in range(1_000_000):
        await asyncio.sleep(chance.uniform(3, 12))
        kind = KINDS[number % len(KINDS)]
        segment = chance.choice(killable)
        before = segment.process
        if await asyncio.to_thread(kill, here, segment, kind):
            counts[f"killed_{kind}"] += 1
        await ready_again(segment, before)


def kill(here: World, segment: Segment, kind: str) -> bool:
    """Kill it without a word; false when it was not there."""
    word = {"stub": "triton_python_backend_stub", "server": "tritonserver", "pod": ""}[kind]
    victims = [process for process in here.processes(segment) if word in _command(process)]
    for process in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    return bool(victims)


async def ready_again(segment: Segment, before: object) -> None:
    """Wait until the killed segment serves again, as a new process."""
    end = time.monotonic() + READY_SECONDS
    while segment.process is before or not await asyncio.to_thread(segment.ready):
        if time.monotonic() > end:
            raise TimeoutError(f"{segment.name} did not come back within {READY_SECONDS:.0f} s")
        await asyncio.sleep(0.5)


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
