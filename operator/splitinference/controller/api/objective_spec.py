"""What is to be reached: `spec.workload`, `spec.objective` and `spec.slo`."""

from datetime import timedelta
from typing import Literal

from pydantic import Field

from splitinference.controller.api.spec_value import Duration, SpecValue


class WorkloadSpec(SpecValue):
    """The request that the plan is made for."""

    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=128, ge=1)


class Weights(SpecValue):
    """What else counts, in ms of the goal: for a peak utilization of 1.0, and for each GiB to load elsewhere."""

    utilization: float = Field(default=0.0, ge=0)
    move: float = Field(default=0.0, ge=0)


class ObjectiveSpec(SpecValue):
    """What a better plan is."""

    goal: Literal["latency", "bottleneck"] = "latency"
    weights: Weights = Weights()


class SloSpec(SpecValue):
    """Upper limits of a plan."""

    time_to_first_token: Duration | None = Field(default=None, gt=timedelta(0))
    time_per_output_token: Duration | None = Field(default=None, gt=timedelta(0))
