"""The route document that the operator writes: which pipelines of segments serve the model, under which revision."""

import json
import re
from functools import cached_property

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class RouteError(ValueError):
    """The document is not a route; the message says where and why."""


class Hop(BaseModel):
    """One segment and the Triton model in it. A segment is named, never addressed."""

    model_config = ConfigDict(frozen=True)

    segment: str
    model: str = Field(min_length=1)

    @field_validator("segment")
    @classmethod
    def _is_a_dns_label(cls, value: str) -> str:
        if not _DNS_LABEL.fullmatch(value):
            raise ValueError(f"{value!r} is not a DNS label")
        return value

    @cached_property
    def as_json(self) -> dict[str, str]:
        """The protocol's form."""
        return {"segment": self.segment, "model": self.model}


Pipeline = tuple[Hop, ...]


class Check(BaseModel):
    """Segments side by side that one verifier checks, and their witnesses on trusted nodes: the segment before them (None: they begin the
    model, and the gateway knows the tokens) and the one after them."""

    model_config = ConfigDict(frozen=True)

    segments: tuple[str, ...] = Field(min_length=1)
    before: Hop | None = None
    after: Hop
    verifier: Hop


class Verification(BaseModel):
    """Which share of sequences is checked, in percent, and the largest mean relative error of many tokens. `distrusted`: segments that gave
    a wrong answer before this gateway started, or to another one."""

    model_config = ConfigDict(frozen=True)

    sample_percent: float = Field(gt=0, le=100, alias="samplePercent", allow_inf_nan=False)
    tolerance: float = Field(gt=0, le=1, allow_inf_nan=False)
    checks: tuple[Check, ...] = ()
    distrusted: tuple[str, ...] = ()


class RouteDocument(BaseModel):
    """`route.json`. No pipelines: the model is withdrawn."""

    model_config = ConfigDict(frozen=True)

    v: int = Field(ge=1, le=1)
    revision: str = Field(min_length=1)
    pipelines: tuple[Pipeline, ...]
    drain_seconds: float = Field(default=30.0, ge=0, alias="drainSeconds")
    verification: Verification | None = None

    @field_validator("pipelines")
    @classmethod
    def _have_segments(cls, value: tuple[Pipeline, ...]) -> tuple[Pipeline, ...]:
        for index, pipeline in enumerate(value):
            if not pipeline:
                raise ValueError(f"pipeline {index} has no segments")
        return value

    @classmethod
    def parse(cls, text: str) -> "RouteDocument":
        """Read the ConfigMap's value.

        Raises:
            RouteError: not JSON, or not a route of version 1.
        """
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            raise RouteError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
        except ValueError as error:
            raise RouteError(str(error)) from error
