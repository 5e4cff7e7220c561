"""All that the solver sees: profile, snapshot, objective and constraints."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal

from pydantic import Field

from splitinference.core.cluster import Snapshot
from splitinference.core.profile import Profile
from splitinference.core.value import Value

FIRST = "first"
LAST = "last"


class Goal(StrEnum):
    """What an objective minimises (throughput: maximises)."""

    LATENCY = "latency"
    BOTTLENECK = "bottleneck"
    THROUGHPUT = "throughput"
    ENERGY = "energy"
    COST = "cost"


class Objective(Value):
    """The main goal, and weights for what else counts. Weights are in the goal's own unit per unit of the term."""

    goal: Goal = Goal.LATENCY
    utilization_weight: float = Field(default=0.0, ge=0, description="ms added for a peak utilization of 1.0")
    move_weight: float = Field(default=0.0, ge=0, description="ms added for each GiB to move from the serving plan")


class Workload(Value):
    """What is asked of the model: lengths, and how many at once."""

    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=128, ge=1)
    max_context_tokens: int = Field(default=2048, ge=1)
    max_concurrent_sequences: int = Field(default=4, ge=1)


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
    pipelines: int = Field(default=1, ge=1)
    disjoint_pipelines: bool = True


class Problem(Value):
    """One planning problem. `serving` is the plan in service (for the cost of moving), as (start, end, node) triples."""

    profile: Profile
    snapshot: Snapshot
    workload: Workload = Workload()
    objective: Objective = Objective()
    constraints: Constraints = Constraints()
    slo: Slo = Slo()
    serving: tuple[tuple[int, int, str], ...] = ()
