"""How nodes and links truly are, moment by moment: the trace's events, applied."""

from bisect import bisect_right
from collections.abc import Callable, Generator
from typing import Any

import simpy

from splitinference.core.cost.link import Links
from splitinference.core.values.cluster import Link, LinkQuality, Network, Node, Snapshot
from splitinference.simulation.traces.trace import (
    BandwidthEvent,
    Event,
    LabelEvent,
    MetricsEvent,
    RateEvent,
    RttEvent,
    Trace,
    UpEvent,
    UtilizationEvent,
)

Process = Generator[simpy.Event, Any, None]


class World:
    """The truth. `link_version` changes with the links; listeners are told of nodes that died or came back, and of labels."""

    def __init__(self, env: simpy.Environment, trace: Trace) -> None:
        self._env = env
        self._trace = trace
        start = trace.problem.snapshot
        # What the snapshot does not know is taken to be idle: the truth has no unknowns.
        self.nodes: dict[str, Node] = {n.name: n.model_copy(update={"utilization": n.utilization or 0.0}) for n in start.nodes}
        self.network = start.network
        self.rate = trace.requests_per_s
        self.metrics_up = True
        self.link_version = 0
        self.links = Links(self.network, start.nodes)
        self.since: dict[str, float] = dict.fromkeys(self.nodes, 0.0)
        self.changed: set[str] = set(self.nodes)
        self.on_up: list[Callable[[str, bool], None]] = []
        self.on_label: list[Callable[[], None]] = []
        self._nominal = Links(start.network, start.nodes)
        self._factors: dict[tuple[str, str], tuple[float, float]] = {}
        self._history: dict[str, tuple[list[float], list[float]]] = {
            name: ([0.0], [node.utilization or 0.0]) for name, node in self.nodes.items()
        }
        env.process(self._live())

    def is_up(self, node: str) -> bool:
        """Whether the node lives."""
        return self.nodes[node].ready

    def mean_utilization(self, node: str, start: float, end: float) -> float:
        """Mean share of compute that others used from `start` to `end`, seconds."""
        times, values = self._history[node]
        start = max(0.0, start)
        if end <= start:
            return values[bisect_right(times, end) - 1]
        total, at = 0.0, start
        for number in range(bisect_right(times, start) - 1, len(times)):
            until = min(end, times[number + 1]) if number + 1 < len(times) else end
            total += values[number] * max(0.0, until - at)
            at = max(at, until)
            if at >= end:
                break
        return total / (end - start)

    def snapshot(self) -> Snapshot:
        """The true state now."""
        return self._trace.problem.snapshot.model_copy(update={"nodes": tuple(self.nodes.values()), "network": self.network})

    def _live(self) -> Process:
        for event in self._trace.events:
            if event.at_s > self._env.now:
                yield self._env.timeout(event.at_s - self._env.now)
            self._apply(event)

    def _apply(self, event: Event) -> None:
        match event:
            case UtilizationEvent(node=name, value=value):
                self._update(name, utilization=value)
                times, values = self._history[name]
                times.append(self._env.now)
                values.append(value)
            case UpEvent(node=name, value=up):
                if self.nodes[name].ready != up:
                    self.since[name] = self._env.now
                    self._update(name, ready=up)
                    for told in self.on_up:
                        told(name, up)
            case LabelEvent(node=name, label=label, value=text):
                labels = {key: old for key, old in self.nodes[name].labels.items() if key != label}
                self._update(name, labels=labels if text is None else {**labels, label: text})
                for heard in self.on_label:
                    heard()
            case BandwidthEvent(source=source, target=target, value=value):
                self._link(source, target, bandwidth=value)
            case RttEvent(source=source, target=target, value=value):
                self._link(source, target, rtt=value)
            case RateEvent(value=value):
                self.rate = value
            case MetricsEvent(value=up):
                self.metrics_up = up

    def _update(self, name: str, **fields: object) -> None:
        self.nodes[name] = self.nodes[name].model_copy(update=fields)
        self.changed.add(name)

    def _link(self, source: str, target: str, bandwidth: float | None = None, rtt: float | None = None) -> None:
        between_nodes = source in self.nodes and target in self.nodes
        for a, b in dict.fromkeys(((source, target), (target, source))):
            had = self._factors.get((a, b), (1.0, 1.0))
            self._factors[a, b] = (had[0] if bandwidth is None else bandwidth, had[1] if rtt is None else rtt)
            nominal = self._nominal.quality(a, b) if between_nodes else _between_zones(self._trace.problem.snapshot.network, a, b)
            now = LinkQuality(
                bandwidth_bytes_per_s=nominal.bandwidth_bytes_per_s * self._factors[a, b][0], rtt_ms=nominal.rtt_ms * self._factors[a, b][1]
            )
            field = "links" if between_nodes else "zones"
            kept = tuple(link for link in getattr(self.network, field) if (link.source, link.target) != (a, b))
            self.network = self.network.model_copy(update={field: (*kept, Link(source=a, target=b, quality=now))})
        self.links = Links(self.network, self._trace.problem.snapshot.nodes)
        self.link_version += 1


def _between_zones(network: Network, source: str, target: str) -> LinkQuality:
    found = {(link.source, link.target): link.quality for link in network.zones}
    return found.get((source, target), network.default)
