"""What an answer to change depends on, as values: the policy, what is known of the present, and what must be remembered between passes."""

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
    """What may be done without being asked: everything; optional moves only said; optional moves not even looked for."""

    AUTO = "Auto"
    ADVISORY = "Advisory"
    FROZEN = "Frozen"


class Policy(Value):
    """When an optional move is worth it."""

    mode: Mode = Mode.AUTO
    utilization_limit: float = Field(default=0.7, gt=0, le=1, description="use by others above which a node that serves is too busy")
    link_factor: float = Field(default=2.0, gt=1, description="a hop so many times slower than planned is degraded")
    link_floor_ms: float = Field(default=2.0, ge=0, description="and slower by at least so much: small hops are noisy")
    window: timedelta = Field(default=timedelta(seconds=60), description="so long a reason must hold")
    confirmations: int = Field(default=3, ge=1, description="and be seen so often, evenly over the window")
    cooldown: timedelta = Field(default=timedelta(minutes=5), description="no optional move for so long after any move")
    min_gain: float = Field(default=0.1, ge=0, le=1, description="share of the objective that a move must gain, its cost taken off")
    resplit_gain: float = Field(default=0.1, ge=0, le=1, description="share by which new cuts must be better than the same cuts")
    stabilization: timedelta = Field(
        default=timedelta(minutes=10),
        description="after a mandatory move, optional ones wait at most so long for the new stages to be measured",
    )
    moves_per_hour: int = Field(default=6, ge=0, description="most moves within an hour; optional ones wait beyond it")
    review: timedelta = Field(default=timedelta(seconds=60), description="how often a better plan is looked for without any other reason")
    retry: timedelta = Field(default=timedelta(seconds=15), description="how soon an unchanged problem without a plan is tried again")
    obstacle: timedelta = Field(default=timedelta(minutes=10), description="so long what stood in the way of a walk counts as a fact")
    load_bytes_per_s: float = Field(default=100e6, gt=0, description="weights that one core loads in a second, for the cost of moving")
    start_seconds: float = Field(default=3.3, ge=0, description="of a segment's start, what passes on any node: scheduling, probes, proof")
    start_core_seconds: float = Field(default=4.7, ge=0, description="of a segment's start without weights, the work of one core")
    payback: timedelta = Field(
        default=timedelta(minutes=10), description="horizon of the cost of moving: a move that takes a tenth of it costs a tenth"
    )

    @property
    def spacing(self) -> timedelta:
        """Time from one confirmation to the next: its share of the window."""
        return self.window / self.confirmations

    @property
    def start(self) -> Start:
        """What starting a segment costs."""
        return Start(clock_s=self.start_seconds, work_s=self.start_core_seconds, load_bytes_per_s=self.load_bytes_per_s)


class Traffic(Value):
    """What clients got lately; None: nobody asked, or it is not known."""

    requests: int = Field(default=0, ge=0)
    time_to_first_token_ms: float | None = None
    time_per_output_token_ms: float | None = None


class StageTime(Value):
    """Compute of one stage's decode steps of the last seconds, of those that computed alone: the lower quartile, so three of four took at
    least so long. `age_seconds`: how old the oldest of them may be; `learned`: the node's factor was measured."""

    node: str
    processor: str = ""
    start: int = Field(ge=0)
    end: int = Field(gt=0)
    alone_ms: float = Field(gt=0)
    steps: int = Field(ge=0)
    age_seconds: float = Field(ge=0)
    learned: bool = True


class Facts(Value):
    """What is known now. `plan` is the plan in service or under way."""

    now: datetime
    problem: Problem
    plan: Plan | None = None
    planned_for: str = Field(default="", description="hash of the specification that the plan was made for")
    asked: str = Field(default="", description="hash of the specification as it is now")
    quarantined: Mapping[str, str] = Field(default_factory=dict, description="nodes where segments keep failing, and how")
    distrusted: Mapping[str, str] = Field(
        default_factory=dict, description="those of them on which a segment gave a wrong output, and what was found"
    )
    pressured: Mapping[str, str] = Field(default_factory=dict, description="nodes that run out of memory, and how that shows")
    walking: bool = Field(default=False, description="a transition is under way")
    moves: tuple[datetime, ...] = Field(default=(), description="when plans were moved to, oldest first")
    traffic: Traffic = Traffic()
    stages: tuple[StageTime, ...] = Field(default=(), description="the plan's stages as they serve now; none on the way to it")
    measured_windows: int = Field(
        default=0,
        ge=0,
        description="windows of the gateway's figures in which all stages of the plan were measured, since its route serves",
    )
    may_review: bool = Field(default=True, description="there is leave to look for a better plan without any other reason")
    serving: Plan | None = Field(default=None, description="what serves now, as a plan, where it can be stated as one")
    served: bool = Field(default=True, description="a route serves and all of it is proven")
    held_bytes: Mapping[str, int] = Field(default_factory=dict, description="memory that our segments hold on each node now")
    blocked: Blocked | None = Field(default=None, description="why the walk to the plan cannot go on, if it cannot")
    strategy: Strategy = Strategy.SURGE


class Watch(Value):
    """A reason that holds: since when, how often it was confirmed, and when last."""

    since: datetime
    confirmations: int = Field(ge=0)
    last: datetime


class Obstacle(Value):
    """A node that stood in the way of a walk, and the memory that was free there beside the segments that serve."""

    at: datetime
    free_bytes: int = Field(ge=0)


class Slowed(Value):
    """A node whose stage has been slower than predicted: since when, when last, and in how many observations. `metric`: use by others, as
    metrics had it at the first of them, 0..1; `implied`: as the last one implied it."""

    since: datetime
    last: datetime
    observations: int = Field(ge=1)
    metric: float = Field(ge=0, le=1)
    implied: float = Field(ge=0, le=1)


class Level(Value):
    """Where a node's utilization has been lately, 0..1: since when it keeps near `utilization`, and since when it had kept changing before
    that (None: it was there when it was first seen, or has been for long)."""

    utilization: float = Field(ge=0, le=1)
    since: datetime
    changing_since: datetime | None = None


class Stabilizing(Value):
    """A mandatory move was made, and its stages have not been measured yet. `since`: when the plan began to serve; None: not yet."""

    since: datetime | None = None


class Memory(Value):
    """What must be remembered between passes to be steady. Losing it (a restart) only makes optional moves later."""

    watches: Mapping[str, Watch] = Field(default_factory=dict)
    reviewed: datetime | None = Field(default=None, description="when a better plan was last looked for")
    obstacles: Mapping[str, Obstacle] = Field(default_factory=dict, description="nodes that stood in the way of walks lately")
    slowed: Mapping[str, Slowed] = Field(default_factory=dict, description="nodes whose stages are slower than metrics explain")
    levels: Mapping[str, Level] = Field(default_factory=dict, description="utilization of the plan's nodes, and whether it still changes")
    stabilizing: Stabilizing | None = Field(default=None, description="the stabilization window after a mandatory move, while it lasts")
    detoured: datetime | None = Field(default=None, description="when a blocked walk was last given up for another plan")
    tried: str = Field(default="", description="hash of the problem that was last tried without getting a plan")
    tried_room: str = Field(default="", description="hash of the room that there was then")
    tries: int = Field(default=0, ge=0, description="how often that problem was tried with that room")
    tried_at: datetime | None = None
    tried_reason: str = Field(default="", description="why that gave no plan: the reason and the message of that decision")
    tried_message: str = ""

    def afresh(self, *, reviewed: datetime | None = None, detoured: datetime | None = None) -> "Memory":
        """After another plan was taken: nothing is watched and nothing was tried; what nodes showed still counts."""
        kept = {"obstacles": self.obstacles, "slowed": self.slowed, "levels": self.levels, "stabilizing": self.stabilizing}
        return Memory(reviewed=reviewed, detoured=detoured or self.detoured).model_copy(update=kept)

    def watching(self, key: str, holds: bool | None, policy: Policy, now: datetime) -> tuple[Watch | None, "Memory"]:
        """Note that a reason holds, holds no longer, or that it is not known (None: neither confirms nor forgets, for two windows).

        Confirmations count at most once in window / confirmations, so they are spread over the window.
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


def sustained(watch: Watch | None, policy: Policy, now: datetime, *, felt: bool = False) -> bool:
    """Whether a reason has held for the window and was confirmed often enough. `felt`: two independent witnesses speak for it, so one
    confirmation and its share of the window will do."""
    if watch is None:
        return False
    window, confirmations = (policy.spacing, min(2, policy.confirmations)) if felt else (policy.window, policy.confirmations)
    return now - watch.since >= window and watch.confirmations >= confirmations
