"""The values that the command line and the page draw. Times are in milliseconds, memory in MiB, shares from 0 to 1. None: not known."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from splitinference.core.values.value import Value


class SegmentView(Value):
    """Layers `[start, end)` on one node.

    `observed_ms`: compute of one decode step; `queue_ms`: what a step waited for others; `batch`: steps computed together in the mean;
    `factor`: measured over predicted time of the node.
    """

    name: str
    pipeline: int = 0
    stage: int = 0
    start: int = 0
    end: int = 0
    node: str = ""
    processor: str = ""
    phase: str = Field(default="", description="Starting, Ready, Proven, Failed, Leaving, Missing, or New in a proposal")
    weight_mib: float | None = None
    kv_mib: float | None = None
    memory_mib: float | None = Field(default=None, description="what its pod requests: weights, KV, runtime")
    predicted_ms: float | None = None
    prefill_ms: float | None = None
    observed_ms: float | None = None
    queue_ms: float | None = None
    batch: float | None = None
    factor: float | None = None


class LinkView(Value):
    """The hop from a stage to the next one. The last hop of a pipeline takes the token back to the gateway: its `target` is empty."""

    source: str
    target: str
    source_node: str = ""
    target_node: str = ""
    predicted_ms: float | None = None
    observed_ms: float | None = None


class PipelineView(Value):
    """One chain of segments that together are the model, with the hops between them, in order."""

    number: int = 0
    segments: tuple[SegmentView, ...] = ()
    links: tuple[LinkView, ...] = ()

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes, stage by stage."""
        return tuple(segment.node for segment in self.segments)


class PlanView(Value):
    """A plan. `value`, `bound`: of the objective, in the goal's unit; `gap`: how far at most from the best plan."""

    revision: str
    pipelines: tuple[PipelineView, ...] = ()
    predicted: Mapping[str, float] = Field(default_factory=dict, description="as status.plan.predicted has them")
    value: float | None = None
    bound: float | None = None
    gap: float | None = None
    optimal: bool = False
    explanation: tuple[str, ...] = ()

    @property
    def segments(self) -> tuple[SegmentView, ...]:
        """All segments, pipeline by pipeline."""
        return tuple(segment for pipeline in self.pipelines for segment in pipeline.segments)


class ProposalView(Value):
    """A plan that the operator offers in mode Advisory. `source`: revision of the plan that it would replace."""

    plan: PlanView
    source: str = ""
    time: str = ""
    reason: str = ""
    message: str = ""


class MoveView(Value):
    """What happens to a run of layers between two plans. `kind`: stay, move (same layers, another node), create or delete (other cuts)."""

    kind: str
    pipeline: int
    start: int
    end: int
    source: str = Field(default="", description="node that has the layers before; empty: none")
    target: str = Field(default="", description="node that has them after; empty: none")
    weight_mib: float | None = None


class DecisionView(Value):
    """One decision. `transition`: first, migration, re-split or keep."""

    time: str = ""
    transition: str = ""
    reason: str = ""
    message: str = ""
    revision: str = ""
    outcome: Mapping[str, Any] = Field(default_factory=dict)


class ConditionView(Value):
    """One condition. `good`: whether its status is as it should be."""

    kind: str
    status: str
    reason: str = ""
    message: str = ""
    since: str = ""
    good: bool = True


class TrafficView(Value):
    """What the gateway saw of the serving route in its last window."""

    requests: int = 0
    failed: int = 0
    window_seconds: float | None = None
    tokens_per_second: float | None = None
    kv_reserved: float | None = None
    first_token_ms: Mapping[str, float] = Field(default_factory=dict, description="by quantile, such as p50")
    next_token_ms: Mapping[str, float] = Field(default_factory=dict, description="the same for each further token")


class HeldView(Value):
    """A segment that holds memory on a node: of which resource, which layers, how much."""

    namespace: str
    resource: str
    segment: str
    component: str = "segment"
    layers: str = ""
    memory_mib: float | None = None


class NodeView(Value):
    """A node, what others use of it, and what we hold. `used_by_others`: share of its processors, where a plan or a caller knows it."""

    name: str
    ready: bool = True
    cordoned: bool = False
    zone: str = ""
    architecture: str = ""
    cores: float | None = None
    memory_mib: float | None = None
    accelerators: Mapping[str, int] = Field(default_factory=dict)
    taints: tuple[str, ...] = ()
    labels: Mapping[str, str] = Field(default_factory=dict)
    used_by_others: float | None = None
    held: tuple[HeldView, ...] = ()


class ResourceView(Value):
    """One SplitInference.

    `plan`: what serves, or what the transition leads to. `serving`: the chains of the serving route, where they differ from the plan's and
    pods and route were given; else empty. `leaving`: segments that have a pod and are not in the plan.
    """

    namespace: str
    name: str
    uid: str = ""
    generation: int = 0
    observed_generation: int = 0
    mode: str = ""
    goal: str = ""
    model: str = ""
    plan: PlanView | None = None
    serving: tuple[PipelineView, ...] = ()
    serving_nodes: str = ""
    leaving: tuple[SegmentView, ...] = ()
    proposal: ProposalView | None = None
    proven: str = Field(default="", description="proven segments out of planned ones, such as 2/3")
    predicted: str = ""
    latency: str = ""
    endpoint: str = ""
    traffic: TrafficView | None = None
    transition_from: str = ""
    transition_to: str = ""
    steps: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    conditions: tuple[ConditionView, ...] = ()
    decisions: tuple[DecisionView, ...] = ()
    error_percent: float | None = Field(default=None, description="mean error of predicted stage times")
    uncalibrated_error_percent: float | None = None
    paid: int = 0
    unpaid: int = 0

    @property
    def title(self) -> str:
        """namespace/name."""
        return f"{self.namespace}/{self.name}"

    @property
    def moving(self) -> bool:
        """Whether a transition is in progress."""
        return bool(self.transition_to)

    def condition(self, kind: str) -> ConditionView | None:
        """The condition of this type; None where there is none."""
        return next((found for found in self.conditions if found.kind == kind), None)
