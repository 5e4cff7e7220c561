"""`spec.filter`: rows whose answer is known without the whole model do not run through all of it."""

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.reuse_spec import LONGEST, ReuseScope
from splitinference.controller.api.sections.spec_value import Duration, SpecValue


class FilterSpec(SpecValue):
    """A learned filter in the model's folder.

    `after_layers`: the filter is over what so many layers make of a row, and runs in the first segment; 0: over the input, in the gateway.
    `scope` and `ttl`: of mode Reuse, whose earlier answers are used, and for how long. `sample_percent`: of the rows that the filter
    answers, so many run all the same, to compare; `agreement_percent`: the least share of those where the model must agree.
    """

    mode: Literal["Skip", "Reuse"] = "Skip"
    file: str = Field(default="filter.json", max_length=128, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\.json$")
    after_layers: int = Field(default=0, ge=0, le=16384)
    scope: ReuseScope = ReuseScope.CLIENT
    ttl: Duration = timedelta(minutes=10)
    sample_percent: float = Field(default=1, ge=0.01, le=100)
    agreement_percent: float = Field(default=95, ge=0, le=100)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not timedelta(seconds=1) <= self.ttl <= LONGEST:
            raise ValueError("ttl must be between 1s and 168h")
        if self.mode == "Reuse" and self.after_layers:
            raise ValueError("mode Reuse needs afterLayers 0: the gateway keeps earlier rows, and has nothing of the layers")
        return self
