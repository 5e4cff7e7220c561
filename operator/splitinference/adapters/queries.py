"""PromQL: two documented sets, and how a value and its age come in one answer.

- `nodeExporter`: for ordinary clusters, where a node is a machine. Node figures are node-exporter's; the node's name is its host name
  (`node_uname_info`), as kubeadm and the clouds have it.
- `cadvisor`: for clusters whose nodes are containers, as in kind: node-exporter would show the whole machine for each, the kubelet's own
  cAdvisor (`id="/"`) shows the node's share.

Use of processors is the slope of the counter over what samples there are (`deriv`), not `rate`: rate counts the time since the last sample
as idle, so a node whose samples come late, or no longer, would look less and less busy. Where a counter started anew within the range, the
slope is not taken at all.

Pods are cAdvisor's in both. The name of a node is its label `node` where there is one, else `instance` (Prometheus' role `node` has it so).

GPUs are dcgm-exporter's in both, whose `Hostname` is the node's name unless a relabelled `node` says it. A GPU that Kubernetes gave to a
container of ours is not used by others; who uses one that is shared in time dcgm-exporter cannot tell, so all of it counts as others'.
Power is what processors take: packages and memory by RAPL (node-exporter), and GPUs.

Links are in both what segments see of their own traffic and what the link probes measure; both name the nodes in `source` and `target`, so
it does not matter how they are scraped. Of the values that are fresh the best counts (the shortest round trip, the highest bandwidth),
whoever measured it: all that disturbs a measurement makes a link look worse, and a link that is slow is slow for both. Where none is fresh,
the newest does until it is too old: a probe comes round as seldom as its budget makes it. What a segment measured outlives it: a link is
left because it is slow, and would be taken for fast again as soon as nobody is there who says so.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from splitinference.settings import QuerySet

KIND_LABEL = "si_kind"
VALUE = "value"
AGE = "age"


@dataclass(frozen=True)
class Query:
    """`value` and, by the same labels, `age` in seconds. Empty value: not to be had.

    `{window}` stands for the range of slopes, `{fresh}` and `{keep}` for the seconds within which a link's value is fresh, or of any use,
    `{kept}` for the range of the latter.
    """

    value: str
    age: str
    by: tuple[str, ...]

    def text(self, window_seconds: int, fresh_seconds: float = 60, keep_seconds: float = 300) -> str:
        """Both in one query, told apart by a label."""
        parts = (f'label_replace({text}, "{KIND_LABEL}", "{kind}", "", "")' for kind, text in ((VALUE, self.value), (AGE, self.age)))
        places = {"{window}": f"{window_seconds}s", "{fresh}": f"{fresh_seconds:g}", "{keep}": f"{keep_seconds:g}"}
        places["{kept}"] = f"{math.ceil(keep_seconds)}s"
        whole = " or ".join(parts)
        for place, text in places.items():
            whole = whole.replace(place, text)
        return whole


@dataclass(frozen=True)
class Queries:
    """One query for each figure that a pass asks for."""

    node_cpu_cores: Query
    segment_cpu_cores: Query
    node_memory_available_bytes: Query
    links_mbps: Query
    links_rtt_ms: Query
    node_gpu_used: Query
    node_gpu_used_by_others: Query
    node_watts: Query


_NODE = ("node",)
_POD = ("namespace", "pod")
_LINK = ("source", "target")
_STEP = "15s"


def own(value: str, by: tuple[str, ...]) -> Query:
    """A query of the user's. Its age is that of its newest sample where it selects series; for a rate its range bounds the age."""
    return Query(value=value, age=f"time() - timestamp({value})" if value else "", by=by)


def _slope(selector: str, by: str) -> str:
    samples = f"{selector}[{{window}}]"
    return f"(sum by ({by}) (deriv({samples})) unless (sum by ({by}) (resets({samples})) > 0))"


def _by_machine(expression: str, aggregation: str = "sum") -> str:
    joined = f"({expression}) * on (instance) group_left (nodename) (max by (instance, nodename) (node_uname_info))"
    return f'{aggregation} by (node) (label_replace({joined}, "node", "$1", "nodename", "(.+)"))'


def _machine_age(metric: str) -> str:
    return _by_machine(f"time() - max by (instance) (timestamp({metric}))", "max")


def _named(template: str, where: str, otherwise: str) -> str:
    """The template's series with a label `node`: as it is, else what the label `otherwise` says. `@` stands for the selector."""
    named, unnamed = (template.replace("@", f"{where}{condition}") for condition in ('node!=""', 'node=""'))
    return f'({named} or label_replace({unnamed}, "node", "$1", "{otherwise}", "(.+)"))'


def _kubelet(template: str, aggregation: str) -> str:
    whole = _named(template, 'id="/", ', "instance")
    return f"{aggregation} by (node) {whole}"


def _gpus(metric: str, where: str = "") -> str:
    """Of each GPU one value, its mean over the window: one that is shared has a series for each container."""
    whole = _named(f"avg_over_time({metric}{{@}}[{{window}}])", where, "Hostname")
    return f"max by (node, UUID) {whole}"


def _gpu_age(metric: str) -> str:
    whole = _named(f"(time() - timestamp({metric}{{@}}))", "", "Hostname")
    return f"max by (node) {whole}"


# What a hypervisor takes away (steal) is not there for us, as if another process of the machine used it.
_CORES = _slope('node_cpu_seconds_total{mode!~"idle|iowait"}', "instance")
_SEGMENTS = Query(
    value=_slope('container_cpu_usage_seconds_total{container="segment"}', "namespace, pod"),
    age='time() - max by (namespace, pod) (timestamp(container_cpu_usage_seconds_total{container="segment"}))',
    by=_POD,
)
_NO_NODE = Query(value="", age="", by=_NODE)

_BUSY, _TAKES = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE"
_NOT_OURS = 'container!="segment", exported_container!="segment", '
_COUNT = f"count by (node) ({_gpus(_BUSY)})"
_GPU_USED = Query(value=f"sum by (node) ({_gpus(_BUSY)}) / {_COUNT} / 100", age=_gpu_age(_BUSY), by=_NODE)
_GPU_USED_BY_OTHERS = Query(
    value=f"(sum by (node) ({_gpus(_BUSY, _NOT_OURS)}) or 0 * {_COUNT}) / {_COUNT} / 100", age=_gpu_age(_BUSY), by=_NODE
)


def _all_of(parts: Sequence[str], aggregation: str) -> str:
    """Over series of all parts, each by node: not every node has every part."""
    apart = (f'label_replace({part}, "of", "{number}", "", "")' for number, part in enumerate(parts))
    return f"{aggregation} by (node) ({' or '.join(apart)})"


_RAPL = ("node_rapl_package_joules_total", "node_rapl_dram_joules_total")
_GPU_WATTS = f"sum by (node) ({_gpus(_TAKES)})"


def _link(figure: str, believed: str, best: str) -> Query:
    """`best` of the fresh values; where none is, the newest. Values for which `believed` does not hold, such as NaN, count as none."""
    measured, probed = f"splitinference_segment_link_{figure}", f"splitinference_link_{figure}"
    age, probed_age = (f"{name.removesuffix('_ms')}_age_seconds" for name in (measured, probed))
    measured = f"last_over_time({measured}[{{kept}}])"
    # As of now, not of the scrape; of a segment that is gone, of its last scrape, as exactly as the steps of the subquery are.
    now = f"{age} + time() - timestamp({age})"
    gone = f"last_over_time({age}[{{kept}}]) + time() - max_over_time(timestamp({age})[{{kept}}:{_STEP}])"
    values = f"{measured} {believed} or {probed} {believed}"
    since = f"(({now} or {gone}) and {measured} {believed}) or ({probed_age} + time() - timestamp({probed_age}) and {probed} {believed})"
    newest = f"min by (source, target) (({since}) <= {{keep}})"
    fresh = f"{best} by (source, target) (({values}) and ({since}) <= {{fresh}})"
    last = f"{best} by (source, target) (({values}) and ({since}) == on (source, target) group_left () {newest})"
    return Query(value=f"({fresh} or {last})", age=newest, by=_LINK)


_LINKS_MBPS = _link("mbps", "> 0", "max")
_LINKS_RTT_MS = _link("rtt_ms", ">= 0", "min")

SETS: dict[QuerySet, Queries] = {
    "nodeExporter": Queries(
        node_cpu_cores=Query(value=_by_machine(_CORES), age=_machine_age("node_cpu_seconds_total"), by=_NODE),
        segment_cpu_cores=_SEGMENTS,
        node_memory_available_bytes=Query(
            value=_by_machine("node_memory_MemAvailable_bytes"), age=_machine_age("node_memory_MemAvailable_bytes"), by=_NODE
        ),
        links_mbps=_LINKS_MBPS,
        links_rtt_ms=_LINKS_RTT_MS,
        node_gpu_used=_GPU_USED,
        node_gpu_used_by_others=_GPU_USED_BY_OTHERS,
        node_watts=Query(
            value=_all_of([*(_by_machine(_slope(counter, "instance")) for counter in _RAPL), _GPU_WATTS], "sum"),
            age=_all_of([*(_machine_age(counter) for counter in _RAPL), _gpu_age(_TAKES)], "max"),
            by=_NODE,
        ),
    ),
    "cadvisor": Queries(
        node_cpu_cores=Query(
            value=_kubelet(_slope("container_cpu_usage_seconds_total{@}", "node, instance"), "sum"),
            age=_kubelet("(time() - timestamp(container_cpu_usage_seconds_total{@}))", "max"),
            by=_NODE,
        ),
        segment_cpu_cores=_SEGMENTS,
        node_memory_available_bytes=_NO_NODE,
        links_mbps=_LINKS_MBPS,
        links_rtt_ms=_LINKS_RTT_MS,
        node_gpu_used=_GPU_USED,
        node_gpu_used_by_others=_GPU_USED_BY_OTHERS,
        node_watts=Query(value=_GPU_WATTS, age=_gpu_age(_TAKES), by=_NODE),
    ),
}
