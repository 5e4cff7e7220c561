"""What a transition walks over: segments by name, routes, and what the cluster shows of them."""

import hashlib
import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from splitinference.core.values.value import Value


class Phase(StrEnum):
    """How far a segment is. Only a proven one may be in a new route; a leaving one is being deleted and still holds its memory."""

    STARTING = "Starting"
    READY = "Ready"
    PROVEN = "Proven"
    FAILED = "Failed"
    LEAVING = "Leaving"


class NamedSegment(Value):
    """A segment of a target. The name covers all that makes its content, so equal names are equal segments."""

    name: str
    start: int = Field(ge=0)
    end: int = Field(gt=0)
    node: str
    memory_bytes: int = Field(ge=0)
    millicores: int = Field(default=0, ge=0, description="CPU that it requests")
    family: str = Field(default="", description="model and dtype: only segments of one family may be in one route")


class ObservedSegment(NamedSegment):
    """A segment that the cluster shows; `why` says in words what is wrong or missing."""

    phase: Phase
    why: str = ""


Names = tuple[str, ...]


class Route(Value):
    """What the gateway sends requests along: pipelines of segment names."""

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


class Resource(StrEnum):
    """What a node may lack. NODE: all of it, as it cannot be used now."""

    MEMORY = "memory"
    CPU = "cpu"
    NODE = "node"


class Shortage(Value):
    """A node without room for a segment beside those that are there: what is needed and what is free, bytes or millicores."""

    node: str
    resource: Resource
    needed: int = Field(ge=0)
    free: int = Field(default=0, ge=0)


class OldRoute(Value):
    """A route that was cut over from. `in_flight` stays True until it is known that nothing is left on it."""

    revision: str
    names: frozenset[str]
    in_flight: bool
    why: str = Field(default="", description="in words: how many are in flight, or why that is not known")


class Observed(Value):
    """What the cluster shows of one resource.

    `room_bytes` is what its segments may hold on each usable node in all, those that run now included; `room_millicores` what they may
    request of its CPU, where that is known.
    """

    segments: Mapping[str, ObservedSegment] = Field(default_factory=dict)
    serving: Route | None = None
    old_routes: tuple[OldRoute, ...] = ()
    room_bytes: Mapping[str, int] = Field(default_factory=dict)
    room_millicores: Mapping[str, int] = Field(default_factory=dict)

    def held_bytes(self, node: str) -> int:
        """What our segments hold on a node now, leaving ones included."""
        return sum(segment.memory_bytes for segment in self.segments.values() if segment.node == node)

    def held_millicores(self, node: str) -> int:
        """What our segments request of a node's CPU now, leaving ones included."""
        return sum(segment.millicores for segment in self.segments.values() if segment.node == node)

    def is_in(self, name: str, *phases: Phase) -> bool:
        """Whether the segment is there and in one of these phases."""
        return name in self.segments and self.segments[name].phase in phases
