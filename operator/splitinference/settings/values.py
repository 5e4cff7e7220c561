"""Values that a setting may have, besides texts and numbers."""

import json
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel


class LabelSelector(BaseModel):
    """As in Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: list[dict[str, Any]] = Field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name, value in self.model_dump(by_alias=True).items() if value}

    def __str__(self) -> str:
        return json.dumps(self.as_json())


class AllowedToleration(BaseModel):
    """A toleration as in a pod. No key stands for every taint, no effect for every effect."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @model_validator(mode="after")
    def _is_as_in_a_pod(self) -> Self:
        if not self.key and self.operator == "Equal":
            raise ValueError("without a key the operator must be Exists")
        if self.value and self.operator == "Exists":
            raise ValueError("with the operator Exists there must be no value")
        return self

    def __str__(self) -> str:
        value = f"={self.value}" if self.operator == "Equal" else ""
        return f"{self.key or 'every taint'}{value}" + (f":{self.effect}" if self.effect else "")


def names(text: str) -> tuple[str, ...]:
    """The names in a list that commas separate, without spaces and without empty ones."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
