"""What a decision depends on: the policy, the inputs of this pass, and the memory between passes."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import Field

from splitinference.core.cost.start import Start
from splitinference.core.transition.steps import Blocked, Strategy
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.value import Value


class Mode(StrEnum):
    """Auto: all moves. Advisory: optional moves are only announced. Frozen: no optional moves are looked for."""

    AUTO = "Auto"
    ADVISORY = "Advisory"
    FROZEN = "Frozen"


class Policy(Value):
    """When an optional move is worth its cost."""

    mode: Mode = Mode.AUTO
    utilization_limit: float = Field(default=0.7, gt=0, le=1, description="a node is too busy if others use more than this")
    link_factor: float = Field(
        default=2.0, gt=1, description="a link is degraded if its hop takes more than this many times the planned time"
    )
    link_floor_ms: float = Field(default=2.0, ge=0, description="and more than this much longer, since short hops are noisy")
    window: timedelta = Field(default=timedelta(seconds=60), description="how long a reason must hold")
    confirmations: int = Field(default=3, ge=1, description="how often it must be confirmed, evenly over the window")
    cooldown: timedelta = Field(default=timedelta(minutes=5), description="no optional move for this long after any move")
    min_gain: float = Field(default=0.1, ge=0, le=1, description="share of the objective that a move must gain, net of its cost")
    resplit_gain: float = Field(
        default=0.1, ge=0, le=1, description="share by which new split points must be better than the same split points"
    )
    stabilization: timedelta = Field(
        default=timedelta(minutes=10),
        description="how long optional moves wait at most, after a mandatory move, until the new stages have been measured",
    )
    moves_per_hour: int = Field(default=6, ge=0, description="limit of moves within an hour; beyond it optional moves wait")
    review: timedelta = Field(default=timedelta(seconds=60), description="how often to look for a better plan without any other reason")
    retry: timedelta = Field(default=timedelta(seconds=15), description="how soon to try again when an unchanged problem had no plan")
    obstacle: timedelta = Field(
        default=timedelta(minutes=10), description="how long the node that blocked a transition counts as too small"
    )
    load_bytes_per_s: float = Field(
        default=100e6, gt=0, description="bytes of weights that one core loads in a second, for the cost of a move"
    )
    start_seconds: float = Field(
        default=3.3, ge=0, description="seconds of a segment's start that are the same on every node: scheduling, probes, proof"
    )
    start_core_seconds: float = Field(default=4.7, ge=0, description="core seconds of a segment's start, without loading weights")
    payback: timedelta = Field(
        default=timedelta(minutes=10), description="time over which a move must pay for itself: a move that takes a tenth of it costs 10 %"
    )

    @property
    def spacing(self) -> timedelta:
        """Least time between two confirmations: window / confirmations."""
        return self.window / self.confirmations

    @property
    def start(self) -> Start:
        """What starting a segment costs."""
        return Start(clock_s=self.start_seconds, work_s=self.start_core_seconds, load_bytes_per_s=self.load_bytes_per_s)


class Traffic(Value):
    """Latency that clients measured lately. None: no requests, or unknown."""

    requests: int = Field(default=0, ge=0)
    time_to_first_token_ms: float | None = None
    time_per_output_token_ms: float | None = None


class StageTime(Value):
    """Compute time of one stage's recent decode steps that were not batched with others: the lower quartile, so three of four took longer.
    `age_seconds`: greatest age of the steps. `learned`: the node's calibration factor was measured."""

    node: str
    processor: str = ""
    start: int = Field(ge=0)
    end: int = Field(gt=0)
    alone_ms: float = Field(gt=0)
    steps: int = Field(ge=0)
    age_seconds: float = Field(ge=0)
    learned: bool = True


class DecisionInputs(Value):
    """What one decision depends on. `plan` is the plan that serves, or that a transition leads to."""

    now: datetime
    problem: Problem
    plan: Plan | None = None
    plan_spec_digest: str = Field(default="", description="hash of the spec that the plan was made for")
    spec_digest: str = Field(default="", description="hash of the present spec")
    only_scaled: bool = Field(default=False, description="whether the two specs differ in the number of pipelines alone")
    quarantined: Mapping[str, str] = Field(default_factory=dict, description="nodes where segments keep failing, and the last failure")
    distrusted: Mapping[str, str] = Field(
        default_factory=dict, description="those of them on which a segment gave a wrong output, and the evidence"
    )
    pressured: Mapping[str, str] = Field(default_factory=dict, description="nodes that run out of memory, and the evidence")
    preempted: Mapping[str, str] = Field(
        default_factory=dict, description="nodes where a resource of a higher priority needs the plan's memory, and which"
    )
    in_transition: bool = Field(default=False, description="a transition is in progress")
    moves: tuple[datetime, ...] = Field(default=(), description="times of the moves, oldest first")
    traffic: Traffic = Traffic()
    stages: tuple[StageTime, ...] = Field(default=(), description="measured stages of the plan; empty during a transition")
    measured_windows: int = Field(
        default=0,
        ge=0,
        description="windows in which all stages of the plan were measured, since its route serves",
    )
    may_review: bool = Field(default=True, description="this pass may look for a better plan without any other reason")
    serving: Plan | None = Field(default=None, description="what serves now, if that can be stated as a plan")
    served: bool = Field(default=True, description="a route serves and all its segments are proven")
    held_bytes: Mapping[str, int] = Field(default_factory=dict, description="memory that our segments hold on each node")
    approved: Plan | None = Field(default=None, description="the proposed plan, if a person approved it")
    rejected: frozenset[str] = Field(default=frozenset(), description="revisions of plans that a person rejected lately")
    blocked: Blocked | None = Field(default=None, description="why the transition to the plan cannot continue, if it cannot")
    strategy: Strategy = Strategy.SURGE


class Watch(Value):
    """A reason that holds: since when, how often it was confirmed, and when last."""

    since: datetime
    confirmations: int = Field(ge=0)
    last: datetime


class Obstacle(Value):
    """A node that blocked a transition, and the memory that was free on it beside the serving segments."""

    at: datetime
    free_bytes: int = Field(ge=0)


class Slowed(Value):
    """A node whose stage is slower than predicted: first and last observation, and their number. `metric`: use by others according to the
    metrics at the first observation, 0..1. `implied`: use by others according to the last observation, 0..1."""

    since: datetime
    last: datetime
    observations: int = Field(ge=1)
    metric: float = Field(ge=0, le=1)
    implied: float = Field(ge=0, le=1)


class Level(Value):
    """A node's recent utilization, 0..1. `since`: when it came near this value. `changing_since`: when it began to change before that;
    None: it did not change."""

    utilization: float = Field(ge=0, le=1)
    since: datetime
    changing_since: datetime | None = None


class Stabilizing(Value):
    """The stabilization window after a mandatory move. `since`: when the plan began to serve; None: not yet."""

    since: datetime | None = None


class Memory(Value):
    """What the operator remembers between passes. Losing it, by a restart, only delays optional moves."""

    watches: Mapping[str, Watch] = Field(default_factory=dict)
    reviewed: datetime | None = Field(default=None, description="when the operator last looked for a better plan")
    obstacles: Mapping[str, Obstacle] = Field(default_factory=dict, description="nodes that blocked transitions lately")
    slowed: Mapping[str, Slowed] = Field(default_factory=dict, description="nodes whose stages are slower than metrics explain")
    levels: Mapping[str, Level] = Field(
        default_factory=dict, description="recent utilization of the plan's nodes, and whether it still changes"
    )
    stabilizing: Stabilizing | None = Field(default=None, description="the stabilization window after a mandatory move, while it lasts")
    detoured: datetime | None = Field(default=None, description="when a blocked transition was last abandoned for another plan")
    tried: str = Field(default="", description="hash of the last problem that had no plan")
    tried_room: str = Field(default="", description="hash of the free memory and CPU at that time")
    tries: int = Field(default=0, ge=0, description="number of attempts at that problem with that room")
    tried_at: datetime | None = None
    tried_reason: str = Field(default="", description="reason of that decision to keep the plan")
    tried_message: str = ""

    def after_adoption(self, *, reviewed: datetime | None = None, detoured: datetime | None = None) -> "Memory":
        """The memory after a plan was adopted: no watches and no attempts. What was learned of nodes stays."""
        kept = {"obstacles": self.obstacles, "slowed": self.slowed, "levels": self.levels, "stabilizing": self.stabilizing}
        return Memory(reviewed=reviewed, detoured=detoured or self.detoured).model_copy(update=kept)

    def watching(self, key: str, holds: bool | None, policy: Policy, now: datetime) -> tuple[Watch | None, "Memory"]:
        """Record whether a reason holds. None means unknown: for two windows it neither confirms nor resets.

        At most one confirmation counts per window / confirmations, so they are spread over the window.
        """
        watch = self.watches.get(key)
        if watch is not None and now - watch.last > 2 * policy.window:
            watch = None
        if holds is False:
            watch = None
        elif holds and watch is None:
            watch = Watch(since=now, confirmations=1, last=now)
        elif holds and watch is not None and now - watch.last >= policy.spacing:
            watch = Watch(since=watch.since, confirmations=watch.confirmations + 1, last=now)
        watches = {k: w for k, w in self.watches.items() if k != key}
        if watch is not None:
            watches[key] = watch
        return watch, self.model_copy(update={"watches": watches})


def sustained(watch: Watch | None, policy: Policy, now: datetime, *, corroborated: bool = False) -> bool:
    """Whether a reason has held for the window and was confirmed often enough. `corroborated`: two independent measurements agree, so one
    further confirmation and its share of the window are enough."""
    if watch is None:
        return False
    window, confirmations = (policy.spacing, min(2, policy.confirmations)) if corroborated else (policy.window, policy.confirmations)
    return now - watch.since >= window and watch.confirmations >= confirmations
