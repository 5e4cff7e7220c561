"""PromQL: two documented sets, and how a value and its age come in one answer.

- `nodeExporter`: for ordinary clusters, where a node is a machine. Node figures are node-exporter's.
- `cadvisor`: for clusters whose nodes are containers, as in kind: node-exporter would show the whole machine for each, the kubelet's own
  cAdvisor (`id="/"`) shows the node's share.

Answers keep the labels that tell whom a series is about and who was scraped for it. Names of nodes are found out from these, and series of
strangers left out, by `controller.believed`: setups differ in what they call a node, and any pod that is scraped may export any metric.

Use of processors is the slope of the counter over what samples there are (`deriv`), not `rate`: rate counts the time since the last sample
as idle, so a node whose samples come late, or no longer, would look less and less busy. Where a counter started anew within the range, the
slope is not taken at all. Pressure stall information is counters of seconds, too: their slope is the share of time in which some task
waited for a processor, of the node or of one container.

Pods are cAdvisor's in both. GPUs are dcgm-exporter's in both, whose `Hostname` is the node's name unless a relabelled `node` says it. A GPU
that Kubernetes gave to a container of ours is not used by others; who uses one that is shared in time dcgm-exporter cannot tell, so all of
it counts as others'. Power is what processors take: packages and memory by RAPL (node-exporter), and GPUs.

Links are in both what segments see of their own traffic and what the link probes measure; both name the nodes in `source` and `target`.
What a segment measured outlives it: a link is left because it is slow, and would be taken for fast again as soon as nobody is there who
says so. Which of several values counts, `controller.believed` decides, as each must come from whom it may come from.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from splitinference.controller.cluster_state.figures.trusted_samples import BY_SEGMENT, MEASURED_BY, PART
from splitinference.settings import QuerySet

_METRIC = re.compile(r"\b((?:node|container|splitinference|DCGM_FI_DEV)_\w+)(\{(?!\w+\})|)")
"""A metric of these sets, and the brace where its own matchers begin; `{window}` and `{kept}` are no matchers."""
KIND_LABEL = "si_kind"
VALUE = "value"
AGE = "age"
NAME = "name"


@dataclass(frozen=True)
class Query:
    """`value` and, by the same labels, `age` in seconds. Empty value: not to be had. `by`: labels that make the name; `told`: further ones
    that tell whom a series is about; `names`: a series that has, for the same `instance` and `job`, the machine's own name in `nodename`.

    `{window}` stands for the range of slopes, `{kept}` for the range within which a link's value is of any use.
    """

    value: str
    age: str
    by: tuple[str, ...]
    told: tuple[str, ...] = ()
    names: str = ""

    def text(self, window_seconds: int, keep_seconds: float = 300, selector: str = "") -> str:
        """All in one query, told apart by a label. `selector`: matchers that each series must have, where one server has several
        clusters; they are not for queries of the user's own."""
        parts = [(VALUE, self.value), (AGE, self.age), *([(NAME, self.names)] if self.names else [])]
        whole = " or ".join(f'label_replace({text}, "{KIND_LABEL}", "{kind}", "", "")' for kind, text in parts)
        if selector and self.told:
            whole = _METRIC.sub(lambda found: f"{found[1]}{{{selector}{',' if found[2] == '{' else '}'}", whole)
        return whole.replace("{window}", f"{window_seconds}s").replace("{kept}", f"{math.ceil(keep_seconds)}s")


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
    node_cpu_waiting: Query
    node_cpu_limited: Query
    segment_cpu_waiting: Query
    segment_cpu_throttled: Query


BY_NODE = ("node",)
BY_POD = ("namespace", "pod")
BY_LINK = ("source", "target")
_WHO = ("node", "kubernetes_node", "kubernetes_io_hostname", "Hostname", "instance", "job")
_LINK_WHO = ("segment", "to", "namespace", "pod", "instance", MEASURED_BY)
_STEP = "15s"


def own(value: str, by: tuple[str, ...]) -> Query:
    """A query of the user's. Its age is that of its newest sample where it selects series; for a rate its range bounds the age."""
    return Query(value=value, age=f"time() - timestamp({value})" if value else "", by=by)


def _labels(*labels: str) -> str:
    return ", ".join(labels)


_BY_WHO = _labels(*_WHO)


def _slope(selector: str, by: str = _BY_WHO) -> str:
    samples = f"{selector}[{{window}}]"
    return f"(sum by ({by}) (deriv({samples})) unless (sum by ({by}) (resets({samples})) > 0))"


def _since(selector: str, by: str = _BY_WHO) -> str:
    return f"max by ({by}) (time() - timestamp({selector}))"


_NAMES = f"max by ({_labels(*_WHO, 'nodename')}) (node_uname_info)"


def _of_node(value: str, age: str, names: str = "", *more: str) -> Query:
    return Query(value=value, age=age, by=(), told=(*_WHO, *more), names=names)


def _of_segments(counter: str) -> Query:
    selector, by = f'{counter}{{container="segment"}}', _labels(*BY_POD, *_WHO)
    return Query(value=_slope(selector, by), age=_since(selector, by), by=BY_POD, told=_WHO)


# What a hypervisor takes away (steal) is not there for us, as if another process of the machine used it.
_CORES = 'node_cpu_seconds_total{mode!~"idle|iowait"}'
_WAITING = "pressure_cpu_waiting_seconds_total"
_ROOT = '{id="/"}'
_PERIODS, _THROTTLED = (f"container_cpu_cfs_{which}periods_total" for which in ("", "throttled_"))
_BY_POD_AND_WHO = _labels(*BY_POD, *_WHO)
_SEGMENT_CORES = _of_segments("container_cpu_usage_seconds_total")
_SEGMENT_WAITING = _of_segments(f"container_{_WAITING}")


def _held_back(where: str, by: str) -> str:
    """Share of periods in which a limit held a container back."""
    return f"({_slope(_THROTTLED + where, by)} / ({_slope(_PERIODS + where, by)} > 0))"


_SEGMENT, _ANY = '{container="segment"}', '{container!="", container!="segment"}'
_SEGMENT_THROTTLED = Query(
    value=_held_back(_SEGMENT, _BY_POD_AND_WHO), age=_since(_PERIODS + _SEGMENT, _BY_POD_AND_WHO), by=BY_POD, told=_WHO
)
# Containers are held back at times of their own: the share of time in which any is, as if these had nothing to do with each other.
_LIMITED = _of_node(
    f"1 - exp(sum by ({_BY_WHO}) (ln(clamp_min(1 - {_held_back(_ANY, _labels(*BY_POD, 'container', *_WHO))}, 0.0001))))",
    _since(_PERIODS + _ANY),
)
_NOT_THERE = Query(value="", age="", by=())

_BUSY, _TAKES = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_POWER_USAGE"
_NOT_OURS = '{container!="segment", exported_container!="segment"}'


def _gpus(metric: str, where: str = "") -> str:
    """Of each GPU one value, its mean over the window: one that is shared has a series for each container."""
    return f"max by ({_BY_WHO}, UUID) (avg_over_time({metric}{where}[{{window}}]))"


_COUNT = f"count by ({_BY_WHO}) ({_gpus(_BUSY)})"
_GPU_USED = _of_node(f"sum by ({_BY_WHO}) ({_gpus(_BUSY)}) / {_COUNT} / 100", _since(_BUSY))
_GPU_USED_BY_OTHERS = _of_node(f"(sum by ({_BY_WHO}) ({_gpus(_BUSY, _NOT_OURS)}) or 0 * {_COUNT}) / {_COUNT} / 100", _since(_BUSY))


def _part(number: int, text: str) -> str:
    return f'label_replace({text}, "{PART}", "{number}", "", "")'


def _watts(*counters: str) -> Query:
    """Several exporters each show a part of what a node takes; not every node has every part."""
    values = [*(_slope(counter) for counter in counters), f"sum by ({_BY_WHO}) ({_gpus(_TAKES)})"]
    ages = [*(_since(counter) for counter in counters), _since(_TAKES)]
    value, age = (" or ".join(_part(number, text) for number, text in enumerate(texts)) for texts in (values, ages))
    return _of_node(f"({value})", f"({age})", _NAMES if counters else "", PART)


def _link(figure: str) -> Query:
    """Each value with its age, by who measured it."""
    measured, probed = f"splitinference_segment_link_{figure}", f"splitinference_link_{figure}"
    age, probed_age = (f"{name.removesuffix('_ms')}_age_seconds" for name in (measured, probed))
    # As of now, not of the scrape. Of a segment that is gone, as of its last scrape, as exactly as the steps are: value and age come from
    # the same steps, so that there is none without the other.
    steps = f"[{{kept}}:{_STEP}]"
    now = f"{age} + time() - timestamp({age})"
    gone = f"last_over_time({age}{steps}) + time() - max_over_time(timestamp({age}){steps})"

    def by(whom: str, text: str) -> str:
        kept = _labels(*BY_LINK, *(label for label in _LINK_WHO if label != MEASURED_BY))
        return f'label_replace(min by ({kept}) ({text}), "{MEASURED_BY}", "{whom}", "", "")'

    value = f"{by(BY_SEGMENT, f'{measured} or last_over_time({measured}{steps})')} or {by('probe', probed)}"
    since = f"{by(BY_SEGMENT, f'({now}) or ({gone})')} or {by('probe', f'{probed_age} + time() - timestamp({probed_age})')}"
    return Query(value=f"({value})", age=f"({since})", by=BY_LINK, told=_LINK_WHO)


_LINKS_MBPS = _link("mbps")
_LINKS_RTT_MS = _link("rtt_ms")


def _machine(metric: str) -> Query:
    return _of_node(f"max by ({_BY_WHO}) ({metric})", _since(metric), _NAMES)


SETS: dict[QuerySet, Queries] = {
    "nodeExporter": Queries(
        node_cpu_cores=_of_node(_slope(_CORES), _since("node_cpu_seconds_total"), _NAMES),
        segment_cpu_cores=_SEGMENT_CORES,
        node_memory_available_bytes=_machine("node_memory_MemAvailable_bytes"),
        links_mbps=_LINKS_MBPS,
        links_rtt_ms=_LINKS_RTT_MS,
        node_gpu_used=_GPU_USED,
        node_gpu_used_by_others=_GPU_USED_BY_OTHERS,
        node_watts=_watts("node_rapl_package_joules_total", "node_rapl_dram_joules_total"),
        node_cpu_waiting=_of_node(_slope(f"node_{_WAITING}"), _since(f"node_{_WAITING}"), _NAMES),
        node_cpu_limited=_LIMITED,
        segment_cpu_waiting=_SEGMENT_WAITING,
        segment_cpu_throttled=_SEGMENT_THROTTLED,
    ),
    "cadvisor": Queries(
        node_cpu_cores=_of_node(_slope(f"container_cpu_usage_seconds_total{_ROOT}"), _since(f"container_cpu_usage_seconds_total{_ROOT}")),
        segment_cpu_cores=_SEGMENT_CORES,
        node_memory_available_bytes=_NOT_THERE,
        links_mbps=_LINKS_MBPS,
        links_rtt_ms=_LINKS_RTT_MS,
        node_gpu_used=_GPU_USED,
        node_gpu_used_by_others=_GPU_USED_BY_OTHERS,
        node_watts=_watts(),
        node_cpu_waiting=_of_node(_slope(f"container_{_WAITING}{_ROOT}"), _since(f"container_{_WAITING}{_ROOT}")),
        node_cpu_limited=_LIMITED,
        segment_cpu_waiting=_SEGMENT_WAITING,
        segment_cpu_throttled=_SEGMENT_THROTTLED,
    ),
}


def all_of(queries: Queries) -> Sequence[Query]:
    """Every query of a set."""
    return [getattr(queries, name) for name in queries.__dataclass_fields__]
