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
            "Where the operator runs: the Secret with the root key is there, nodes are measured there, NetworkPolicies admit the operator "
            "from there, and link probes are believed from there alone."
        ),
    )
    namespaces: str = Field(
        default="", description="Namespaces whose SplitInferences are served, with commas. Empty, the default: all of them."
    )
    resync_seconds: float = Field(
        default=5.0,
        ge=0.5,
        description="A pass is made at least so often. Five seconds: Prometheus has new values every 5 to 15 s, and a pass costs little.",
    )
    pass_threads: int = Field(
        default=8, ge=1, description="Passes at the same time, of different resources. Eight: passes mostly wait for the network."
    )
    retry_seconds: float = Field(
        default=2.0, ge=0.1, description="After a pass that failed, the next comes so much later; doubled up to a minute while it fails."
    )
    solve_seconds: float = Field(
        default=5.0, gt=0, description="Time limit of one solve. Five seconds: twice what 64 nodes and 80 layers need to be proved optimal."
    )

    # --- images and pods ---------------------------------------------------------------------------------------------------------
    segment_image: str = Field(default="splitinference/segment:0.1.0", description="Triton with the segment's model.")
    gateway_image: str = Field(default="splitinference/gateway:0.1.0", description="The server in front.")
    image_architectures: str = Field(
        default="amd64",
        description="Architectures of the images, with commas, as in the label kubernetes.io/arch. Others' nodes are not used.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Of all pods made here. Tags are versions, so what is there is right."
    )
    image_pull_secrets: str = Field(default="", description="Names of pull secrets in the resource's namespace, with commas.")
    pod_user: int | None = Field(
        default=10001,
        ge=1,
        description="User and group of all containers: the images' own, any but root will do. Empty: the cluster chooses (OpenShift).",
    )
    pod_template: dict[str, Any] = Field(
        default={"gateway": {}, "segments": {}},
        description="What is added to all pods, as JSON with the fields of spec.podTemplate, which goes before it.",
    )
    mesh_opt_out: str = Field(
        default="segments,jobs",
        description=(
            "Pods that ask service meshes for no sidecar: segments, gateway, jobs (which read or fetch a model), with commas. "
            "Segments have mutual TLS of their own, and a job with a sidecar never ends."
        ),
    )
    safe_to_evict: Literal["", "true", "false"] = Field(
        default="", description="The annotation cluster-autoscaler.kubernetes.io/safe-to-evict of segments and gateways. Empty: none."
    )
    do_not_disrupt: bool = Field(
        default=False, description="Whether segments and gateways have the annotation karpenter.sh/do-not-disrupt."
    )
    segment_resources: dict[str, Any] = Field(
        default={}, description="More requests and limits of segments, as JSON. CPU and memory have settings of their own."
    )
    gateway_resources: dict[str, Any] = Field(default={}, description="Requests and limits of gateways, as JSON, over the two settings.")
    job_resources: dict[str, Any] = Field(
        default={}, description="Requests and limits of containers that read or fetch a model, as JSON, over 50m and 64Mi to 256Mi."
    )
    cluster_domain: str = Field(default="cluster.local", description="Domain of the cluster's Services; kubeadm's and kind's default.")
    segment_cpu_request: str = Field(
        default="100m",
        description="CPU request of a segment. Small: the planner goes by measured use, a large request would keep pods from loaded nodes.",
    )
    segment_cpu_limit: str = Field(
        default="", description="CPU limit of a segment. Empty, the default: none, idle cores are there to be used."
    )
    segment_shm_mib: int = Field(
        default=64,
        ge=32,
        description="Size of /dev/shm in MiB, where Triton and its Python stub exchange tensors. Four times what it starts with.",
    )
    segment_runtime_mib: int = Field(
        default=380,
        ge=1,
        description="Memory of a segment server that holds no layer, in MiB. Measured on the CPU image: server, stub and libraries.",
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
            "Keys of taints, with commas, that say that a node is about to leave: what serves there moves at once, whatever is tolerated. "
            "The default: cordons, and the notices of Karpenter, the cluster autoscaler, AWS, GKE and AKS."
        ),
    )
    disruption_budgets: bool = Field(
        default=True,
        description="Make PodDisruptionBudgets: a drain goes on only after the replacement of a segment or gateway serves.",
    )
    segment_drain_seconds: int = Field(
        default=30,
        ge=0,
        description="A segment that is told to stop waits so long for the last steps. Only a backstop: routes are drained before.",
    )
    segment_start_seconds: int = Field(
        default=600, ge=30, description="A segment may take so long to load, before it is started anew. Ten minutes: 70 GB at 1 Gbit/s."
    )
    start_failure_seconds: float = Field(
        default=60.0,
        ge=5,
        description=(
            "A segment that fails to start (no image, no volume, a container that crashes) keeps "
            "its node for so long; then the node is avoided. A minute: registries hiccup, and the kubelet tries three times in it."
        ),
    )
    gateway_cpu_request: str = Field(default="50m", description="CPU request of a gateway. It waits for segments most of the time.")
    gateway_memory: str = Field(
        default="512Mi", description="Memory request and limit of a gateway: tokenizer and sequences. Measured 150 MB."
    )
    otlp_endpoint: str = Field(
        default="",
        description="Where gateways send OpenTelemetry traces by OTLP/HTTP, such as http://collector.monitoring:4318. Empty: no traces.",
    )
    otlp_sampling_percent: float = Field(
        default=100.0, ge=0, le=100, description="So many of the requests whose client does not say whether to trace them are traced."
    )

    # --- identity and network ----------------------------------------------------------------------------------------------------
    trust_domain: str = Field(
        default="cluster.local",
        pattern=r"^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$",
        description="Trust domain of the SPIFFE IDs in the certificates of gateways and segments. To change it makes all segments anew.",
    )
    root_key_secret: str = Field(
        default="splitinference-root-key", min_length=1, description="Name of the Secret with the root key. It is made if there is none."
    )
    network_policies: bool = Field(
        default=True, description="Make NetworkPolicies per resource: segments and gateways can only be reached by those who need to."
    )
    monitoring_namespace_selector: LabelSelector = Field(
        default=LabelSelector(match_labels={"kubernetes.io/metadata.name": "monitoring"}),
        description="Selector, as JSON, of the namespaces from which metrics may be scraped. `{}` is all namespaces.",
    )

    # --- models ------------------------------------------------------------------------------------------------------------------
    model_cache_path: str = Field(
        default="",
        description=(
            "Folder on every node, writable for the pods' user, where models of the Hugging Face hub are kept between pods. "
            "Empty, the default: each pod fetches its files anew, into a volume of its own."
        ),
    )
    hugging_face_endpoint: str = Field(default="https://huggingface.co", description="The hub, or a mirror of it.")
    profile_seconds: int = Field(
        default=60,
        ge=10,
        description="A pod that reads a model's configuration may take so long, image pull included, before the next node is tried.",
    )
    profile_retry_seconds: int = Field(
        default=120, ge=10, description="When no node could read the model, all are tried again after so long."
    )

    # --- Prometheus --------------------------------------------------------------------------------------------------------------
    prometheus_url: str = Field(default="", description="Address of Prometheus, such as http://prometheus.monitoring:9090. Empty: none.")
    prometheus_timeout_seconds: float = Field(
        default=3.0, gt=0, description="For one query. Longer than a busy server needs, shorter than a pass's interval."
    )
    prometheus_selector: str = Field(
        default="",
        pattern=f"^({_MATCHER}(,{_MATCHER})*)?$",
        description='Label matchers for all series of the query sets, where one Prometheus has several clusters: such as cluster="prod".',
    )
    prometheus_max_bytes: int = Field(
        default=16 * 2**20,
        ge=2**16,
        description="One answer may have so many bytes. 16 MiB: the links of 150 nodes, both ways; as Python has them ten times that.",
    )
    prometheus_token_file: str = Field(
        default="", description="File with the bearer token for Prometheus, read for each question. The chart mounts it (prometheus.auth)."
    )
    prometheus_basic_auth_folder: str = Field(
        default="", description="Folder with the files `username` and `password` for Prometheus. The chart mounts it."
    )
    prometheus_headers_folder: str = Field(
        default="",
        description="Folder with headers for Prometheus: each file is named like its header, such as X-Scope-OrgID. The chart mounts it.",
    )
    prometheus_ca_file: str = Field(
        default="", description="File with the CA certificates by which Prometheus is known. Empty: those of the system."
    )
    prometheus_client_folder: str = Field(
        default="", description="Folder with the operator's certificate for Prometheus: `tls.crt` and `tls.key`. Empty: none."
    )
    query_set: QuerySet = Field(
        default="nodeExporter",
        description="Which queries: nodeExporter where each node is a machine; cadvisor where nodes are containers, as in kind.",
    )
    metrics_window_seconds: int = Field(
        default=60,
        ge=5,
        description="Range over which use is taken. At least three times Prometheus' scrape interval, which is some 15 s in most clusters.",
    )
    query_node_cpu_cores: str = Field(default="", description="PromQL instead of the set's: cores in use, one series per label `node`.")
    query_segment_cpu_cores: str = Field(
        default="", description="PromQL instead of the set's: cores in use, by labels `namespace` and `pod`."
    )
    query_node_memory_available_bytes: str = Field(default="", description="PromQL instead of the set's: bytes, by label `node`.")
    query_links_mbps: str = Field(
        default="", description="PromQL instead of the set's (segments' own traffic and probes): Mbit/s by labels `source` and `target`."
    )
    query_links_rtt_ms: str = Field(
        default="", description="PromQL instead of the set's (segments' own traffic and probes): ms by labels `source` and `target`."
    )
    query_node_gpu_used: str = Field(
        default="", description="PromQL instead of dcgm-exporter's: share 0..1 of a node's GPU time that is used, by label `node`."
    )
    query_node_gpu_used_by_others: str = Field(
        default="", description="PromQL instead of dcgm-exporter's: the same, by others than our segments; by label `node`."
    )
    query_node_watts: str = Field(
        default="", description="PromQL instead of RAPL's and dcgm-exporter's: watts of a node's processors, by label `node`."
    )
    query_node_cpu_waiting: str = Field(
        default="",
        description="PromQL instead of the set's: share 0..1 of time in which some task waited for a processor (PSI), by label `node`.",
    )
    query_node_cpu_limited: str = Field(
        default="", description="The same of time in which its own CPU limit held some container of the node back, by label `node`."
    )
    query_segment_cpu_waiting: str = Field(
        default="", description="PromQL instead of the set's: the same as `node_cpu_waiting` of segments, by labels `namespace` and `pod`."
    )
    query_segment_cpu_throttled: str = Field(
        default="", description="Share 0..1 of periods in which a CPU limit held a segment back, by labels `namespace` and `pod`."
    )
    use_pressure: bool = Field(
        default=True,
        description="Count what nodes and segments lose to waiting for a processor (PSI, CPU limits) as not there, beside what others use.",
    )
    metrics_max_age_seconds: float = Field(
        default=60.0, gt=0, description="Values older than this count as unknown. A minute: two scrapes of 30 s may fail."
    )
    link_max_age_seconds: float = Field(
        default=1800.0,
        gt=0,
        description=(
            "The same for links: a probe comes round to each link as seldom as its budget makes it, and without one a slow link that was "
            "left is believed to be slow for so long. Half an hour: with the chart's budget a probe comes round to every link of 480 nodes."
        ),
    )

    # --- nodes without labels ----------------------------------------------------------------------------------------------------
    core_gflops: float = Field(
        default=20.0,
        gt=0,
        description="GFLOP/s of one core where a node says nothing: a current server core at matrix products in bfloat16.",
    )
    core_memory_bandwidth_gbps: float = Field(
        default=5.0, gt=0, description="GB/s of memory bandwidth for one core where a node says nothing: a socket's 100 GB/s over 20 cores."
    )
    link_mbps: float = Field(default=1000.0, gt=0, description="Mbit/s between nodes that say nothing: plain Ethernet.")
    link_rtt_ms: float = Field(default=0.5, ge=0, description="Round trip in ms between nodes that say nothing: one switch.")

    # --- what resources may ask for --------------------------------------------------------------------------------------------------
    allowed_host_paths: tuple[str, ...] = Field(
        default=(),
        description=(
            "Folders of nodes that resources may mount (`spec.model.source.hostPath`), and all in them; a JSON list. "
            "Empty, the default: none. Links on the node are followed, so only administrators should be able to write there."
        ),
    )
    allowed_tolerations: tuple[AllowedToleration, ...] = Field(
        default=(),
        description=(
            "Tolerations that resources may ask for (`spec.placement.tolerations`), as in a pod; a JSON list. Empty, the default: none."
        ),
    )

    # --- who acts ----------------------------------------------------------------------------------------------------------------
    operator_class: str = Field(
        default="default",
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        max_length=63,
        description="Only resources whose `spec.operatorClass` is this one are served. For two releases in one cluster.",
    )
    lease: str = Field(
        default="",
        pattern=r"^([-a-z0-9.]+/[-a-z0-9.]+)?$",
        description=(
            "Namespace and name of the Lease, as `namespace/name`, that one replica must hold to act. Empty: no election, for an operator "
            "outside of a cluster; it claims no resource, and leaves alone those that another operator has claimed."
        ),
    )
    lease_seconds: float = Field(
        default=10.0,
        ge=4,
        le=60,
        description=(
            "A Lease that was not renewed for so long may be taken over. Ten seconds: with the pause between two looks and the start, "
            "a takeover takes less than 15."
        ),
    )

    # --- figures of nodes --------------------------------------------------------------------------------------------------------
    measure_nodes: bool = Field(
        default=True,
        description="Measure what nodes compute, by a pod of some seconds on each; where a label says it, that counts.",
    )
    measure_wait_seconds: float = Field(
        default=120.0,
        ge=0,
        description="A first plan waits so long for nodes without labels to be measured; then what is assumed of the others counts.",
    )
    measurements_per_hour: int = Field(
        default=60, ge=1, description="So many nodes are measured in an hour, one at a time. 60: a minute each, image pull included."
    )
    measure_again_days: float = Field(
        default=30.0, gt=0, description="A node is measured again after so many days, or when its kernel, machine or cores are others."
    )
    measuring_priority_class: str = Field(
        default="", description="PriorityClass of the pods that measure. The chart makes one: the lowest."
    )
    measuring_tolerations: tuple[Mapping[str, str], ...] = Field(
        default=(), description="Tolerations of the pods that measure, as JSON; nodes with other taints are not measured."
    )

    # --- the operator itself -----------------------------------------------------------------------------------------------------
    kube_timeout_seconds: float = Field(
        default=5.0, gt=0, description="For one call to the API server, which answers within ms or is in trouble."
    )
    gateway_timeout_seconds: float = Field(default=1.0, gt=0, description="For one question to a gateway, which answers from memory.")
    proof_timeout_seconds: float = Field(
        default=2.0, gt=0, description="For one token through one segment; a slow layer on half a core takes 0.2 s."
    )
    metrics_port: int = Field(default=8081, ge=1, le=65535, description="The operator's own metrics, for Prometheus.")
    health_port: int = Field(default=8080, ge=1, le=65535, description="GET /healthz, for the kubelet.")
    pod_ip: str = Field(default="", description="The operator's own address, from the downward API: health is served in its family.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="INFO has one line per decision and action."
    )
    log_format: Literal["plain", "json"] = Field(default="plain", description="plain for people, json for log collectors.")

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
