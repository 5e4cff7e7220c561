"""The gateway's report, `GET /internal/routes`: what the gateway writes and the operator reads."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator


class Reported(BaseModel):
    """Names are as in JSON or in Python. Unknown fields are ignored: a newer gateway may say more."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, allow_inf_nan=False)


class RouteState(Reported):
    """One route as the gateway knows it."""

    in_flight: int = Field(alias="inFlight", ge=0)
    state: str = "serving"


def _figure(value: object) -> float | None:
    """A number that a figure can be; None for what is not finite and at least 0: one odd figure does not make a report unreadable."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < math.inf else None


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


Figure = Annotated[float | None, BeforeValidator(_figure)]
Milliseconds = Figure


class Percentiles(Reported):
    """Milliseconds; None where nothing was seen."""

    p50: Milliseconds = None
    p95: Milliseconds = None


ALONE_SECONDS = 10.0
"""Of steps that were computed alone, the gateway tells the last so many seconds."""


class StageTimes(Reported):
    """Medians over the window, for one decode step, and of how many steps (None: not said). `batch`: in the mean so many were computed
    together. `alone`: of steps of the last ten seconds that were computed alone the lower quartile of compute, and how many there were.
    `prompts`: so many first pieces of prompts were computed alone; in the median they had so many tokens and took so long for each."""

    compute_ms: Milliseconds = Field(default=None, alias="computeMs")
    queue_ms: Milliseconds = Field(default=None, alias="queueMs")
    link_ms: Milliseconds = Field(default=None, alias="linkMs")
    steps: Annotated[int | None, BeforeValidator(_count)] = None
    batch: Figure = None
    alone_ms: Milliseconds = Field(default=None, alias="aloneMs")
    alone_steps: Annotated[int | None, BeforeValidator(_count)] = Field(default=None, alias="aloneSteps")
    prompt_ms_per_token: Milliseconds = Field(default=None, alias="promptMsPerToken")
    prompt_tokens: Figure = Field(default=None, alias="promptTokens")
    prompts: Annotated[int | None, BeforeValidator(_count)] = None


class ObservedTraffic(Reported):
    """What clients got within the last `windowSeconds`. What was not seen is None, never zero.

    `ingress_ms`: median time of a decode step that no stage says it took: the link from the gateway to the first one.
    `kv_reserved`: share 0..1 of the KV that running sequences may grow to, now. `arrived`: sequences that came, whether they ended or not
    (None: not said); `prompt_tokens_mean`: tokens of their prompts in the mean; `output_tokens_mean`: of those that ended, tokens
    generated.
    """

    window_seconds: float = Field(default=60, alias="windowSeconds", gt=0)
    requests: int = Field(default=0, ge=0)
    failed: int = Field(default=0, ge=0)
    replays: int = Field(default=0, ge=0)
    time_to_first_token_ms: Percentiles = Field(default=Percentiles(), alias="timeToFirstTokenMs")
    time_per_output_token_ms: Percentiles = Field(default=Percentiles(), alias="timePerOutputTokenMs")
    longest_token_gap_ms: Milliseconds = Field(default=None, alias="longestTokenGapMs")
    ingress_ms: Milliseconds = Field(default=None, alias="ingressMs")
    tokens_per_second: Figure = Field(default=None, alias="tokensPerSecond")
    kv_reserved: Figure = Field(default=None, alias="kvReserved")
    arrived: Annotated[int | None, BeforeValidator(_count)] = None
    prompt_tokens_mean: Figure = Field(default=None, alias="promptTokensMean")
    output_tokens_mean: Figure = Field(default=None, alias="outputTokensMean")
    stages: Mapping[str, StageTimes] = Field(default_factory=dict)


def _nothing_where_unreadable(value: object, read: ValidatorFunctionWrapHandler) -> ObservedTraffic:
    """Routes are drained by a report: figures that cannot be read are none seen, and do not make the routes unknown."""
    try:
        found: ObservedTraffic = read(value)
        return found
    except ValidationError:
        return ObservedTraffic()


class Failing(Reported):
    """A segment that requests cannot get past, since when, and the error code of docs/reference/data-plane.md."""

    since: datetime
    code: str


class FailedCheck(Reported):
    """Why the gateway sends nothing to a segment any more: the mean relative error of so many tokens of a sequence from `position` on, and
    the limit that it exceeded."""

    since: datetime
    sequence: str = ""
    position: int = Field(default=0, ge=0)
    tokens: int = Field(default=1, ge=1)
    error: float = Field(ge=0)
    limit: float = Field(ge=0)


class Verified(Reported):
    """What spot checks found since the gateway started. `skipped`: sampled sequences that were not checked, or not wholly; `failed`: by
    segment."""

    sampled: int = Field(default=0, ge=0)
    checked_tokens: int = Field(default=0, ge=0, alias="checkedTokens")
    skipped: int = Field(default=0, ge=0)
    failed: Mapping[str, FailedCheck] = Field(default_factory=dict)


class Filtered(Reported):
    """What the filter before the model did since the gateway started: rows that came, and those that were skipped. Of the last `compared`
    rows that the model ran all the same, the share 0..1 where it agreed; `open`: that was less than `floor`, and every row runs."""

    rows: int = Field(default=0, ge=0)
    skipped: int = Field(default=0, ge=0)
    compared: int = Field(default=0, ge=0)
    agreement: Figure = None
    floor: Figure = None
    open: bool = False


class GatewayReport(Reported):
    """The answer of `GET /internal/routes`, as docs/reference/data-plane.md has it: `GatewayReport.model_validate(response.json())`.

    A route that is not in `routes` has nothing in flight; `revision` is None until the gateway has a route. `segments`: sequences in flight
    by segment of all routes, for people; `queued`: sequences that wait for admission; `held`: those that wait for a first pipeline;
    `adapters`: sequences by the digest of their adapter (None: not said).
    """

    revision: str | None = None
    routes: Mapping[str, RouteState] = Field(default_factory=dict)
    segments: Mapping[str, Annotated[int | None, BeforeValidator(_count)]] = Field(default_factory=dict)
    queued: Annotated[int | None, BeforeValidator(_count)] = None
    held: Annotated[int | None, BeforeValidator(_count)] = None
    observed: Annotated[ObservedTraffic, WrapValidator(_nothing_where_unreadable)] = ObservedTraffic()
    failing: Mapping[str, Failing] = Field(default_factory=dict)
    verification: Verified = Verified()
    filter: Filtered | None = None
    adapters: Mapping[str, Annotated[int | None, BeforeValidator(_count)]] | None = None

    def written(self) -> dict[str, Any]:
        """As JSON; what was not seen is left out, but for the revision."""
        made = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        observed: dict[str, Any] = made["observed"]
        made["observed"] = {name: value for name, value in observed.items() if value != {} or name == "stages"}
        return {"revision": self.revision, **made}
