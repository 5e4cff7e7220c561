"""`spec.filter`: rows whose answer will be the useless class do not run."""

from typing import Literal

from pydantic import Field

from splitinference.controller.api.sections.spec_value import SpecValue


class FilterSpec(SpecValue):
    """A learned filter in the model's folder. `sample_percent`: of the rows that it would skip, so many run all the same, to compare;
    `agreement_percent`: the least share of those where the model must agree."""

    mode: Literal["Skip"] = "Skip"
    file: str = Field(default="filter.json", max_length=128, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*\.json$")
    sample_percent: float = Field(default=1, ge=0.01, le=100)
    agreement_percent: float = Field(default=95, ge=0, le=100)
