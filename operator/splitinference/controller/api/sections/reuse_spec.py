"""`spec.reuse`: whether deterministic requests get earlier answers again."""

from datetime import timedelta
from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from splitinference.controller.api.sections.spec_value import Duration, SpecValue

LONGEST = timedelta(days=7)


class ReuseScope(StrEnum):
    """Whose earlier answers a request may get."""

    CLIENT = "Client"
    ALL = "All"


class ReuseSecret(SpecValue):
    """A Secret of the resource's namespace with reuse-password, and perhaps reuse-username and reuse-ca.crt."""

    name: str = Field(min_length=1, max_length=253)


class ReuseServer(SpecValue):
    """A server of Valkey or Redis that all gateways of the resource share."""

    url: str = Field(
        max_length=300, pattern=r"^(redis|rediss|valkey|valkeys)://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[0-9]{1,4})?$"
    )
    secret_ref: ReuseSecret | None = None


class ReuseSpec(SpecValue):
    """Exact reuse. `memory_mib`: of each gateway, for answers that it keeps."""

    scope: ReuseScope = ReuseScope.CLIENT
    ttl: Duration = timedelta(minutes=10)
    memory_mib: int = Field(default=64, ge=8, le=4096, alias="memoryMiB")
    server: ReuseServer | None = None

    @model_validator(mode="after")
    def _lasts_for_a_time(self) -> Self:
        if not timedelta(seconds=1) <= self.ttl <= LONGEST:
            raise ValueError("ttl must be between 1s and 168h")
        return self
