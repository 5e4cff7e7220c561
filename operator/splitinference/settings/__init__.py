"""The operator's settings: read once, from environment variables that start with SPLITINFERENCE_, then frozen.

What belongs to one model is in its SplitInference; here is what belongs to the cluster. Each subject has a file.
"""

from typing import Self

from pydantic import model_validator
from pydantic_settings import SettingsConfigDict

from splitinference.settings.access import IdentitySettings, PermissionSettings, PreemptionScope
from splitinference.settings.devices import DeviceSettings
from splitinference.settings.models import ModelSettings
from splitinference.settings.nodes import MeasuringSettings, NodeDefaults
from splitinference.settings.passes import PassSettings
from splitinference.settings.pods import PodSettings
from splitinference.settings.process import LeadershipSettings, ProcessSettings
from splitinference.settings.prometheus import PrometheusSettings, QuerySet
from splitinference.settings.values import AllowedToleration, LabelSelector

__all__ = ["AllowedToleration", "LabelSelector", "PreemptionScope", "QuerySet", "Settings"]


class Settings(
    # In reverse: pydantic takes the fields of the last base first, and docs/reference/settings.md goes from passes to the process.
    ProcessSettings,
    MeasuringSettings,
    LeadershipSettings,
    PermissionSettings,
    NodeDefaults,
    PrometheusSettings,
    ModelSettings,
    IdentitySettings,
    DeviceSettings,
    PodSettings,
    PassSettings,
):
    """Each field: meaning, unit, and why this default."""

    model_config = SettingsConfigDict(env_prefix="SPLITINFERENCE_", frozen=True, extra="ignore")

    @model_validator(mode="after")
    def _lease_outlives_a_call(self) -> Self:
        if self.lease_seconds <= self.kube_timeout_seconds + 2:
            raise ValueError(
                f"lease_seconds {self.lease_seconds:g} must exceed kube_timeout_seconds {self.kube_timeout_seconds:g} by more than 2 s"
            )
        return self
