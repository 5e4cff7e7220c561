"""`spec.scaling`: the operator chooses the number of pipelines by the load that it expects."""

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import Duration, SpecValue

MOST_PIPELINES = 16


class Scaling(SpecValue):
    """Between `min` and `max` pipelines. `target_percent`: how much of what pipelines carry the expected load may take; `down_after`: how
    long fewer must be enough; `idle_after`: how long nobody asked before the last one is unloaded (min 0); `hold`: how long requests wait
    then for the first one."""

    min: int = Field(default=1, ge=0, le=MOST_PIPELINES)
    max: int = Field(ge=1, le=MOST_PIPELINES)
    target_percent: int = Field(default=80, ge=10, le=100)
    down_after: Duration = timedelta(minutes=5)
    idle_after: Duration = timedelta(minutes=10)
    hold: Duration = Field(default=timedelta(minutes=2), gt=timedelta(0))

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must be at most max {self.max}")
        return self
