"""Settings of the operator's own process: leadership, time limits, ports, log."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings


class LeadershipSettings(BaseSettings):
    """Which of several operators acts."""

    operator_class: str = Field(
        default="default",
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="Only resources with this `spec.operatorClass` are served. Use it for two releases in one cluster.",
    )
    lease: str = Field(
        default="",
        pattern=r"^([-a-z0-9.]+/[-a-z0-9.]+)?$",
        description=(
            "Namespace and name of the Lease, as `namespace/name`, that a replica must hold to act. Empty: no election, for an "
            "operator outside a cluster. Such an operator claims no resource, and leaves alone those that another operator has "
            "claimed."
        ),
    )
    lease_seconds: float = Field(
        default=10.0,
        ge=4,
        le=60,
        description=(
            "A Lease that was not renewed for this long may be taken over. Ten seconds: with the time between two checks and the "
            "start, a takeover takes less than 15 s."
        ),
    )

    @property
    def lease_key(self) -> tuple[str, str]:
        """Namespace and name of the Lease."""
        namespace, _, name = self.lease.partition("/")
        return namespace, name


class ProcessSettings(BaseSettings):
    """Time limits, ports and log."""

    kube_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Time limit of one call to the API server. It answers within milliseconds, or has a problem."
    )
    gateway_timeout_seconds: float = Field(
        default=1.0, gt=0, description="Time limit of one query to a gateway, which answers from memory."
    )
    proof_timeout_seconds: float = Field(
        default=2.0, gt=0, description="Time limit to run one token through one segment. A slow layer on half a core takes 0.2 s."
    )
    metrics_port: int = Field(default=8081, ge=1, le=65535, description="Port of the operator's own metrics, for Prometheus.")
    health_port: int = Field(default=8080, ge=1, le=65535, description="Port of GET /healthz, for the kubelet.")
    pod_ip: str = Field(
        default="", description="The operator's own address, from the downward API. It determines the IP family of the health port."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Log level. INFO has one line per decision and action."
    )
    log_format: Literal["plain", "json"] = Field(
        default="plain", description="Format of the log: plain for people, json for log collectors."
    )
