"""All that the solver sees: profile, snapshot, objective and constraints."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, Self

from pydantic import Field, model_validator

from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.profile import LinkEncoding, Profile
from splitinference.core.values.room import Room, SecondCopies
from splitinference.core.values.value import Value

MOST_BYTES = 2**60
"""Most bytes of a model or of a place: a million tebibytes, far from where 64 bits end."""
FIRST = "first"
LAST = "last"


class Goal(StrEnum):
    """What an objective minimises (throughput: maximises)."""

    LATENCY = "latency"
    """Time to first token plus mean time per output token, ms; of several pipelines the slowest one's."""
    BOTTLENECK = "bottleneck"
    """How long the slowest stage or link is taken for each step, ms."""
    THROUGHPUT = "throughput"
    """Tokens per second of all nodes together, each holding one run of layers; the only goal that is maximised."""
    ENERGY = "energy"
    """Joules per output token that the work adds to what the nodes draw idle."""
    COST = "cost"
    """Cost per hour of the nodes used."""
    MOVE = "move"
    """GiB of weights to load for segments that do not serve now."""


class Objective(Value):
    """The main goal, and weights for what else counts. Weights are in the goal's own unit per unit of the term.

    `then` are further goals, each minimised among the plans that are best in all before it.
    """

    goal: Goal = Goal.LATENCY
    utilization_weight: float = Field(default=0.0, ge=0, description="added for a peak utilization of 1.0")
    move_weight: float = Field(default=0.0, ge=0, description="added for each GiB to move from the serving plan")
    then: tuple[Goal, ...] = ()

    @model_validator(mode="after")
    def _combines(self) -> Self:
        goals = (self.goal, *self.then)
        if len(set(goals)) != len(goals):
            raise ValueError("then: every goal at most once")
        if Goal.THROUGHPUT in goals and (self.then or self.utilization_weight or self.move_weight):
            raise ValueError("throughput is a goal of its own: without weights and without further goals")
        if self.then and (self.utilization_weight or self.move_weight):
            raise ValueError("either weights or further goals (then), not both: name the goals in the order that counts")
        return self


class Workload(Value):
    """What is asked of the model: lengths, and how many at once."""

    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=128, ge=1)
    max_context_tokens: int = Field(default=2048, ge=1)
    max_concurrent_sequences: int = Field(default=4, ge=1)
    adapter_bytes: int = Field(default=0, ge=0, description="memory for adapters of the whole model: each block has an equal part")
    batch: int = Field(default=1, ge=1, description="sequences that a stage steps together while decoding")
    requests_per_s: float = Field(
        default=0.0, ge=0, description="rate that utilization after placement is computed for; 0: only what others use counts"
    )


class Slo(Value):
    """Upper limits that a plan must keep; None: no limit."""

    time_to_first_token_ms: float | None = Field(default=None, gt=0)
    time_per_output_token_ms: float | None = Field(default=None, gt=0)


class Toleration(Value):
    """As Kubernetes has it; an empty key with operator Exists tolerates everything."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: str = ""


class TrustRule(Value):
    """Layers [start, end) may run only on nodes that carry all of `labels`."""

    start: int = Field(ge=0)
    end: int = Field(gt=0)
    labels: Mapping[str, str]
    because: str = Field(default="", description="where the rule comes from, in words, if nobody wrote it as it is")


class Pin(Value):
    """Layers [start, end) must run on this node."""

    start: int = Field(ge=0)
    end: int = Field(gt=0)
    node: str


class Constraints(Value):
    """What a plan must keep whatever the objective."""

    min_segments: int = Field(default=1, ge=1)
    max_segments: int | None = Field(default=None, ge=1)
    max_nodes: int | None = Field(default=None, ge=1)
    split_points: tuple[int, ...] | None = Field(default=None, description="boundaries where a cut is allowed; None: all")
    pins: tuple[Pin, ...] = ()
    trust: tuple[TrustRule, ...] = ()
    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    utilization_ceiling: float | None = Field(default=None, gt=0, le=1)
    min_bandwidth_bytes_per_s: float | None = Field(default=None, gt=0)
    memory_margin: float = Field(default=0.1, ge=0, le=1, description="share added to every segment's memory demand")
    pipelines: int = Field(default=1, ge=1, description="replicas of the whole chain; requests are spread evenly over them")
    disjoint_pipelines: bool = Field(default=True, description="no node serves two pipelines")
    max_cost_per_hour: float | None = Field(default=None, gt=0, description="most that the nodes used may cost per hour together")
    max_watts: float | None = Field(default=None, gt=0, description="most that the nodes used may draw together while they work")
    max_stage_nodes: int = Field(default=1, ge=1, description="nodes that may hold the same stage and share its requests evenly")
    partial_runs: bool = Field(
        default=False, description="throughput only: a request may enter a node's run in its middle, if the segments can do that"
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_segments is not None and self.max_segments < self.min_segments:
            raise ValueError(f"max_segments {self.max_segments} is less than min_segments {self.min_segments}")
        for start, end in self.runs_named():
            if end <= start:
                raise ValueError(f"layers [{start}, {end}) of a pin or trust rule are none")
        return self

    def runs_named(self) -> tuple[tuple[int, int], ...]:
        """The runs of layers that pins and trust rules name."""
        return (*((pin.start, pin.end) for pin in self.pins), *((rule.start, rule.end) for rule in self.trust))


class Problem(Value):
    """One planning problem. `serving` is the plan in service (for the cost of moving), as (start, end, node) triples."""

    profile: Profile
    snapshot: Snapshot
    workload: Workload = Workload()
    objective: Objective = Objective()
    constraints: Constraints = Constraints()
    slo: Slo = Slo()
    link_encoding: LinkEncoding = Field(default=LinkEncoding.PLAIN, description="how hidden states travel between segments")
    serving: tuple[tuple[int, int, str], ...] = ()
    rooms: tuple[Room, ...] = Field(default=(), description="what a plan leaves free for other pods, where such a plan exists")
    second_copies: SecondCopies | None = Field(
        default=None, description="which segments are computed a second time; a plan leaves room for that, where such a plan exists"
    )

    @model_validator(mode="after")
    def _can_be_counted(self) -> Self:
        """Sums of bytes stay within the 64 bits that the planner counts them in."""
        tokens = self.workload.max_concurrent_sequences * self.workload.max_context_tokens
        whole = sum(layer.weight_bytes + layer.kv_bytes_per_token * tokens for layer in self.profile.layers) + self.profile.runtime_bytes
        whole += self.workload.adapter_bytes + len(self.profile.layers)
        if whole > MOST_BYTES:
            raise ValueError(f"the model with its KV cache would need {whole} bytes, expected at most {MOST_BYTES}")
        for node in self.snapshot.nodes:
            free = node.memory_free_bytes
            if node.processors:
                free = max(free, *(processor.memory_free_bytes for processor in node.processors))
            if free > MOST_BYTES:
                raise ValueError(f"{node.name}: memory_free_bytes is {free}, expected at most {MOST_BYTES}")
        return self

    @property
    def counts_cost(self) -> bool:
        """Whether a node's price decides anything: by a goal or by a budget."""
        goals = (self.objective.goal, *self.objective.then)
        return Goal.COST in goals or self.constraints.max_cost_per_hour is not None

    @property
    def counts_power(self) -> bool:
        """Whether a node's power decides anything: by a goal or by a budget."""
        goals = (self.objective.goal, *self.objective.then)
        return Goal.ENERGY in goals or self.constraints.max_watts is not None

    @property
    def limits_paths(self) -> bool:
        """Whether each path of requests has limits of its own: the SLO, or the most segments it may have."""
        slo = self.slo
        return bool(slo.time_to_first_token_ms or slo.time_per_output_token_ms or self.constraints.max_segments)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        layers, bounds = len(self.profile.layers), self.constraints
        for start, end in bounds.runs_named():
            if end > layers:
                raise ValueError(f"layers [{start}, {end}) of a pin or trust rule: the model has {layers} layers")
        for point in bounds.split_points or ():
            if not 0 < point < layers:
                raise ValueError(f"split point {point} is not inside the model's {layers} layers")
        if self.objective.goal is Goal.THROUGHPUT and (bounds.pipelines > 1 or bounds.max_stage_nodes > 1):
            raise ValueError("throughput spreads requests over all paths: pipelines and max_stage_nodes must be 1")
        if self.objective.goal is Goal.THROUGHPUT and (bounds.min_segments > 1 or bounds.utilization_ceiling):
            raise ValueError("throughput keeps nodes busy: a least number of segments and a utilization ceiling are for the other goals")
        if self.objective.goal is Goal.THROUGHPUT and (bounds.max_cost_per_hour or bounds.max_watts):
            raise ValueError("throughput takes every node that adds to it: a budget for cost or power is for the other goals")
        if bounds.partial_runs and self.limits_paths:
            raise ValueError("partial_runs: a path that enters a run in its middle has no limit on its segments or by the SLO")
        if self.objective.then and (bounds.pipelines > 1 or bounds.max_stage_nodes > 1):
            raise ValueError("further goals (then) are for one pipeline with stages on one node each")
        if bounds.partial_runs and self.objective.goal is not Goal.THROUGHPUT:
            raise ValueError("partial_runs is for the throughput goal only")
        return self
