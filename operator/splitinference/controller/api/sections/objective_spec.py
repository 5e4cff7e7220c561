"""What is to be reached: `spec.workload`, `spec.objective` and `spec.slo`."""

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import Duration, SpecValue


class WorkloadSpec(SpecValue):
    """The request that the plan is made for."""

    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=128, ge=1)


class Weights(SpecValue):
    """What else counts, in ms of the goal: for a peak utilization of 1.0, and for each GiB to load elsewhere."""

    utilization: float = Field(default=0.0, ge=0)
    move: float = Field(default=0.0, ge=0)


MainGoal = Literal["latency", "bottleneck", "throughput", "energy", "cost"]
FurtherGoal = Literal["latency", "bottleneck", "energy", "cost"]


class ObjectiveSpec(SpecValue):
    """What a better plan is: the best by `goal`, among those the best by each of `then`; and budgets that every plan keeps."""

    goal: MainGoal = "latency"
    then: tuple[FurtherGoal, ...] = Field(default=(), max_length=3)
    weights: Weights = Weights()
    max_cost_per_hour: float | None = Field(default=None, gt=0)
    max_watts: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        weighs = bool(self.weights.utilization or self.weights.move)
        if len({self.goal, *self.then}) != 1 + len(self.then):
            raise ValueError("then must name other goals than goal, each once")
        if weighs and (self.then or self.goal not in ("latency", "bottleneck")):
            raise ValueError("weights are in ms: they are for the goals latency and bottleneck without then")
        if self.goal == "throughput" and (self.then or self.max_cost_per_hour or self.max_watts):
            raise ValueError("goal throughput uses every node that adds to it: it has neither then nor budgets")
        return self


class SloSpec(SpecValue):
    """Upper limits of a plan."""

    time_to_first_token: Duration | None = Field(default=None, gt=timedelta(0))
    time_per_output_token: Duration | None = Field(default=None, gt=timedelta(0))
