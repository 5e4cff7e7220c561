"""Who is measured when: round trips to all peers in rounds, and in between one burst at a time, to the link measured longest ago."""

import asyncio
import logging
import random
import socket
import time
from dataclasses import dataclass

from splitinference.probe.board import Board
from splitinference.probe.budget import Budget
from splitinference.probe.wire import CHUNK, ProtocolError, Station, calling

log = logging.getLogger(__name__)

LEAST_BURST = 64 << 10
BURST_TAKES_S = 0.1  # a burst is as large as the link carried in this time, so a thin link is not held up
UNREACHABLE = (OSError, ProtocolError, ValueError)


@dataclass(frozen=True)
class Pace:
    """How often and how much. A burst to one node comes at most every `burst_every_s`, and bursts of all within the budget."""

    interval_s: float = 10.0
    burst_bytes: int = 1 << 20
    burst_every_s: float = 15.0
    budget_bytes_per_minute: int = 16 << 20


class Rounds:
    """Measures from one node to its peers, whose addresses the name `peers` resolves to."""

    def __init__(self, station: Station, board: Board, peers: str, port: int, pace: Pace) -> None:
        self._station, self._board, self._peers, self._port, self._pace = station, board, peers, port, pace
        self._budget = Budget(pace.budget_bytes_per_minute)
        self._known: dict[str, str] = {}  # address -> node
        self._burst_at: dict[str, float] = {}  # address -> when a burst was last tried
        self._next_size: dict[str, int] = {}  # address -> bytes of the next burst

    async def run(self) -> None:
        """For ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._round_trips())
            if self._pace.budget_bytes_per_minute >= LEAST_BURST:
                tasks.create_task(self._bursts())

    async def _round_trips(self) -> None:
        while True:
            known: dict[str, str] = {}
            for address in await self._addresses():
                if node := await self._round_trip(address):
                    known[address] = node
            self._known = known
            self._burst_at = {address: at for address, at in self._burst_at.items() if address in known}
            self._next_size = {address: size for address, size in self._next_size.items() if address in known}
            await _pause(self._pace.interval_s)

    async def _round_trip(self, address: str) -> str | None:
        """Measure one peer; its node, None where it cannot be reached or is ourselves."""
        try:
            async with self._station.line, calling(address, self._port, self._station.node) as call:
                if call.node == self._station.node:
                    return None
                if not call.busy:
                    self._board.round_trip(call.node, await call.rtt_s())
                return call.node
        except UNREACHABLE as error:
            log.info("no answer from %s: %s", address, error or type(error).__name__)
            return None

    async def _bursts(self) -> None:
        while True:
            await _pause(1.0)
            now = time.monotonic()
            due = [a for a in self._known if now - self._burst_at.get(a, -self._pace.burst_every_s) >= self._pace.burst_every_s]
            if not due or self._station.line.locked():
                continue
            address = min(due, key=lambda a: self._burst_at.get(a, 0.0))
            size = min(self._next_size.get(address, self._pace.burst_bytes), self._pace.budget_bytes_per_minute)
            if self._budget.left(now) >= size:
                await self._burst(address, size)

    async def _burst(self, address: str, size: int) -> None:
        sent = 0
        try:
            async with self._station.burst(), calling(address, self._port, self._station.node) as call:
                rtt_s = 0.0 if call.busy else await call.rtt_s()
                sent = size  # what fails half way counts as sent
                done = None if call.busy else await call.burst(size, rtt_s)
                sent = done.size if done else 0
            if done is None:
                self._board.busy()
            else:
                self._burst_at[address] = time.monotonic()
                self._next_size[address] = burst_size(done.mbps, self._pace.burst_bytes)
                self._board.burst(call.node, done.mbps, done.size)
        except UNREACHABLE as error:
            self._burst_at[address] = time.monotonic()
            self._next_size[address] = LEAST_BURST  # a link too thin for the last one may carry this
            self._board.burst("", None, sent)
            log.info("a burst to %s failed: %s", address, error or type(error).__name__)
        if sent:
            self._budget.spend(sent, time.monotonic())

    async def _addresses(self) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(self._peers, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            log.info("%s cannot be resolved: %s", self._peers, error)
            return []
        return sorted({str(entry[4][0]) for entry in found})


def burst_size(last_mbps: float | None, most: int) -> int:
    """Bytes of the next burst over a link that carried `last_mbps` the last time."""
    wanted = most if last_mbps is None else int(last_mbps * 1e6 / 8 * BURST_TAKES_S)
    return min(most, max(LEAST_BURST, wanted // CHUNK * CHUNK))


async def _pause(seconds: float) -> None:
    # Not in step with the other nodes: they would all find each other busy.
    await asyncio.sleep(seconds * random.uniform(0.8, 1.2))
