"""What the parts of a spec are made of: frozen values, durations, ranges of layers."""

import re
from datetime import timedelta
from typing import Annotated, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from splitinference.core.values import problem as core
from splitinference.core.values.value import Value

_DURATION = re.compile(r"^(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+$")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_RANGE = re.compile(r"^([0-9]{1,4}):([0-9]{1,4})$")


def parse_duration(text: object) -> object:
    """'1m30s' → timedelta. What is no string is handed on; a string of another form raises ValueError (for pydantic)."""
    if not isinstance(text, str):
        return text
    if not _DURATION.match(text):
        raise ValueError(f"{text!r} is not a duration such as 800ms, 30s or 1m30s")
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]

Percent = Annotated[float, Field(ge=0, le=100)]


class SpecValue(Value):
    """A part of the spec: camelCase in the resource, snake_case here."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False)


class LayerRange(SpecValue):
    """`first`, `last` or `start:end`, half-open."""

    text: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        return {"text": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _has_a_meaning(self) -> Self:
        found = _RANGE.match(self.text)
        if self.text not in (core.FIRST, core.LAST) and not found:
            raise ValueError(f"{self.text!r} must be first, last or start:end such as 0:4")
        if found and int(found[1]) >= int(found[2]):
            raise ValueError(f"{self.text!r} holds no layer: start must be less than end")
        return self

    def of(self, layers: int) -> tuple[int, int] | None:
        """The range in a model of so many layers; None where the model has no such layers."""
        if self.text == core.FIRST:
            return (0, 1)
        if self.text == core.LAST:
            return (layers - 1, layers)
        start, end = (int(part) for part in self.text.split(":"))
        return (start, end) if end <= layers else None
