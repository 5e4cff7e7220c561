"""Whom which layers are trusted to: `spec.privacy` and `spec.verification`."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import LayerRange, Percent, SpecValue

TRUSTED = "node-restriction.kubernetes.io/splitinference-trusted"
"""The label of trusted nodes, unless a resource names others."""

RuntimeClassName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")]


class PrivacyRule(SpecValue):
    """Layers that need nodes with these labels, and a RuntimeClass for the pods that hold them."""

    layers: LayerRange
    node_labels: Mapping[str, str] = Field(min_length=1)
    runtime_class_name: RuntimeClassName | None = None


class OnViolation(StrEnum):
    """What becomes of requests while what serves breaks a rule."""

    STOP = "Stop"
    DRAIN = "Drain"


class Privacy(SpecValue):
    """All rules that cover a layer hold for it. `token_recovery_percent` has one figure for each boundary inside the model, as
    `splitinference bench privacy` prints them: the first is for the boundary after layer 0."""

    rules: tuple[PrivacyRule, ...] = ()
    on_violation: OnViolation = OnViolation.STOP
    trusted_node_labels: Mapping[str, str] = Field(default_factory=lambda: {TRUSTED: "true"}, min_length=1)
    max_token_recovery_percent: int | None = Field(default=None, ge=0, le=100)
    token_recovery_percent: tuple[Percent, ...] | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _has_a_table(self) -> Self:
        if self.max_token_recovery_percent is not None and self.token_recovery_percent is None:
            raise ValueError(
                "maxTokenRecoveryPercent needs tokenRecoveryPercent: measure your model with "
                "`splitinference bench privacy --model DIR --yaml`"
            )
        return self

    @model_validator(mode="after")
    def _has_one_runtime_class(self) -> Self:
        named = sorted({rule.runtime_class_name for rule in self.rules if rule.runtime_class_name is not None})
        if len(named) > 1:
            raise ValueError(f"rules must name at most one runtimeClassName, as a pod has only one; they name {', '.join(named)}")
        return self


class VerificationSpec(SpecValue):
    """Spot checks of segments on nodes that are not trusted; with two replicas, every step on two nodes. No tolerance means the one of the
    data type."""

    sample_percent: float = Field(gt=0, le=100)
    tolerance: float | None = Field(default=None, gt=0, le=1)
    replicas: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _compares_every_step(self) -> Self:
        if self.replicas == 2 and self.sample_percent != 100:
            raise ValueError("replicas 2 compares every step: samplePercent must be 100")
        return self


TOLERANCES: Mapping[str, float] = {"bfloat16": 0.016, "float16": 0.004, "float32": 0.001}
"""Of each data type: docs/reference/verification.md has the measurements."""
