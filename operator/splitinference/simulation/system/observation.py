"""What the operator can know of the world: metrics averaged, late and sometimes missing; nodes' conditions after their grace times."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import simpy

from splitinference.core.values.cluster import Network, Node, Snapshot
from splitinference.simulation.system.world import Process, World
from splitinference.simulation.traces.trace import Trace

START = datetime(2026, 1, 1, tzinfo=UTC)
"""The moment at which every simulation starts."""


def moment(seconds: float) -> datetime:
    """The time so many seconds after the start."""
    return START + timedelta(seconds=seconds)


class Observation:
    """The snapshot as it is observed. `version` counts its changes: the same number is the same snapshot."""

    def __init__(self, env: simpy.Environment, trace: Trace, world: World, on_change: Callable[[], None]) -> None:
        """`on_change` is called when the API server has something new about nodes (not for metrics, which nobody pushes)."""
        self._env = env
        self._trace = trace
        self._world = world
        self._on_change = on_change
        self._nodes: dict[str, Node] = {n.name: n.model_copy(update={"utilization": None}) for n in trace.problem.snapshot.nodes}
        self._network: Network = trace.problem.snapshot.network
        self._read_at: dict[str, float] = {}
        self._unsettled: dict[str, float] = {}
        self._links_read = 0
        self.version = 0
        self._made: tuple[int, Snapshot] | None = None
        # Metrics have run for long when the simulation starts.
        self._publish(0.0, {name: world.nodes[name].utilization or 0.0 for name in self._nodes}, None)
        world.on_up.append(self._node_went)
        world.on_label.append(self._labels_changed)
        env.process(self._scrape())

    def snapshot(self) -> Snapshot:
        """What is known now."""
        if self._made is None or self._made[0] != self.version:
            base = self._trace.problem.snapshot
            made = base.model_copy(update={"nodes": tuple(self._nodes.values()), "network": self._network})
            self._made = (self.version, made)
        return self._made[1]

    def is_back(self, node: str) -> bool:
        """Whether the node's kubelet speaks again, and has for as long as it takes to end what ran before and to be called ready."""
        return self._world.is_up(node) and self._env.now - self._world.since[node] >= self._trace.observing.ready_s

    def _scrape(self) -> Process:
        observing = self._trace.observing
        while True:
            yield self._env.timeout(observing.scrape_s)
            at = self._env.now
            for name in self._world.changed:
                self._unsettled[name] = at
            self._world.changed.clear()
            values: dict[str, float] = {}
            for name, changed in list(self._unsettled.items()):
                if self._world.is_up(name):
                    values[name] = round(self._world.mean_utilization(name, at - observing.window_s, at), 4)
                    if at - changed > observing.window_s + observing.scrape_s:
                        del self._unsettled[name]
            network = self._world.network if self._world.link_version != self._links_read else None
            self._links_read = self._world.link_version
            if self._world.metrics_up:
                self._env.process(self._later(at, values, network))
            else:
                # What is not read now is read when the server is back.
                self._unsettled.update(dict.fromkeys(self._nodes, at))
                self._links_read = -1
            self._forget(at)

    def _later(self, at: float, values: dict[str, float], network: Network | None) -> Process:
        yield self._env.timeout(self._trace.observing.delay_s)
        self._publish(at, values, network)

    def _publish(self, at: float, values: dict[str, float], network: Network | None) -> None:
        for name in self._nodes:
            if self._world.is_up(name):
                self._read_at[name] = at
        for name, value in values.items():
            self._update(name, utilization=value)
        if network is not None:
            self._network = network
            self.version += 1

    def _forget(self, at: float) -> None:
        for name, read in self._read_at.items():
            if at - read > self._trace.observing.max_age_s and self._nodes[name].utilization is not None:
                self._update(name, utilization=None)
                self._unsettled[name] = at

    def _node_went(self, name: str, up: bool) -> None:
        self._env.process(self._condition(name, up))

    def _condition(self, name: str, up: bool) -> Process:
        since = self._world.since[name]
        yield self._env.timeout(self._trace.observing.ready_s if up else self._trace.observing.not_ready_s)
        if self._world.since[name] == since and self._update(name, ready=up):
            self._on_change()

    def _labels_changed(self) -> None:
        changed = [self._update(name, labels=self._world.nodes[name].labels) for name in self._nodes]
        if any(changed):
            self._on_change()

    def _update(self, name: str, **fields: object) -> bool:
        node = self._nodes[name]
        if all(getattr(node, field) == value for field, value in fields.items()):
            return False
        self._nodes[name] = node.model_copy(update=fields)
        self.version += 1
        return True
