"""`spec.adaptation`: how the operator answers to change."""

from datetime import timedelta
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import Duration, SpecValue


class Mode(StrEnum):
    """What the operator may do by itself."""

    AUTO = "Auto"
    ADVISORY = "Advisory"
    FROZEN = "Frozen"


class Strategy(StrEnum):
    """Whether a new segment is made before the old one goes."""

    SURGE = "Surge"
    BREAK_FIRST = "BreakFirst"


class Prefetch(StrEnum):
    """Whether weights are brought to nodes before a move."""

    OFF = "Off"
    LIKELY_TARGETS = "LikelyTargets"


class Thresholds(SpecValue):
    """What makes the operator look for a better plan."""

    utilization_percent: int = Field(default=70, ge=1, le=100)


class Adaptation(SpecValue):
    """How the operator answers to change."""

    mode: Mode = Mode.AUTO
    thresholds: Thresholds = Thresholds()
    window: Duration = timedelta(seconds=60)
    confirmations: int = Field(default=3, ge=1)
    cooldown: Duration = timedelta(minutes=5)
    stabilization: Duration = timedelta(minutes=10)
    min_gain_percent: int = Field(default=10, ge=0, le=100)
    max_moves_per_hour: int = Field(default=6, ge=0)
    strategy: Strategy = Strategy.SURGE
    prefetch: Prefetch = Prefetch.OFF
    drain: Duration = timedelta(seconds=30)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.window < timedelta(seconds=self.confirmations):
            raise ValueError("window must hold confirmations: at least 1s for each")
        if self.mode is Mode.AUTO and self.max_moves_per_hour == 0:
            raise ValueError("maxMovesPerHour 0 contradicts mode Auto")
        return self
