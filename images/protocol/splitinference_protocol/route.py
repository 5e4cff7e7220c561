"""The route document that the operator writes and the gateway reads: which pipelines of segments serve the model, under which revision."""

import json
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from splitinference_protocol import VERSION
from splitinference_protocol.wire.request import ADAPTER_DIGEST, MAX_ADAPTERS, SEGMENT_NAME, Hop

STOPPED = "stopped"
"""Revision of the document without a route."""
ASLEEP = "asleep"
"""Revision of the document of a model that was unloaded because nobody asked: the first request wakes it."""
DRAIN_SECONDS = 30.0


class RouteError(ValueError):
    """The document is not a route; the message says where and why."""


def _named(hop: Hop) -> Hop:
    """A segment is named, never addressed."""
    if not SEGMENT_NAME.fullmatch(hop.segment):
        raise ValueError(f"segment {hop.segment!r:.100} is not a DNS label")
    if not hop.model:
        raise ValueError(f"segment {hop.segment} has no model")
    return hop


Pipeline = tuple[Hop, ...]
NamedHop = Annotated[Hop, AfterValidator(_named)]


class Check(BaseModel):
    """Segments side by side that one verifier checks, and their witnesses on trusted nodes: the segment before them (None: they begin the
    model, and the gateway knows the tokens) and the one after them.

    With a `referee` nobody but the witnesses need be trusted: the verifier computes every step on a second node and does not learn what the
    checked segments gave, a witness compares, and the referee on a third node settles a disagreement."""

    model_config = ConfigDict(frozen=True)

    segments: tuple[str, ...] = Field(min_length=1)
    before: NamedHop | None = None
    after: NamedHop
    verifier: NamedHop
    referee: NamedHop | None = None

    @property
    def verifiers(self) -> tuple[Hop, ...]:
        """Who computes the checked layers a second time, and a third."""
        return (self.verifier, self.referee) if self.referee is not None else (self.verifier,)


class Verification(BaseModel):
    """Which share of sequences is checked, in percent, and the largest mean relative error of many tokens. `distrusted`: segments that gave
    a wrong answer before this gateway started, or to another one."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    sample_percent: float = Field(gt=0, le=100, alias="samplePercent", allow_inf_nan=False)
    tolerance: float = Field(gt=0, le=1, allow_inf_nan=False)
    checks: tuple[Check, ...] = ()
    distrusted: tuple[str, ...] = ()


class NamedAdapter(BaseModel):
    """An adapter that all segments of the route have: what clients call it, and the digest of its content."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(min_length=1, max_length=128)
    digest: str = Field(pattern=f"^{ADAPTER_DIGEST.pattern}$")


class Sleep(BaseModel):
    """The model is unloaded. Requests are held for at most `hold_seconds` while a first pipeline starts, which takes about
    `wakes_in_seconds`."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    wakes_in_seconds: float = Field(ge=0, alias="wakesInSeconds", allow_inf_nan=False)
    hold_seconds: float = Field(gt=0, alias="holdSeconds", allow_inf_nan=False)


class RouteDocument(BaseModel):
    """`route.json`. No pipelines: the model is withdrawn, or `asleep`."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    v: int = Field(default=VERSION, ge=1, le=VERSION)
    revision: str = Field(min_length=1)
    pipelines: tuple[tuple[NamedHop, ...], ...]
    drain_seconds: int | float = Field(default=DRAIN_SECONDS, ge=0, alias="drainSeconds")
    verification: Verification | None = None
    asleep: Sleep | None = None
    adapters: tuple[NamedAdapter, ...] | None = Field(default=None, max_length=MAX_ADAPTERS)

    @model_validator(mode="after")
    def _sleeps_without_pipelines(self) -> Self:
        if self.asleep is not None and self.pipelines:
            raise ValueError("a model that is asleep has no pipelines")
        return self

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
            RouteError: not JSON, or not a route of this version.
        """
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            raise RouteError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
        except (ValueError, RecursionError) as error:
            raise RouteError(str(error)) from error

    def text(self) -> str:
        """The ConfigMap's value: the same document is the same text."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True), sort_keys=True)


def asleep(wakes_in_seconds: float, hold_seconds: float, adapters: tuple[NamedAdapter, ...] | None = None) -> RouteDocument:
    """The document while the model is unloaded: requests wait for the first pipeline, also those for adapters."""
    sleep = Sleep(wakes_in_seconds=wakes_in_seconds, hold_seconds=hold_seconds)
    return RouteDocument(revision=ASLEEP, pipelines=(), drain_seconds=DRAIN_SECONDS, asleep=sleep, adapters=adapters)


def withdrawn() -> RouteDocument:
    """The document while nothing may be sent anywhere: sequences leave the route that was, and wait for the next."""
    return RouteDocument(revision=STOPPED, pipelines=(), drain_seconds=0)
