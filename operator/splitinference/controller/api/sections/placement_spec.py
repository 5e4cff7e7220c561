"""Where layers may be: `spec.partition`, `spec.placement` and `spec.segments`."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from splitinference.controller.api.sections.spec_value import LayerRange, SpecValue


class PinSpec(SpecValue):
    """Layers that must run on a node."""

    layers: LayerRange
    node: str


class Partition(SpecValue):
    """Where the model may be cut."""

    min_segments: int = Field(default=1, ge=1, le=64)
    max_segments: int | None = Field(default=None, ge=1, le=64)
    allowed_split_points: tuple[int, ...] | None = None
    pins: tuple[PinSpec, ...] = ()


class TolerationSpec(SpecValue):
    """As in a pod."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class Placement(SpecValue):
    """Which nodes may be used at all."""

    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: tuple[TolerationSpec, ...] = ()
    max_nodes: int | None = Field(default=None, ge=1)
    processor_classes: tuple[str, ...] = ()


class SegmentsSpec(SpecValue):
    """How every segment runs."""

    threads: int | None = Field(default=None, ge=1, le=256)
    weights: Literal["Packed", "Stored"] = "Packed"
    link_encoding: Literal["Plain", "Int8", "Auto"] = "Plain"
    memory_margin_percent: int = Field(default=10, ge=0, le=100)
    adapter_memory_mib: int = Field(default=0, ge=0, le=1 << 20, alias="adapterMemoryMiB")
