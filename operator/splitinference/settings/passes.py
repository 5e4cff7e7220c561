"""Settings of passes: for whom, how often, how long."""

from pydantic import Field
from pydantic_settings import BaseSettings

from splitinference.settings.values import names


class PassSettings(BaseSettings):
    """Which resources are served, and how passes are made."""

    operator_namespace: str = Field(
        default="splitinference-system",
        min_length=1,
        description=(
            "Namespace of the operator. The Secret with the root key is here, and nodes are measured here. NetworkPolicies admit "
            "the operator from here, and link probes are believed only from here."
        ),
    )
    namespaces: str = Field(
        default="", description="Namespaces whose SplitInferences are served, separated by commas. Empty, the default, means all."
    )
    resync_seconds: float = Field(
        default=5.0,
        ge=0.5,
        description=(
            "Longest time between two passes for a resource. Five seconds: Prometheus has new values every 5 to 15 s, and a pass "
            "costs little."
        ),
    )
    pass_threads: int = Field(
        default=8,
        ge=1,
        description="Number of passes at the same time, for different resources. Eight: passes mostly wait for the network.",
    )
    retry_seconds: float = Field(
        default=2.0, ge=0.1, description="Time until the next pass after a failed one. It doubles with each failure, up to one minute."
    )
    solve_seconds: float = Field(
        default=5.0, gt=0, description="Time limit of one solve. Five seconds: twice what 64 nodes and 80 layers need to be proven optimal."
    )

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        """The namespaces; none means all."""
        return names(self.namespaces)
