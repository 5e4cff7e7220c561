"""A trace: where a model is served, what is asked of it, and what happens to nodes and links meanwhile."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from splitinference.core.cost.start import Start
from splitinference.core.decide.base.policy import Policy
from splitinference.core.transition.steps import Strategy
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.value import Value


class _At(Value):
    at_s: float = Field(ge=0, description="seconds from the start")


class UtilizationEvent(_At):
    """From now on others use this share of a node's compute."""

    what: Literal["utilization"] = "utilization"
    node: str
    value: float = Field(ge=0, le=1)


class UpEvent(_At):
    """A node dies with all that runs on it (False), or is back with nothing running (True)."""

    what: Literal["up"] = "up"
    node: str
    value: bool


class BandwidthEvent(_At):
    """From now on a link has so many times its nominal bandwidth, in both directions. Names are two nodes, or two zones."""

    what: Literal["bandwidth"] = "bandwidth"
    source: str
    target: str
    value: float = Field(gt=0)


class RttEvent(_At):
    """From now on a link has so many times its nominal round trip, in both directions."""

    what: Literal["rtt"] = "rtt"
    source: str
    target: str
    value: float = Field(ge=0)


class RateEvent(_At):
    """From now on so many requests arrive per second on average."""

    what: Literal["rate"] = "rate"
    value: float = Field(ge=0)


class LabelEvent(_At):
    """A node's label gets this value; None takes it away."""

    what: Literal["label"] = "label"
    node: str
    label: str
    value: str | None = None


class MetricsEvent(_At):
    """The metrics server fails (False) or is back (True)."""

    what: Literal["metrics"] = "metrics"
    value: bool


LinkEvent = BandwidthEvent | RttEvent
Event = Annotated[
    UtilizationEvent | UpEvent | BandwidthEvent | RttEvent | RateEvent | LabelEvent | MetricsEvent, Field(discriminator="what")
]


class Observing(Value):
    """How the operator sees the world: late, averaged, and from time to time. Defaults are the operator's and Kubernetes' own."""

    pass_s: float = Field(default=5.0, gt=0, description="a pass at least so often")
    scrape_s: float = Field(default=15.0, gt=0, description="metrics are read from nodes so often")
    window_s: float = Field(default=60.0, gt=0, description="and are means over so long")
    delay_s: float = Field(default=1.0, ge=0, description="from reading to being there for a query")
    max_age_s: float = Field(default=60.0, gt=0, description="older values count as unknown")
    not_ready_s: float = Field(default=40.0, ge=0, description="a dead node is called not ready after so long")
    ready_s: float = Field(default=10.0, ge=0, description="a node that is back is called ready after so long")
    failing_s: float = Field(default=5.0, ge=0, description="a stage that steps have not got past for so long is lost with its node")
    traffic_window_s: float = Field(default=60.0, gt=0, description="what clients got is told for so long back")


class Serving(Value):
    """How segments start and end, and what the gateway does. Defaults are those of segment, gateway and operator."""

    start_s: float = Field(default=3.3, ge=0, description="of a segment's start, what passes on any node")
    start_core_s: float = Field(default=4.7, ge=0, description="of a segment's start without weights, the work of one core")
    disk_bytes_per_s: float = Field(default=100e6, gt=0, description="weights that one core loads in a second from the node's own disk")
    fetch_bytes_per_s: float = Field(default=50e6, gt=0, description="weights from afar, where the node does not have them yet")
    cached: bool = Field(default=True, description="every node has the whole model on disk from the beginning")
    delete_s: float = Field(default=2.0, ge=0, description="from deletion until the memory is free")
    drain_s: float = Field(default=30.0, ge=0, description="sequences may stay so long on a route that was cut over from")
    stall_s: float = Field(default=5.0, ge=0, description="a step without answer for so long has failed")
    replay_s: float = Field(default=60.0, ge=0, description="a sequence without a route waits so long before the client sees an error")
    max_queue: int = Field(default=64, ge=0, description="requests that may wait for a place; more are refused")

    @property
    def start(self) -> Start:
        """What starting a segment takes."""
        return Start(clock_s=self.start_s, work_s=self.start_core_s, load_bytes_per_s=self.disk_bytes_per_s)


class Trace(Value):
    """All that a run depends on, besides policy and seed. `problem` is the state at the start: its nodes, links, model and wishes."""

    v: Literal[1] = 1
    name: str
    description: str = ""
    duration_s: float = Field(gt=0)
    problem: Problem
    adaptation: Policy = Policy()
    strategy: Strategy = Strategy.SURGE
    requests_per_s: float = Field(ge=0, description="mean arrivals at the start; Poisson")
    lengths_spread: float = Field(default=0.5, ge=0, lt=1, description="lengths vary evenly by this share around the workload's")
    observing: Observing = Observing()
    serving: Serving = Serving()
    events: tuple[Event, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        nodes = {node.name for node in self.problem.snapshot.nodes}
        zones = {node.zone for node in self.problem.snapshot.nodes if node.zone}
        before = 0.0
        for number, event in enumerate(self.events):
            if event.at_s < before:
                raise ValueError(f"events[{number}].at_s: {event.at_s:g} comes after {before:g}; events must be in order")
            if event.at_s > self.duration_s:
                raise ValueError(f"events[{number}].at_s: {event.at_s:g} is after the end, duration_s is {self.duration_s:g}")
            before = event.at_s
            for field, name in _names(event):
                if name not in nodes and not (isinstance(event, LinkEvent) and {event.source, event.target} <= zones):
                    kinds = "two nodes or two zones" if isinstance(event, LinkEvent) else "a node"
                    raise ValueError(f"events[{number}].{field}: expected the name of {kinds}, is {name!r}")
        bounds = self.problem.constraints
        if self.problem.objective.goal is Goal.THROUGHPUT:
            raise ValueError("problem.objective.goal: throughput spreads requests over a flow of paths, which is not simulated")
        if bounds.max_stage_nodes > 1:
            raise ValueError("problem.constraints.max_stage_nodes: expected 1, stages on several nodes are not simulated")
        return self


def _names(event: Event) -> Iterator[tuple[str, str]]:
    match event:
        case BandwidthEvent() | RttEvent():
            yield "source", event.source
            yield "target", event.target
        case UtilizationEvent() | UpEvent() | LabelEvent():
            yield "node", event.node
        case _:
            return
