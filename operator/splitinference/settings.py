"""The operator's settings: read once, from environment variables that start with SPLITINFERENCE_, then frozen.

What belongs to one model is in its SplitInference; here is what belongs to the cluster.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

QuerySet = Literal["nodeExporter", "cadvisor"]


_MATCHER = r'\s*[a-zA-Z_]\w*\s*(=~|!~|!=|=)\s*"[^"\\{}]*"\s*'


class Settings(BaseSettings):
    """Each field: meaning, unit, and why this default."""

    model_config = SettingsConfigDict(env_prefix="SPLITINFERENCE_", frozen=True, extra="ignore")

    # --- passes ------------------------------------------------------------------------------------------------------------------
    operator_namespace: str = Field(
        default="splitinference-system",
        description="Namespace of the operator: link probes are believed from there alone, and nodes are measured there.",
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
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="Of all pods made here. Tags are versions, so what is there is right."
    )
    image_pull_secrets: str = Field(default="", description="Names of pull secrets in the resource's namespace, with commas.")
    pod_user: int = Field(
        default=10001, ge=1, description="User and group of all containers: the images' own, any that is not root will do."
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
    segment_drain_seconds: int = Field(
        default=30,
        ge=0,
        description="A segment that is told to stop waits so long for the last steps. Only a backstop: routes are drained before.",
    )
    segment_start_seconds: int = Field(
        default=600, ge=30, description="A segment may take so long to load, before it is started anew. Ten minutes: 70 GB at 1 Gbit/s."
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
    network_policies: bool = Field(
        default=False, description="Make a NetworkPolicy per resource: segments take steps only from their own gateway and segments."
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
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="INFO has one line per decision and action."
    )
    log_format: Literal["plain", "json"] = Field(default="plain", description="plain for people, json for log collectors.")

    @field_validator("segment_cpu_limit", "segment_cpu_request", "gateway_cpu_request", "gateway_memory")
    @classmethod
    def _has_no_space(cls, quantity: str) -> str:
        if quantity != quantity.strip():
            raise ValueError(f"{quantity!r} is no Kubernetes quantity")
        return quantity

    @property
    def watched_namespaces(self) -> tuple[str, ...]:
        """The namespaces; none means all."""
        return _names(self.namespaces)

    @property
    def pull_secrets(self) -> tuple[str, ...]:
        """Names of pull secrets."""
        return _names(self.image_pull_secrets)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
