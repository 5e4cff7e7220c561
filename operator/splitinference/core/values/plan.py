"""A plan: which layers run where. Immutable, and named by a hash of its content."""

import hashlib
import json
from typing import Self

from pydantic import Field, model_validator

from splitinference.core.values.profile import LinkEncoding
from splitinference.core.values.value import Value


class Segment(Value):
    """A half-open run of layers [start, end) on one node; `replicas` are further nodes that hold the same stage.

    `held_start` is set where the node holds more layers than this pipeline runs there: it holds [held_start, end) and
    this pipeline enters at `start`.
    """

    start: int = Field(ge=0)
    end: int = Field(gt=0)
    node: str
    processor: str = ""
    replicas: tuple[str, ...] = ()
    held_start: int | None = Field(default=None, ge=0)
    link_encoding: LinkEncoding | None = Field(
        default=None, description="how it sends hidden states on, where the planner chose that; null: as the problem says, or plain"
    )

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"segment [{self.start}, {self.end}) holds no layer")
        if self.held_start is not None and self.held_start >= self.start:
            raise ValueError(f"held_start {self.held_start} is not before start {self.start}")
        if len({self.node, *self.replicas}) != 1 + len(self.replicas):
            raise ValueError(f"segment [{self.start}, {self.end}) names a node twice")
        return self

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node and the further nodes that hold the same stage."""
        return (self.node, *self.replicas)

    @property
    def held(self) -> tuple[int, int]:
        """The layers that its nodes hold, half-open."""
        return (self.start if self.held_start is None else self.held_start, self.end)


class Pipeline(Value):
    """The ordered segments that together are the model; `share` of the requests take it (shares of a plan add up to 1)."""

    segments: tuple[Segment, ...] = Field(min_length=1)
    share: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _covers_without_gap(self) -> Self:
        position = 0
        for segment in self.segments:
            if segment.start != position:
                raise ValueError(f"segment [{segment.start}, {segment.end}) should start at layer {position}")
            position = segment.end
        return self

    @property
    def split_points(self) -> tuple[int, ...]:
        """The boundaries where this pipeline is cut."""
        return tuple(segment.end for segment in self.segments[:-1])


class StagePrediction(Value):
    """What the cost model expects of one stage. `link_ms` is one decode step's hop to the next stage and back; 0 for the last."""

    weight_bytes: int
    kv_bytes: int
    memory_bytes: int = Field(description="what the segment needs in all: weights, KV, runtime, margin")
    prefill_ms: float
    decode_ms: float
    link_ms: float
    utilization: float


Range = tuple[float, float]
"""From the least to the most that is likely."""


class Ranges(Value):
    """Predictions as far as the spreads of the figures behind them go: all places at their quickest, and all at their slowest.

    So they are wider than errors that are independent of each other would make them. Links count as they were measured.
    """

    time_to_first_token_ms: Range
    time_per_output_token_ms: Range
    latency_ms: Range
    bottleneck_ms: Range
    tokens_per_s: Range


class Prediction(Value):
    """What the cost model expects of a plan; stages of the first pipeline first, in order.

    Of several pipelines the slowest one's times count; tokens per second are those of all together.
    """

    time_to_first_token_ms: float
    time_per_output_token_ms: float
    latency_ms: float = Field(description="whole request: time to first token and the other output tokens")
    bottleneck_ms: float
    tokens_per_s: float
    peak_utilization: float
    energy_joules_per_token: float = 0.0
    cost_per_hour: float = 0.0
    watts: float = Field(default=0.0, description="what the nodes used draw together while they work")
    moved_bytes: int = Field(default=0, description="weights to load for segments that do not serve now")
    ingress_ms: float = Field(default=0.0, description="one decode step's hop from the gateway to the first stage and back")
    stages: tuple[StagePrediction, ...]
    ranges: Ranges | None = Field(default=None, description="null: the spread of the figures of a place that is used is not known")


class Plan(Value):
    """A decision. The revision names pipelines and model alone: the same cut on the same nodes is the same plan."""

    model_digest: str
    pipelines: tuple[Pipeline, ...] = Field(min_length=1)
    prediction: Prediction | None = None
    value: float | None = Field(default=None, description="the objective's value, in the goal's unit (latency: ms)")
    bound: float | None = Field(default=None, description="no plan can be better than this")
    gap: float | None = Field(default=None, description="(value - bound) / value; 0: proven optimal")
    optimal: bool = False
    explanation: tuple[str, ...] = Field(default=(), description="why these nodes, in words with numbers")

    @property
    def revision(self) -> str:
        """Ten hex digits of the hash of what matters: the model's content, the cuts, the nodes."""
        content = [
            self.model_digest,
            [[s.model_dump(mode="json", exclude_none=True) for s in pipeline.segments] for pipeline in self.pipelines],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All segments, pipeline by pipeline."""
        return tuple(segment for pipeline in self.pipelines for segment in pipeline.segments)
