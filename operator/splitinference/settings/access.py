"""Settings of identities and network policies, and of what resources may ask for."""

from enum import StrEnum

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from splitinference.settings.values import AllowedToleration, LabelSelector


class IdentitySettings(BaseSettings):
    """Who is who, and who reaches whom."""

    trust_domain: str = Field(
        default="cluster.local",
        pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$",
        description="Trust domain of the SPIFFE IDs in the certificates of gateways and segments. A change replaces all segments.",
    )
    root_key_secret: str = Field(
        default="splitinference-root-key",
        min_length=1,
        description="Name of the Secret with the root key. The operator creates it if there is none.",
    )
    issuer_secret: str = Field(
        default="",
        description=(
            "Name of a Secret of type kubernetes.io/tls in the operator's namespace with a CA certificate, as cert-manager makes it. "
            "The CAs of resources are certified by it, and the root key follows it. Empty: the operator makes a root key."
        ),
    )
    network_policies: bool = Field(
        default=True,
        description=(
            "Whether to create NetworkPolicies for each resource. With them, only those who need to can reach segments and gateways."
        ),
    )
    monitoring_namespace_selector: LabelSelector = Field(
        default=LabelSelector(match_labels={"kubernetes.io/metadata.name": "monitoring"}),
        description="Selector, as JSON, of the namespaces from which metrics may be scraped. `{}` selects all namespaces.",
    )


class PreemptionScope(StrEnum):
    """Which resources of a lower priority may have to give way."""

    NAMESPACE = "Namespace"
    CLUSTER = "Cluster"
    NEVER = "Never"


class PermissionSettings(BaseSettings):
    """What resources may ask for."""

    preemption: PreemptionScope = Field(
        default=PreemptionScope.NAMESPACE,
        description=(
            "Which resources of a lower `spec.priority` may have to give their memory away: those of the same namespace (`Namespace`), "
            "of all namespaces (`Cluster`), or none (`Never`). With `Cluster`, who may write SplitInferences anywhere can displace others' "
            "models."
        ),
    )

    allowed_host_paths: tuple[str, ...] = Field(
        default=(),
        description=(
            "Folders of nodes that resources may mount (`hostPath` of model and adapters), including everything in them. A JSON list. "
            "Empty, the default: none. Symbolic links on the node are followed, so only administrators should be able to write "
            "there."
        ),
    )
    allowed_tolerations: tuple[AllowedToleration, ...] = Field(
        default=(),
        description=(
            "Tolerations that resources may ask for (`spec.placement.tolerations`), as in a pod. A JSON list. Empty, the default: none."
        ),
    )

    @field_validator("allowed_host_paths")
    @classmethod
    def _are_whole_paths(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not folder.startswith("/") or {".", ".."} & set(folder.split("/")):
                raise ValueError(f"{folder!r} must be absolute and hold neither '.' nor '..'")
        return folders
