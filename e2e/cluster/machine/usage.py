"""What the cluster itself takes of the machine: processor time by node and program, read from /proc while nothing else is done."""

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from e2e.cluster.machine.engine import Engine

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process of a node. `seconds`: processor time since it began."""

    node: str
    program: str
    seconds: float


def processes(engine: Engine, nodes: Sequence[str]) -> dict[tuple[str, int], Process]:
    """All processes of these nodes, by node and number there."""
    found: dict[tuple[str, int], Process] = {}
    for node in nodes:
        for line in engine.execute(node, "cat /proc/[0-9]*/stat 2>/dev/null || true").splitlines():
            if (process := read(node, line)) is not None:
                found[node, process[0]] = process[1]
    return found


def read(node: str, line: str) -> tuple[int, Process] | None:
    """Number and process from a line of /proc/PID/stat: user and system time of it, and of the children that it has waited for."""
    match = re.match(r"(\d+) \((.*)\) (.+)", line)
    if match is None:
        return None
    ticks = sum(map(int, match[3].split()[11:15]))
    return int(match[1]), Process(node, match[2], ticks / _TICKS)


def measure(engine: Engine, nodes: Sequence[str], seconds: float) -> Counter[tuple[str, str]]:
    """Cores taken by (kind of node, program) over so many seconds. What began meanwhile counts from its begin."""
    before, begun = processes(engine, nodes), time.monotonic()
    time.sleep(seconds)
    after, took = processes(engine, nodes), time.monotonic() - begun
    cores: Counter[tuple[str, str]] = Counter()
    for key, process in after.items():
        was = before.get(key)
        spent = process.seconds - (was.seconds if was is not None and was.program == process.program else 0.0)
        cores[kind_of(process.node), process.program] += max(0.0, spent) / took  # type: ignore[assignment]
    return cores


def kind_of(node: str) -> str:
    """`control plane` or `workers`: what all workers take together counts."""
    return "control plane" if re.search(r"-control-plane$", node) else "workers"


def told(cores: Counter[tuple[str, str]], least: float = 0.005) -> str:
    """As lines, the most expensive first; what is less than `least` is summed up."""
    lines = [f"{kind:14} {program:24} {share:6.3f}" for (kind, program), share in cores.most_common() if share >= least]
    rest = sum(share for share in cores.values() if share < least)
    return "\n".join([*lines, f"{'':14} {'all others':24} {rest:6.3f}", f"{'':14} {'together':24} {sum(cores.values()):6.3f} cores"])
