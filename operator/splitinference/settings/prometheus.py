"""Settings of Prometheus: where it is, who asks, and which queries."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings

QuerySet = Literal["nodeExporter", "cadvisor"]

_MATCHER = r'\s*[a-zA-Z_]\w*\s*(=~|!~|!=|=)\s*"[^"\\{}]*"\s*'


class PrometheusSettings(BaseSettings):
    """Access, queries, and how old a value may be."""

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
