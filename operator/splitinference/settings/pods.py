"""Settings of the pods that the operator creates: images, resources, limits, how they start and stop."""

from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from splitinference.settings.values import names


class PodSettings(BaseSettings):
    """Images, and what is the same for all pods of segments and gateways."""

    segment_image: str = Field(default="splitinference/segment:0.1.0", description="Image of the segments: Triton with the model code.")
    segment_llama_cpp_image: str = Field(
        default="splitinference/segment-llamacpp:0.1.0", description="Image of the segments of GGUF models: Triton with llama.cpp."
    )
    gateway_image: str = Field(default="splitinference/gateway:0.1.0", description="Image of the gateways.")
    image_architectures: str = Field(
        default="amd64",
        description=(
            "Architectures of the images, separated by commas, as in the label kubernetes.io/arch. Nodes of other architectures are"
            " not used."
        ),
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent",
        description="Pull policy of all pods that the operator creates. Tags are versions, so an image that is present is the right one.",
    )
    image_pull_secrets: str = Field(default="", description="Names of pull secrets in the resource's namespace, separated by commas.")
    pod_user: int | None = Field(
        default=10001,
        ge=1,
        description=(
            "User and group of all containers. The images have this user, but any except root works. Empty: the cluster chooses "
            "(OpenShift)."
        ),
    )
    pod_template: dict[str, Any] = Field(
        default={"gateway": {}, "segments": {}},
        description=(
            "Additions to all pods, as JSON with the fields of spec.podTemplate. A resource's own spec.podTemplate takes precedence."
        ),
    )
    mesh_opt_out: str = Field(
        default="segments,jobs",
        description=(
            "Pods that opt out of a service mesh's sidecar, separated by commas: segments, gateway, jobs (which read or fetch a "
            "model). Segments have their own mutual TLS, and a job with a sidecar never ends."
        ),
    )
    safe_to_evict: Literal["", "true", "false"] = Field(
        default="",
        description="Annotation cluster-autoscaler.kubernetes.io/safe-to-evict of segments and gateways. Empty: none.",
    )
    do_not_disrupt: bool = Field(
        default=False, description="Whether segments and gateways have the annotation karpenter.sh/do-not-disrupt."
    )
    segment_resources: dict[str, Any] = Field(
        default={}, description="Additional requests and limits of segments, as JSON. CPU and memory have their own settings."
    )
    gateway_resources: dict[str, Any] = Field(
        default={}, description="Requests and limits of gateways, as JSON. They override the two settings for gateways."
    )
    job_resources: dict[str, Any] = Field(
        default={},
        description=(
            "Requests and limits of containers that read or fetch a model, as JSON. They override requests of 50m and 64Mi, and "
            "limits of up to 256Mi."
        ),
    )
    cluster_domain: str = Field(
        default="cluster.local", description="Domain of the cluster's Services. The default is that of kubeadm and kind."
    )
    segment_cpu_request: str = Field(
        default="100m",
        description=(
            "CPU request of a segment. It is small because the planner goes by measured use, and a large request would keep pods "
            "from loaded nodes."
        ),
    )
    segment_cpu_limit: str = Field(
        default="", description="CPU limit of a segment. Empty, the default, means none: idle cores may be used."
    )
    segment_shm_mib: int = Field(
        default=64,
        ge=32,
        description=(
            "Size of /dev/shm in MiB, where Triton and its Python stub exchange tensors. The default is four times what it starts with."
        ),
    )
    segment_runtime_mib: int = Field(
        default=380,
        ge=1,
        description="Memory of a segment server without layers, in MiB. Measured on the CPU image: server, stub and libraries.",
    )
    segment_llama_cpp_runtime_mib: int = Field(
        default=380,
        ge=1,
        description=(
            "The same of the image with llama.cpp, with llama.cpp's buffers for computing. Not measured yet: that of the other image,"
            " which has more libraries."
        ),
    )
    leaving_taints: str = Field(
        default=(
            "node.kubernetes.io/unschedulable,node.kubernetes.io/out-of-service,node.cloudprovider.kubernetes.io/shutdown,"
            "karpenter.sh/disrupted,karpenter.sh/disruption,ToBeDeletedByClusterAutoscaler,DeletionCandidateOfClusterAutoscaler,"
            "aws-node-termination-handler/spot-itn,aws-node-termination-handler/rebalance-recommendation,"
            "aws-node-termination-handler/scheduled-maintenance,aws-node-termination-handler/asg-lifecycle-termination,"
            "cloud.google.com/impending-node-termination,remediator.aks.microsoft.com/unschedulable"
        ),
        description=(
            "Keys of taints, separated by commas, that say that a node is about to leave. What serves there moves at once, whatever"
            " is tolerated. The default: cordons, and the notices of Karpenter, the cluster autoscaler, AWS, GKE and AKS."
        ),
    )
    disruption_budgets: bool = Field(
        default=True,
        description=(
            "Whether to create PodDisruptionBudgets. With them, a drain continues only after the replacement of a segment or "
            "gateway serves."
        ),
    )
    segment_drain_seconds: int = Field(
        default=30,
        ge=0,
        description="How long a segment that must stop waits for its last steps. This is only a backstop: routes are drained before.",
    )
    segment_start_seconds: int = Field(
        default=600, ge=30, description="How long a segment may take to load before it is restarted. Ten minutes: 70 GB at 1 Gbit/s."
    )
    start_failure_seconds: float = Field(
        default=60.0,
        ge=5,
        description=(
            "How long a segment that fails to start (no image, no volume, a crashing container) keeps its node. After that, the "
            "node is avoided. One minute: registries have short failures, and the kubelet tries three times in it."
        ),
    )
    gateway_cpu_request: str = Field(default="50m", description="CPU request of a gateway. It waits for segments most of the time.")
    gateway_memory: str = Field(
        default="512Mi", description="Memory request and limit of a gateway, for tokenizer and sequences. Measured: 150 MB."
    )
    otlp_endpoint: str = Field(
        default="",
        description="Where gateways send OpenTelemetry traces by OTLP/HTTP, such as http://collector.monitoring:4318. Empty: no traces.",
    )
    otlp_sampling_percent: float = Field(
        default=100.0,
        ge=0,
        le=100,
        description="Percentage of requests to trace, of those whose client does not say whether to trace them.",
    )

    @field_validator("pod_user", mode="before")
    @classmethod
    def _may_be_empty(cls, user: object) -> object:
        return None if user in ("", "null") else user

    @field_validator("mesh_opt_out")
    @classmethod
    def _names_pods(cls, kinds: str) -> str:
        if unknown := set(names(kinds)) - {"segments", "gateway", "jobs"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: neither segments, gateway nor jobs")
        return kinds

    @field_validator("segment_resources", "gateway_resources", "job_resources")
    @classmethod
    def _are_resources(cls, given: dict[str, Any]) -> dict[str, Any]:
        if unknown := set(given) - {"requests", "limits"}:
            raise ValueError(f"{', '.join(sorted(unknown))}: neither requests nor limits")
        return given

    @field_validator("segment_resources")
    @classmethod
    def _leave_what_is_planned(cls, given: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted({name for part in given.values() for name in part or {} if name in ("cpu", "memory")}):
            raise ValueError(f"{', '.join(taken)}: the plan sets a segment's memory, the segment_cpu_* settings its CPU")
        return given

    @field_validator("segment_cpu_limit", "segment_cpu_request", "gateway_cpu_request", "gateway_memory")
    @classmethod
    def _has_no_space(cls, quantity: str) -> str:
        if quantity != quantity.strip():
            raise ValueError(f"{quantity!r} is no Kubernetes quantity")
        return quantity

    @property
    def architectures(self) -> tuple[str, ...]:
        """What the images run on."""
        return names(self.image_architectures)

    @property
    def leaving_taint_keys(self) -> tuple[str, ...]:
        """Taints of nodes that are about to leave."""
        return names(self.leaving_taints)

    @property
    def mesh_opt_outs(self) -> tuple[str, ...]:
        """Kinds of pods without a service mesh's sidecar."""
        return names(self.mesh_opt_out)

    @property
    def pull_secrets(self) -> tuple[str, ...]:
        """Names of pull secrets."""
        return names(self.image_pull_secrets)
