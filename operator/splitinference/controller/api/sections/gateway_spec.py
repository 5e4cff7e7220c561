"""`spec.gateway`: the server in front, who may ask it, and how it reads requests."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import SpecValue


class KeysSecret(SpecValue):
    """API keys in a Secret of the resource's namespace; no key means all of its keys."""

    name: str = Field(min_length=1)
    key: str | None = Field(default=None, min_length=1)


class TokenReviewSpec(SpecValue):
    """Tokens of the cluster for this audience."""

    audience: str = Field(default="splitinference", min_length=1)


class AuthSpec(SpecValue):
    """Who may ask the gateway: at most one of the two."""

    api_keys_secret_ref: KeysSecret | None = None
    token_review: TokenReviewSpec | None = None

    @model_validator(mode="after")
    def _is_at_most_one(self) -> Self:
        if self.api_keys_secret_ref and self.token_review:
            raise ValueError("must have at most one of apiKeysSecretRef and tokenReview")
        return self


class PrefixReuse(StrEnum):
    """Whose earlier prompts a prompt may begin with."""

    CLIENT = "Client"
    ALL = "All"
    OFF = "Off"


class Speculation(StrEnum):
    """Whether steps carry drafted tokens."""

    AUTO = "Auto"
    OFF = "Off"


class UnknownFields(StrEnum):
    """What becomes of a request's fields that nobody knows."""

    WARN = "Warn"
    REFUSE = "Refuse"


class LongAnswers(StrEnum):
    """What becomes of a request for more tokens than fit."""

    CUT = "Cut"
    REFUSE = "Refuse"


class GenerationConfig(StrEnum):
    """Where sampling parameters come from that a request does not name."""

    MODEL = "Model"
    NEUTRAL = "Neutral"


Origin = Annotated[str, Field(max_length=256, pattern=r"^(\*|https?://[a-z0-9._-]+(:[0-9]{1,5})?)$")]


class GatewaySpec(SpecValue):
    """The server in front."""

    replicas: int = Field(default=1, ge=1, le=16)
    prefix_reuse: PrefixReuse = PrefixReuse.CLIENT
    speculation: Speculation = Speculation.AUTO
    unknown_fields: UnknownFields = UnknownFields.WARN
    long_answers: LongAnswers = LongAnswers.CUT
    generation_config: GenerationConfig = GenerationConfig.MODEL
    cors_origins: tuple[Origin, ...] = Field(default=(), max_length=32)
    auth: AuthSpec = AuthSpec()
