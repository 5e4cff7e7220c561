"""How many pipelines a resource needs: a forecast of its load, what each pipeline carries, and steadiness on the way down.

Up: enough for the largest load that is forecast for the time until a new pipeline would serve. Down: when that need has been lower for the
whole of `down_after`, with a margin, so that noise does not scale down and up again. To zero: when nothing came for `idle`.
The forecast is Holt's linear trend with damping (Gardner and McKenzie, Management Science 31, 1985) over irregular times, and a multiple
of the mean deviation on top. All is a pure function of what was observed and of a small state, which the status keeps.
"""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import Field, model_validator

from splitinference.core.values.value import Value

_LEVEL = timedelta(seconds=60)
"""Time over which the level follows the load."""
_TREND = timedelta(minutes=3)
"""Time over which the trend follows the level."""
_LENGTHS = timedelta(minutes=10)
"""Time over which the mean lengths of requests follow what comes."""
_DAMPING = timedelta(minutes=5)
"""A trend goes on for about so long."""
_DEVIATIONS = 1.5
"""Mean deviations added to the forecast: for a normal error, nine of ten observations are below it."""
_DOWN_MARGIN = 0.85
"""One pipeline less must carry the need with so much of what it carries."""
_FRESH = timedelta(minutes=5)
"""After a longer silence the trend starts anew."""


class ScalingPolicy(Value):
    """`spec.scaling` in the core's terms. `ahead`: how long a new pipeline takes to serve, at least; what the cost model says counts if it
    is more."""

    least: int = Field(ge=0)
    most: int = Field(ge=1)
    target: float = Field(default=0.8, gt=0, le=1, description="share of what pipelines carry that the forecast may take")
    down_after: timedelta = timedelta(minutes=5)
    idle: timedelta = timedelta(minutes=10)
    ahead: timedelta = timedelta(0)

    @model_validator(mode="after")
    def _agree(self) -> "ScalingPolicy":
        if self.least > self.most:
            raise ValueError(f"min {self.least} must be at most max {self.most}")
        return self


class Load(Value):
    """What came in the window before `now`: requests per second, and their mean lengths (None: nothing ended)."""

    requests_per_s: float = Field(ge=0)
    prompt_tokens: float | None = Field(default=None, ge=0)
    output_tokens: float | None = Field(default=None, ge=0)
    waiting: int = Field(default=0, ge=0, description="requests that wait: for room, or for a first pipeline")
    in_flight: int = Field(default=0, ge=0)


class Need(Value):
    """How many pipelines were needed at a time."""

    at: datetime
    pipelines: int


class ScalingState(Value):
    """What the next decision must know. `pipelines`: the number decided; `carries`: requests per second that a pipeline carried when it
    was last known, for when none serves; `needs`: the largest needs of the last while, falling."""

    at: datetime
    pipelines: int = Field(ge=0)
    level: float = 0.0
    trend: float = 0.0
    deviation: float = 0.0
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    carries: float | None = None
    busy_at: datetime | None = Field(default=None, description="when a request was last there")
    needs: tuple[Need, ...] = ()


class Why(StrEnum):
    """Reasons for a number of pipelines."""

    LOAD_RISES = "LoadRises"
    LOAD_FELL = "LoadFell"
    STEADY = "Steady"
    IDLE = "Idle"
    REQUESTS_WAIT = "RequestsWait"
    LOAD_UNKNOWN = "LoadUnknown"


class Scaled(Value):
    """The number of pipelines that is needed now, why, and the state after it."""

    pipelines: int
    reason: Why
    message: str
    forecast: float
    state: ScalingState


def forecast(state: ScalingState, ahead: timedelta) -> float:
    """Requests per second at most within `ahead`, with a margin for the deviation."""
    damping = _DAMPING.total_seconds()
    further = damping * (1.0 - math.exp(-ahead.total_seconds() / damping))
    return max(0.0, state.level + max(0.0, state.trend) * further + _DEVIATIONS * state.deviation)


def followed(state: ScalingState, load: Load, now: datetime) -> ScalingState:
    """The state after this observation. Observations may come at any distance; an earlier one changes nothing."""
    seconds = (now - state.at).total_seconds()
    if seconds <= 0:
        return state
    rate = load.requests_per_s
    there = rate > 0 or load.waiting or load.in_flight
    known = {"at": now, "busy_at": now if there else state.busy_at or now}
    lengths = 1.0 - math.exp(-seconds / _LENGTHS.total_seconds())
    for name in ("prompt_tokens", "output_tokens"):
        old, new = getattr(state, name), getattr(load, name)
        known[name] = old if new is None else new if old is None else old + lengths * (new - old)
    if timedelta(seconds=seconds) > _FRESH:
        return state.model_copy(update={**known, "level": rate, "trend": 0.0, "deviation": math.sqrt(rate / 60.0)})
    weight, slope = (1.0 - math.exp(-seconds / time.total_seconds()) for time in (_LEVEL, _TREND))
    expected = max(0.0, state.level + state.trend * seconds)
    level = expected + weight * (rate - expected)
    trend = state.trend + slope * ((level - state.level) / seconds - state.trend)
    deviation = state.deviation + slope * (abs(rate - expected) - state.deviation)
    return state.model_copy(update={**known, "level": max(0.0, level), "trend": trend, "deviation": deviation})


def needed(rate: float, carries: Sequence[float], known: float | None, target: float, most: int) -> int:
    """The least number of pipelines that carry `rate` with this share of what they carry. `carries`: of those that are planned, and a
    further one is taken to carry as much as the weakest of them; `known`: of one pipeline where none is planned (None: one will do)."""
    if rate <= 0:
        return 0
    room = 0.0
    ordered = sorted(carries, reverse=True)
    further = ordered[-1] if ordered else known
    for count in range(1, most + 1):
        each = ordered[count - 1] if count <= len(ordered) else further
        if each is None:
            return 1
        room += each * target
        if room >= rate * (1 - 1e-9):
            return count
    return most


def scaled(
    policy: ScalingPolicy,
    state: ScalingState | None,
    load: Load | None,
    carries: Sequence[float],
    *,
    now: datetime,
    start_seconds: float = 0.0,
) -> Scaled:
    """How many pipelines there should be. `carries`: requests per second of each planned pipeline; `start_seconds`: until one more serves.

    `load` None: nothing is known (the gateway cannot be asked). Unknown is never zero: then nothing is scaled but into the limits.
    """
    least, most = policy.least, policy.most
    if state is None:
        first = ScalingState(at=now, pipelines=max(1, least), busy_at=now)
        if load is not None:
            rate = load.requests_per_s
            lengths = {"prompt_tokens": load.prompt_tokens, "output_tokens": load.output_tokens}
            first = first.model_copy(update={"level": rate, "deviation": math.sqrt(rate / 60.0), **lengths})
        there = min(most, max(least, len(carries) or first.pipelines))
        state = first.model_copy(update={"pipelines": there, "needs": (Need(at=now, pipelines=there),)})
    elif load is not None:
        state = followed(state, load, now)
    if carries:
        state = state.model_copy(update={"carries": min(carries)})
    inside = min(most, max(least, state.pipelines))
    if load is None:
        return _answer(state, inside, Why.LOAD_UNKNOWN, "the load is not known, so the number of pipelines stays", 0.0)
    ahead = max(policy.ahead, timedelta(seconds=start_seconds))
    expected = forecast(state, ahead) + load.waiting / max(ahead, _LEVEL).total_seconds()
    there = load.waiting or load.in_flight or load.requests_per_s > 0
    # With none, only a request that is there starts the first: what is left of an old forecast does not.
    need = max(1, needed(expected, carries, state.carries, policy.target, most)) if there or inside else 0
    since_busy = now - (state.busy_at or now)
    if least == 0 and inside == 1 and since_busy >= policy.idle:
        return _answer(state, 0, Why.IDLE, f"no request for {since_busy.total_seconds():.0f} s", expected)
    # A pause is no reason to unload the weights: that is what `idle` is for.
    need = min(most, max(least, need, min(1, inside)))
    state, held = _remembered(state, need, policy.down_after, now)
    words = f"{state.level:.3g} requests/s now, at most {expected:.3g} within {ahead.total_seconds():.0f} s"
    if state.carries is not None:
        words += f"; a pipeline carries {state.carries:.3g}, used to {policy.target:.0%}"
    if need > inside:
        return _answer(state, need, Why.REQUESTS_WAIT if inside == 0 else Why.LOAD_RISES, words, expected)
    with_margin = needed(expected, carries, state.carries, policy.target * _DOWN_MARGIN, most)
    lower = max(held, with_margin, need)
    return _answer(state, min(lower, inside), Why.LOAD_FELL if lower < inside else Why.STEADY, words, expected)


def _remembered(state: ScalingState, need: int, span: timedelta, now: datetime) -> tuple[ScalingState, int]:
    """The needs of the last `span`, and the largest of them; only those count after which none was as large. A time that was not watched
    wholly counts as need for what there is."""
    kept = [found for found in state.needs if now - found.at < span and found.pipelines > need]
    needs = (*kept, Need(at=now, pipelines=need))
    return state.model_copy(update={"needs": needs}), needs[0].pipelines


def _answer(state: ScalingState, pipelines: int, reason: Why, message: str, expected: float) -> Scaled:
    after = state.model_copy(update={"pipelines": pipelines})
    return Scaled(pipelines=pipelines, reason=reason, message=message, forecast=expected, state=after)
