"""The operator's settings: read once, from environment variables that start with SPLITINFERENCE_, then frozen.

What belongs to one model is in its SplitInference; here is what belongs to the cluster.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, SettingsConfigDict

QuerySet = Literal["nodeExporter", "cadvisor"]


_MATCHER = r'\s*[a-zA-Z_]\w*\s*(=~|!~|!=|=)\s*"[^"\\{}]*"\s*'


class LabelSelector(BaseModel):
    """As in Kubernetes."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: list[dict[str, Any]] = Field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Without what is empty."""
        return {name: value for name, value in self.model_dump(by_alias=True).items() if value}

    def __str__(self) -> str:
        return json.dumps(self.as_json())


class AllowedToleration(BaseModel):
    """A toleration as in a pod. No key stands for every taint, no effect for every effect."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @model_validator(mode="after")
    def _is_as_in_a_pod(self) -> Self:
        if not self.key and self.operator == "Equal":
            raise ValueError("without a key the operator must be Exists")
        if self.value and self.operator == "Exists":
            raise ValueError("with the operator Exists there must be no value")
        return self

    def __str__(self) -> str:
        value = f"={self.value}" if self.operator == "Equal" else ""
        return f"{self.key or 'every taint'}{value}" + (f":{self.effect}" if self.effect else "")


class Settings(BaseSettings):
    """Each field: meaning, unit, and why this default."""

    model_config = SettingsConfigDict(env_prefix="SPLITINFERENCE_", frozen=True, extra="ignore")

    # --- passes ------------------------------------------------------------------------------------------------------------------
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

    # --- images and pods ---------------------------------------------------------------------------------------------------------
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

    # --- identity and network ----------------------------------------------------------------------------------------------------
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

    # --- models ------------------------------------------------------------------------------------------------------------------
    model_cache_path: str = Field(
        default="",
        description=(
            "Folder on every node, writable for the pods' user, that keeps models of the Hugging Face hub between pods. Empty, the "
            "default: each pod fetches its files again, into its own volume."
        ),
    )
    model_cache_gib: float = Field(
        default=200.0,
        ge=0,
        description=(
            "Largest size of that folder on each node, in GiB. Weights that were used least lately go first, but never those of a running "
            "segment. 0: no limit. 200: a few models of 70 GB in parts."
        ),
    )
    hugging_face_endpoint: str = Field(default="https://huggingface.co", description="Address of the Hugging Face hub, or of a mirror.")
    profile_seconds: int = Field(
        default=60,
        ge=10,
        description="Time limit for a pod that reads a model's configuration, image pull included. After that, the next node is tried.",
    )
    digest_seconds: float = Field(
        default=20.0,
        ge=0,
        description=(
            "How long the digests of a model's tensors may take when the model is read from a folder. Segments check them. A model "
            "that takes longer has none, unless `spec.model.digest` asks for it. 0: never without. Twenty seconds: 20 GB from a local "
            "disk."
        ),
    )
    expected_digest_seconds: int = Field(
        default=3600,
        ge=60,
        description=(
            "Additional time limit for a pod that reads a model with `spec.model.digest`: it reads all of the model once. One hour: "
            "400 GB at 1 Gbit/s."
        ),
    )
    profile_retry_seconds: int = Field(
        default=120, ge=10, description="If no node could read the model, all are tried again after this time."
    )

    # --- Prometheus --------------------------------------------------------------------------------------------------------------
    prometheus_url: str = Field(
        default="", description="Address of Prometheus, such as http://prometheus.monitoring:9090. Empty: no Prometheus."
    )
    prometheus_timeout_seconds: float = Field(
        default=3.0,
        gt=0,
        description="Time limit of one query. It is longer than a busy server needs, and shorter than the time between passes.",
    )
    prometheus_selector: str = Field(
        default="",
        pattern=f"^({_MATCHER}(,{_MATCHER})*)?$",
        description='Label matchers for all series of the query sets, for a Prometheus with several clusters, such as cluster="prod".',
    )
    prometheus_max_bytes: int = Field(
        default=16 * 2**20,
        ge=2**16,
        description=(
            "Largest answer to a query. 16 MiB: the links of 150 nodes in both directions. In Python's memory it takes ten times as much."
        ),
    )
    prometheus_token_file: str = Field(
        default="",
        description="File with the bearer token for Prometheus. It is read for each query. The chart mounts it (prometheus.auth).",
    )
    prometheus_basic_auth_folder: str = Field(
        default="", description="Folder with the files `username` and `password` for Prometheus. The chart mounts it."
    )
    prometheus_headers_folder: str = Field(
        default="",
        description=(
            "Folder with HTTP headers for Prometheus. Each file is named like its header, such as X-Scope-OrgID. The chart mounts it."
        ),
    )
    prometheus_ca_file: str = Field(
        default="", description="File with the CA certificates to trust for Prometheus. Empty: those of the system."
    )
    prometheus_client_folder: str = Field(
        default="", description="Folder with the operator's certificate for Prometheus: `tls.crt` and `tls.key`. Empty: none."
    )
    query_set: QuerySet = Field(
        default="nodeExporter",
        description="Set of queries: nodeExporter if each node is a machine, cadvisor if nodes are containers, as in kind.",
    )
    metrics_window_seconds: int = Field(
        default=60,
        ge=5,
        description=(
            "Range over which use is measured. Use at least three times Prometheus' scrape interval, which is about 15 s in most clusters."
        ),
    )
    query_node_cpu_cores: str = Field(default="", description="Replaces the set's PromQL: cores in use, one series per label `node`.")
    query_segment_cpu_cores: str = Field(
        default="", description="Replaces the set's PromQL: cores in use, by labels `namespace` and `pod`."
    )
    query_node_memory_available_bytes: str = Field(default="", description="Replaces the set's PromQL: bytes, by label `node`.")
    query_links_mbps: str = Field(
        default="", description="Replaces the set's PromQL (segments' own traffic and probes): Mbit/s by labels `source` and `target`."
    )
    query_links_rtt_ms: str = Field(
        default="", description="Replaces the set's PromQL (segments' own traffic and probes): ms by labels `source` and `target`."
    )
    query_node_gpu_used: str = Field(
        default="", description="Replaces the PromQL for dcgm-exporter: share 0..1 of a node's GPU time that is used, by label `node`."
    )
    query_node_gpu_used_by_others: str = Field(
        default="", description="Replaces the PromQL for dcgm-exporter: the same, used by others than our segments, by label `node`."
    )
    query_node_watts: str = Field(
        default="", description="Replaces the PromQL for RAPL and dcgm-exporter: watts of a node's processors, by label `node`."
    )
    query_node_cpu_waiting: str = Field(
        default="",
        description="Replaces the set's PromQL: share 0..1 of time in which some task waited for a processor (PSI), by label `node`.",
    )
    query_node_cpu_limited: str = Field(
        default="",
        description=(
            "Replaces the set's PromQL: share 0..1 of time in which its own CPU limit held back some container of the node, by "
            "label `node`."
        ),
    )
    query_segment_cpu_waiting: str = Field(
        default="", description="Replaces the set's PromQL: as `node_cpu_waiting`, for segments, by labels `namespace` and `pod`."
    )
    query_segment_cpu_throttled: str = Field(
        default="",
        description=(
            "Replaces the set's PromQL: share 0..1 of periods in which a CPU limit held back a segment, by labels `namespace` and `pod`."
        ),
    )
    use_pressure: bool = Field(
        default=True,
        description=(
            "Whether time that nodes and segments lose to waiting for a processor (PSI, CPU limits) counts as unavailable, in "
            "addition to use by others."
        ),
    )
    metrics_max_age_seconds: float = Field(
        default=60.0, gt=0, description="Values older than this are unknown. One minute: two scrapes of 30 s may fail."
    )
    link_max_age_seconds: float = Field(
        default=1800.0,
        gt=0,
        description=(
            "The same for links. A probe measures each link as rarely as its budget allows. Without a probe, a slow link that the "
            "plan left counts as slow for this long. Half an hour: with the chart's budget, a probe measures every link of 480 "
            "nodes in that time."
        ),
    )

    # --- nodes without labels ----------------------------------------------------------------------------------------------------
    core_gflops: float = Field(
        default=20.0,
        gt=0,
        description="GFLOP/s of one core of a node without label or measurement: a current server core at matrix products in bfloat16.",
    )
    core_memory_bandwidth_gbps: float = Field(
        default=5.0,
        gt=0,
        description="Memory bandwidth in GB/s for one core of a node without label or measurement: a socket's 100 GB/s over 20 cores.",
    )
    link_mbps: float = Field(
        default=1000.0, gt=0, description="Mbit/s between nodes whose link is neither measured nor labelled: plain Ethernet."
    )
    link_rtt_ms: float = Field(
        default=0.5, ge=0, description="Round trip in ms between nodes whose link is neither measured nor labelled: one switch."
    )

    # --- what resources may ask for --------------------------------------------------------------------------------------------------
    allowed_host_paths: tuple[str, ...] = Field(
        default=(),
        description=(
            "Folders of nodes that resources may mount (`spec.model.source.hostPath`), including everything in them. A JSON list. "
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

    # --- who acts ----------------------------------------------------------------------------------------------------------------
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

    # --- figures of nodes --------------------------------------------------------------------------------------------------------
    measure_nodes: bool = Field(
        default=True,
        description="Whether to measure what nodes compute, by a pod of some seconds on each node. Labels of a node take precedence.",
    )
    measure_wait_seconds: float = Field(
        default=120.0,
        ge=0,
        description=(
            "How long a first plan waits for the measurement of nodes without labels. After that, defaults are assumed for the others."
        ),
    )
    measurements_per_hour: int = Field(
        default=60, ge=1, description="Number of nodes measured per hour, one at a time. 60: one minute each, image pull included."
    )
    measure_again_days: float = Field(
        default=30.0,
        gt=0,
        description="Days until a node is measured again. It is also measured again when its kernel, machine or cores change.",
    )
    measuring_priority_class: str = Field(
        default="", description="PriorityClass of the pods that measure nodes. The chart creates one: the lowest."
    )
    measuring_tolerations: tuple[Mapping[str, str], ...] = Field(
        default=(), description="Tolerations of the pods that measure nodes, as JSON. Nodes with other taints are not measured."
    )

    # --- the operator itself -----------------------------------------------------------------------------------------------------
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

    @field_validator("pod_user", mode="before")
    @classmethod
    def _may_be_empty(cls, user: object) -> object:
        return None if user in ("", "null") else user

    @field_validator("mesh_opt_out")
    @classmethod
    def _names_pods(cls, kinds: str) -> str:
        if unknown := set(_names(kinds)) - {"segments", "gateway", "jobs"}:
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

    @field_validator("allowed_host_paths")
    @classmethod
    def _are_whole_paths(cls, folders: tuple[str, ...]) -> tuple[str, ...]:
        for folder in folders:
            if not folder.startswith("/") or {".", ".."} & set(folder.split("/")):
                raise ValueError(f"{folder!r} must be absolute and hold neither '.' nor '..'")
        return folders

    @field_validator("segment_cpu_limit", "segment_cpu_request", "gateway_cpu_request", "gateway_memory")
    @classmethod
    def _has_no_space(cls, quantity: str) -> str:
        if quantity != quantity.strip():
            raise ValueError(f"{quantity!r} is no Kubernetes quantity")
        return quantity

    @model_validator(mode="after")
    def _lease_outlives_a_call(self) -> Self:
        if self.lease_seconds <= self.kube_timeout_seconds + 2:
            raise ValueError(
                f"lease_seconds {self.lease_seconds:g} must exceed kube_timeout_seconds {self.kube_timeout_seconds:g} by more than 2 s"
            )
        return self

    @property
    def lease_key(self) -> tuple[str, str]:
        """Namespace and name of the Lease."""
        namespace, _, name = self.lease.partition("/")
        return namespace, name

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        """The namespaces; none means all."""
        return _names(self.namespaces)

    @property
    def architectures(self) -> tuple[str, ...]:
        """What the images run on."""
        return _names(self.image_architectures)

    @property
    def leaving_taint_keys(self) -> tuple[str, ...]:
        """Taints of nodes that are about to leave."""
        return _names(self.leaving_taints)

    @property
    def mesh_opt_outs(self) -> tuple[str, ...]:
        """Kinds of pods without a service mesh's sidecar."""
        return _names(self.mesh_opt_out)

    @property
    def pull_secrets(self) -> tuple[str, ...]:
        """Names of pull secrets."""
        return _names(self.image_pull_secrets)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
