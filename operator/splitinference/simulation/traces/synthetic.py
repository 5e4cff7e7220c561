"""Synthetic traces by name, each from a number of nodes, a duration and a seed; the same three give the same trace."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from splitinference.core.values.cluster import Link, LinkQuality, Network, Node, Snapshot
from splitinference.core.values.problem import Constraints, Problem, Slo, TrustRule, Workload
from splitinference.simulation.traces.models import LLAMA_1B, profile_of
from splitinference.simulation.traces.trace import BandwidthEvent, Event, RateEvent, RttEvent, Trace, UpEvent, UtilizationEvent

HOUR = 3600.0
DAY = 24 * HOUR
TRUSTED = "splitinference.dev/trusted"
GIB = 2**30
STEP_S = 900.0
"""The day's load changes so often, for all nodes at once, as in the published traces of clusters (means over five or fifteen minutes)."""
LAN = LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5)


@dataclass(frozen=True)
class Kind:
    """One sort of machine: what 8, 16 or 32 cores of an edge server give, and what memory it has left for a segment."""

    cores: int
    memory_gib: float
    idle_watts: float
    busy_watts: float


SMALL, MEDIUM, LARGE = Kind(8, 2.25, 35, 95), Kind(16, 3.0, 60, 170), Kind(32, 3.5, 95, 310)


def a_node(name: str, kind: Kind, zone: str = "", trusted: bool = True, utilization: float = 0.0) -> Node:
    """A node of this kind; 20 GFLOP/s and 5 GB/s for each core, as the operator takes them where a node says nothing."""
    return Node(
        name=name,
        zone=zone,
        labels={TRUSTED: "true"} if trusted else {},
        memory_free_bytes=int(kind.memory_gib * GIB),
        cores=kind.cores,
        flops_per_s=kind.cores * 20e9,
        memory_bandwidth_bytes_per_s=kind.cores * 5e9,
        utilization=utilization,
        idle_watts=kind.idle_watts,
        busy_watts=kind.busy_watts,
    )


def _problem(nodes: list[Node], network: Network, slo: Slo) -> Problem:
    profile = profile_of(LLAMA_1B)
    last = len(profile.layers)
    # The layers that see tokens as such, and those next to them, stay where the owner trusts the machine.
    trust = tuple(TrustRule(start=start, end=end, labels={TRUSTED: "true"}) for start, end in ((0, 2), (last - 1, last)))
    return Problem(
        profile=profile,
        snapshot=Snapshot(nodes=tuple(nodes), network=network),
        workload=Workload(prompt_tokens=96, output_tokens=64, max_context_tokens=512, max_concurrent_sequences=8),
        constraints=Constraints(trust=trust),
        slo=slo,
    )


def _ring(zones: list[str], quality: LinkQuality, per_step_ms: float) -> Network:
    """Zones on a ring: inside one a LAN, between two the round trip grows with the steps between them."""
    links = []
    for a, source in enumerate(zones):
        for b, target in enumerate(zones):
            steps = min((a - b) % len(zones), (b - a) % len(zones))
            between = LinkQuality(bandwidth_bytes_per_s=quality.bandwidth_bytes_per_s, rtt_ms=quality.rtt_ms + per_step_ms * steps)
            links.append(Link(source=source, target=target, quality=LAN if a == b else between))
    return Network(default=quality, zones=tuple(links))


def _mixed(count: int, zones: list[str], numbers: random.Random, trusted: float) -> list[Node]:
    """Nodes spread over zones, of all kinds; the first two of each zone are trusted, of the others a share."""
    return [
        a_node(
            f"{zones[i % len(zones)]}-{i // len(zones)}",
            numbers.choices((SMALL, MEDIUM, LARGE), (5, 3, 2))[0],
            zones[i % len(zones)],
            trusted=i < 2 * len(zones) or numbers.random() < trusted,
        )
        for i in range(count)
    ]


def _ordered(events: list[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: event.at_s))


def mec_day_night(nodes: int, duration_s: float, seed: int) -> Trace:
    """Sites of a mobile network: offices are busy by day, homes in the evening, and requests follow; backhaul is slower at the peak."""
    numbers = random.Random(f"mec-day-night/{seed}")
    zones = [f"site{z}" for z in range(max(2, min(12, nodes // 6)))]
    placed = _mixed(nodes, zones, numbers, 0.5)
    events: list[Event] = []
    peak = {zone: (13.0 if z % 2 == 0 else 20.5) + numbers.uniform(-1, 1) for z, zone in enumerate(zones)}
    height = {node.name: numbers.uniform(0.55, 1.0) for node in placed}

    def use(node: Node, at: float) -> float:
        daily = math.exp(-(((at / HOUR - peak[node.zone] + 12) % 24 - 12) ** 2) / 18)
        return round(min(0.97, max(0.0, 0.08 + 0.92 * height[node.name] * daily + numbers.gauss(0, 0.03))), 3)

    start = [node.model_copy(update={"utilization": use(node, 0.0)}) for node in placed]
    for step in range(1, int(duration_s / STEP_S) + 1):
        events += [UtilizationEvent(at_s=step * STEP_S, node=node.name, value=use(node, step * STEP_S)) for node in placed]
    for step in range(int(duration_s / 1800) + 1):
        hour = step / 2 % 24
        rate = 0.02 + 0.06 * math.exp(-(((hour - 16 + 12) % 24 - 12) ** 2) / 30)
        events.append(RateEvent(at_s=step * 1800.0, value=round(rate, 4)))
    for day in range(int(duration_s / DAY) + 1):
        for a, b in pairwise(zones):
            for hour, factor in ((18.0, 2.0), (22.5, 1.0)):
                at = day * DAY + hour * HOUR + numbers.uniform(0, 600)
                if at < duration_s:
                    events.append(RttEvent(at_s=round(at, 1), source=a, target=b, value=factor))
    return Trace(
        name="mec-day-night",
        description="Mobile edge sites over the day: other tenants' load, requests and backhaul follow people",
        duration_s=duration_s,
        problem=_problem(start, _ring(zones, LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=3.0), 0.8), _SLO),
        requests_per_s=0.02,
        events=_ordered(events),
    )


def v2x_bursts(nodes: int, duration_s: float, seed: int) -> Trace:
    """Roadside units: while platoons pass, the units beside them are busy, their links slow, and requests come in bursts."""
    numbers = random.Random(f"v2x-bursts/{seed}")
    zones = [f"rsu{z}" for z in range(max(2, min(8, nodes // 9)))]
    placed = _mixed(nodes, zones, numbers, 0.5)
    events: list[Event] = []
    at = numbers.expovariate(1 / 600)
    while at < duration_s:
        # A short burst is over before any window is; a jam lasts.
        length = numbers.expovariate(1 / 90) if numbers.random() < 0.8 else numbers.uniform(900, 2400)
        end = min(at + length, duration_s)
        zone = numbers.randrange(len(zones))
        here, beside = zones[zone], zones[(zone + 1) % len(zones)]
        for node in placed:
            if node.zone == here and numbers.random() < 0.8:
                events.append(UtilizationEvent(at_s=round(at, 1), node=node.name, value=round(numbers.uniform(0.85, 0.97), 3)))
                events.append(UtilizationEvent(at_s=round(end, 1), node=node.name, value=0.15))
        events.append(BandwidthEvent(at_s=round(at, 1), source=here, target=beside, value=0.05))
        events.append(BandwidthEvent(at_s=round(end, 1), source=here, target=beside, value=1.0))
        events.append(RateEvent(at_s=round(at, 1), value=0.2))
        events.append(RateEvent(at_s=round(end, 1), value=0.05))
        at = end + numbers.expovariate(1 / 600)
    start = [node.model_copy(update={"utilization": 0.15}) for node in placed]
    return Trace(
        name="v2x-bursts",
        description="Roadside units: bursts of seconds to jams of half an hour, in compute, radio links and requests",
        duration_s=duration_s,
        problem=_problem(start, _ring(zones, LinkQuality(bandwidth_bytes_per_s=12.5e6, rtt_ms=6.0), 1.0), _SLO),
        requests_per_s=0.05,
        events=_ordered(events),
    )


def industrial_failures(nodes: int, duration_s: float, seed: int) -> Trace:
    """A plant: machines die and are repaired, links drop to a hundredth and recover; the load itself is even."""
    numbers = random.Random(f"industrial-failures/{seed}")
    zones = [f"hall{z}" for z in range(max(2, min(6, nodes // 4)))]
    placed = _mixed(nodes, zones, numbers, 0.7)
    events: list[Event] = []
    for node in placed:
        at = numbers.expovariate(1 / (8 * HOUR))
        while at < duration_s:
            back = at + numbers.uniform(300, 3600)
            events.append(UpEvent(at_s=round(at, 1), node=node.name, value=False))
            if back < duration_s:
                events.append(UpEvent(at_s=round(back, 1), node=node.name, value=True))
            at = back + numbers.expovariate(1 / (8 * HOUR))
    for a in range(len(zones)):
        for b in range(a, len(zones)):
            at = numbers.expovariate(1 / (12 * HOUR))
            while at < duration_s:
                back = at + numbers.uniform(300, 3600)
                events.append(BandwidthEvent(at_s=round(at, 1), source=zones[a], target=zones[b], value=0.01))
                if back < duration_s:
                    events.append(BandwidthEvent(at_s=round(back, 1), source=zones[a], target=zones[b], value=1.0))
                at = back + numbers.expovariate(1 / (12 * HOUR))
    start = [node.model_copy(update={"utilization": round(numbers.uniform(0.05, 0.3), 2)}) for node in placed]
    return Trace(
        name="industrial-failures",
        description="A plant: machines die every eight hours on average and are repaired within the hour, links fail too",
        duration_s=duration_s,
        problem=_problem(start, _ring(zones, LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=1.0), 0.5), _SLO),
        requests_per_s=0.05,
        events=_ordered(events),
    )


def _few(nodes: int) -> list[Node]:
    """Two nodes that are best together, and others that would do."""
    return [a_node(f"node{i}", LARGE if i < 2 else MEDIUM, utilization=0.1) for i in range(nodes)]


def _simple(name: str, description: str, nodes: int, duration_s: float, events: list[Event]) -> Trace:
    return Trace(
        name=name,
        description=description,
        duration_s=duration_s,
        problem=_problem(_few(nodes), Network(default=LAN), _SLO),
        requests_per_s=0.1,
        events=_ordered(events),
    )


def utilization_step(nodes: int, duration_s: float, seed: int) -> Trace:
    """At a third of the time others take nearly all of one of the best nodes, and keep it."""
    del seed
    events: list[Event] = [UtilizationEvent(at_s=round(duration_s / 3, 1), node="node0", value=0.96)]
    return _simple("utilization-step", "Others take 96 % of one serving node at a third of the time", nodes, duration_s, events)


def utilization_oscillation(nodes: int, duration_s: float, seed: int) -> Trace:
    """The use by others swings around the threshold, faster than any window."""
    numbers = random.Random(f"utilization-oscillation/{seed}")
    events: list[Event] = []
    at = duration_s / 6
    while at < duration_s:
        for node in ("node0", "node1"):
            events.append(
                UtilizationEvent(at_s=round(at, 1), node=node, value=round(0.7 + numbers.choice((-1, 1)) * numbers.uniform(0, 0.1), 3))
            )
        at += numbers.uniform(5, 40)
    return _simple("utilization-oscillation", "Use by others around the threshold, changing every few seconds", nodes, duration_s, events)


def quiet(nodes: int, duration_s: float, seed: int) -> Trace:
    """Nothing changes."""
    del seed
    return _simple("quiet", "Nothing changes", nodes, duration_s, [])


@dataclass(frozen=True)
class Generator:
    """A synthetic trace: how it is made, and how large it is unless asked otherwise."""

    make: Callable[[int, float, int], Trace]
    nodes: int
    hours: float
    least_nodes: int


GENERATORS: Mapping[str, Generator] = {
    "mec-day-night": Generator(mec_day_night, 48, 48.0, 8),
    "v2x-bursts": Generator(v2x_bursts, 36, 12.0, 8),
    "industrial-failures": Generator(industrial_failures, 24, 48.0, 8),
    "utilization-step": Generator(utilization_step, 6, 1.0, 4),
    "utilization-oscillation": Generator(utilization_oscillation, 6, 1.0, 4),
    "quiet": Generator(quiet, 6, 1.0, 4),
}
_SLO = Slo(time_to_first_token_ms=2500.0, time_per_output_token_ms=80.0)
