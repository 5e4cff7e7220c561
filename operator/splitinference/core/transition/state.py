"""The values of a transition: segments by name, routes, and the observed state."""

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from splitinference.core.values.value import Value


class Phase(StrEnum):
    """Life cycle of a segment. Only proven ones may be in a new route. A leaving one is being deleted and still holds its memory."""

    STARTING = "Starting"
    READY = "Ready"
    PROVEN = "Proven"
    FAILED = "Failed"
    LEAVING = "Leaving"


class NamedSegment(Value):
    """A segment of a target. The name is a hash of the content, so equal names are equal segments."""

    name: str
    start: int = Field(ge=0)
    end: int = Field(gt=0)
    node: str
    memory_bytes: int = Field(ge=0)
    millicores: int = Field(default=0, ge=0, description="CPU request")
    family: str = Field(default="", description="model and dtype; all segments of a route have the same family")
    processor: str = Field(default="", description="processor of the node; empty: its CPU")
    device: str = Field(default="", description="extended resource of which it requests one; empty: none")


class ObservedSegment(NamedSegment):
    """An observed segment. `why` says in words what is wrong or missing."""

    phase: Phase
    why: str = ""


Names = tuple[str, ...]


class Route(Value):
    """The route of requests: pipelines of segment names."""

    pipelines: tuple[Names, ...] = Field(min_length=1)

    @property
    def names(self) -> frozenset[str]:
        """All segments of the route."""
        return frozenset(name for pipeline in self.pipelines for name in pipeline)

    @property
    def revision(self) -> str:
        """Ten hex digits of the hash of the names: the same segments in the same order are the same route."""
        return hashlib.sha256(json.dumps(self.pipelines).encode()).hexdigest()[:10]


class Target(Value):
    """A plan as named segments."""

    pipelines: tuple[tuple[NamedSegment, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_mean_one_thing(self) -> Self:
        seen: dict[str, NamedSegment] = {}
        for pipeline in self.pipelines:
            for segment in pipeline:
                if seen.setdefault(segment.name, segment) != segment:
                    raise ValueError(f"segment {segment.name!r} occurs with two contents")
        return self

    @property
    def segments(self) -> Mapping[str, NamedSegment]:
        """All segments by name, in order of pipelines and stages."""
        return {segment.name: segment for pipeline in self.pipelines for segment in pipeline}

    @property
    def route(self) -> Route:
        """The route that serves this target."""
        return Route(pipelines=tuple(tuple(segment.name for segment in pipeline) for pipeline in self.pipelines))


class ShortOf(StrEnum):
    """What a node is short of. NODE: the node cannot be used at all."""

    MEMORY = "memory"
    CPU = "cpu"
    DEVICE = "device"
    NODE = "node"


class Shortage(Value):
    """A node without room for a segment beside the present ones: needed and free amounts, in bytes, millicores or devices."""

    node: str
    resource: ShortOf
    needed: int = Field(ge=0)
    free: int = Field(default=0, ge=0)


class OldRoute(Value):
    """An earlier route. `in_flight` stays True until it is known that no request uses it any more."""

    revision: str
    names: frozenset[str]
    in_flight: bool
    why: str = Field(default="", description="in words: the number of requests in flight, or why it is unknown")


class Observed(Value):
    """The observed state of one SplitInference.

    `room_bytes`: memory that all its segments together may hold on each usable node. `room_millicores`: CPU that they may request together,
    if known. `room_devices`: devices that they may hold together, by extended resource; none where nothing is said.
    """

    segments: Mapping[str, ObservedSegment] = Field(default_factory=dict)
    serving: Route | None = None
    old_routes: tuple[OldRoute, ...] = ()
    room_bytes: Mapping[str, int] = Field(default_factory=dict)
    room_millicores: Mapping[str, int] = Field(default_factory=dict)
    room_devices: Mapping[str, Mapping[str, int]] = Field(default_factory=dict)

    def held_bytes(self, node: str) -> int:
        """Memory that our segments hold on a node, including leaving ones."""
        return sum(segment.memory_bytes for segment in self.segments.values() if segment.node == node)

    def held_millicores(self, node: str) -> int:
        """CPU that our segments request on a node, including leaving ones."""
        return sum(segment.millicores for segment in self.segments.values() if segment.node == node)

    def held_devices(self, node: str, resource: str) -> int:
        """Devices of this resource that our segments hold on a node, including leaving ones."""
        return sum(segment.node == node and segment.device == resource for segment in self.segments.values())

    def is_in(self, name: str, *phases: Phase) -> bool:
        """Whether the segment exists and is in one of these phases."""
        return name in self.segments and self.segments[name].phase in phases
