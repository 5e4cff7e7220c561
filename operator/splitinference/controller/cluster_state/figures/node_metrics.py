"""What metrics say about nodes, judged: a value that is old, missing or impossible is unknown, never zero, and a note says why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.cluster_state.figures.trusted_samples import Choice, Coverage, coverage, of_links, of_nodes, of_pods
from splitinference.controller.ports import Manifest, Metrics, Sample, Samples
from splitinference.core.values.value import Value
from splitinference.settings import Settings

PREFIX = "splitinference.dev/"
PROCESSOR, CPU, GPU = PREFIX + "processor", "cpu", "gpu"
IDLE_WATTS = PREFIX + "idle-watts"
_LEAST_MBPS = 1e-3
"""A link that carries less has not been measured."""
_ABSURD = 1.5
"""A node that is said to use more than this many times its cores is not believed."""
_TELLING_USE = 0.3
"""From so much use on, power says what a busy node takes: below, what it takes idle is most of it."""


class Measured(Value):
    """All that metrics said at one moment, read once. `reading`: its number, counted by who reads."""

    reading: int = 0
    node_cpu_cores: Samples = Samples()
    segment_cpu_cores: Samples = Samples()
    node_memory_available_bytes: Samples = Samples()
    links_mbps: Samples = Samples()
    links_rtt_ms: Samples = Samples()
    node_gpu_used: Samples = Samples()
    node_gpu_used_by_others: Samples = Samples()
    node_watts: Samples = Samples()
    node_cpu_waiting: Samples = Samples()
    node_cpu_limited: Samples = Samples()
    segment_cpu_waiting: Samples = Samples()
    segment_cpu_throttled: Samples = Samples()
    coverage: Coverage = Coverage()

    @property
    def problem(self) -> str:
        """Why utilization is not known at all; empty if it is."""
        return self.node_cpu_cores.problem or self.segment_cpu_cores.problem

    @property
    def reason(self) -> str:
        """The same in one word."""
        return next((answer.reason for answer in (self.node_cpu_cores, self.segment_cpu_cores) if answer.problem), "")

    @property
    def notes(self) -> tuple[str, ...]:
        """What was odd in the answers, each once, and what is doubtful because a question had no answer at all."""
        links = (self.links_mbps, self.links_rtt_ms)
        waiting = (self.node_cpu_waiting, self.node_cpu_limited, self.segment_cpu_waiting, self.segment_cpu_throttled)
        gpus = (self.node_gpu_used, self.node_gpu_used_by_others)
        beside = (self.node_memory_available_bytes, *links, *gpus, self.node_watts, *waiting)
        odd = [note for answer in (self.node_cpu_cores, self.segment_cpu_cores, *beside) for note in answer.notes]
        return tuple(dict.fromkeys([*odd, *(answer.problem for answer in beside if answer.problem)]))


def _said(node: Manifest, key: str) -> str | None:
    """What a label or annotation of the node says (an annotation wins); None where there is none."""
    metadata = node["metadata"]
    return _chosen(metadata.get("labels") or {}, metadata.get("annotations") or {}, key)


def _chosen(labels: Mapping[str, str], annotations: Mapping[str, str], key: str) -> str | None:
    return annotations.get(key, labels.get(key))


def processor_of(node: Manifest) -> str:
    """What the node says that its compute is: `cpu` where it says nothing."""
    said = _said(node, PROCESSOR)
    return CPU if said is None else said.lower()


def read_metrics(metrics: Metrics, directory: Directory, settings: Settings) -> Measured:
    """Ask all that these nodes need. Where the first question has no answer, the others are not asked: each may cost a time limit."""
    cores = metrics.node_cpu_cores()
    if cores.problem:
        return Measured(node_cpu_cores=cores)
    gpus = any(processor_of(node) == GPU for node in directory.nodes or ())
    watts = any(_said(node, IDLE_WATTS) is not None for node in directory.nodes or ())
    by_node = of_nodes(cores, directory)
    fresh, keep = settings.metrics_max_age_seconds, settings.link_max_age_seconds
    return Measured(
        node_cpu_cores=by_node,
        coverage=coverage(cores, by_node, directory),
        segment_cpu_cores=of_pods(metrics.segment_cpu_cores(), directory),
        node_memory_available_bytes=of_nodes(metrics.node_memory_available_bytes(), directory),
        links_mbps=of_links(metrics.links_mbps(), directory, Choice(max, _LEAST_MBPS, fresh, keep)),
        links_rtt_ms=of_links(metrics.links_rtt_ms(), directory, Choice(min, 0.0, fresh, keep)),
        node_gpu_used=of_nodes(metrics.node_gpu_used(), directory) if gpus else Samples(),
        node_gpu_used_by_others=of_nodes(metrics.node_gpu_used_by_others(), directory) if gpus else Samples(),
        node_watts=of_nodes(metrics.node_watts(), directory) if watts else Samples(),
        **(_waiting(metrics, directory) if settings.use_pressure else {}),
    )


def _waiting(metrics: Metrics, directory: Directory) -> dict[str, Samples]:
    """How long tasks wait for a processor. Where no kernel or exporter says it, nothing more is asked than that."""
    nodes = of_nodes(metrics.node_cpu_waiting(), directory)
    return {
        "node_cpu_waiting": nodes,
        "node_cpu_limited": of_nodes(metrics.node_cpu_limited(), directory) if nodes.by_name else Samples(),
        "segment_cpu_waiting": of_pods(metrics.segment_cpu_waiting(), directory),
        "segment_cpu_throttled": of_pods(metrics.segment_cpu_throttled(), directory),
    }


@dataclass
class Judge:
    """Judges samples and collects notes."""

    max_age_seconds: float
    notes: list[str] = field(default_factory=list)

    def value(self, samples: Samples, name: str, what: str, least: float = 0.0) -> float | None:
        """The value if it can be believed. Nothing said about a name is no note: that is how many clusters are."""
        sample: Sample | None = samples.by_name.get(name)
        if sample is None:
            return None
        if sample.value is None:
            self.notes.append(f"{what} of {name} is not a number")
        elif sample.age_seconds > self.max_age_seconds:
            self.notes.append(f"{what} of {name} is older than {self.max_age_seconds:.0f} s")
        elif sample.age_seconds < -self.max_age_seconds:
            self.notes.append(f"{what} of {name} is from the future: check the clocks")
        elif sample.value < least:
            self.notes.append(f"{what} of {name} is {sample.value:g}, less than {least:g}")
        else:
            return sample.value
        return None

    def share(self, samples: Samples, node: str, what: str) -> float | None:
        """A share that can be one: 0..1, a little more is measuring."""
        found = self.value(samples, node, what)
        if found is not None and found > _ABSURD:
            self.notes.append(f"{what} of {node} is {found:g}, more than 100 %")
            return None
        return None if found is None else min(1.0, found)

    def busy_watts(self, measured: Measured, node: str, idle_watts: float, used: float | None) -> float | None:
        """Power of the node when all of it is used: its power now, less what it takes idle, over the share that is used, as power between
        idle and busy goes with use (Fan, Weber, Barroso: Power provisioning for a warehouse-sized computer, ISCA 2007). None where too
        little is used to tell, or nothing is known."""
        watts = self.value(measured.node_watts, node, "power")
        if watts is None or used is None or used < _TELLING_USE or not 0 < idle_watts < watts:
            return None
        return idle_watts + (watts - idle_watts) / used

    def used(self, measured: Measured, node: str, cores: float) -> float | None:
        """Share of a node's cores that is used, by everybody; a little above 1 is measuring."""
        used = self.value(measured.node_cpu_cores, node, "CPU use")
        if used is None or cores <= 0:
            return None
        if used > _ABSURD * cores:
            self.notes.append(f"CPU use of {node} is {used:.1f} cores, it has {cores:.1f}")
            return None
        return used / cores

    def used_by_others(self, measured: Measured, node: str, cores: float, own_pods: Sequence[str]) -> float | None:
        """Share 0..1 of a node's cores that others use: all that is used, less what our own segments there use.

        While the use of one of our own segments there is not known, that of the others is not either.
        """
        share = self.used(measured, node, cores)
        if share is None:
            return None
        own = 0.0
        for pod in own_pods:
            taken = self.value(measured.segment_cpu_cores, pod, "CPU use")
            if taken is None:
                return None
            own += taken
        if own > _ABSURD * cores:
            self.notes.append(f"CPU use of our own segments on {node} is {own:.1f} cores, it has {cores:.1f}")
            return None
        return min(1.0, max(0.0, share - own / cores))


def positive_number(labels: Mapping[str, str], annotations: Mapping[str, str], key: str, notes: list[str], where: str) -> float | None:
    """The number of a label or annotation (an annotation wins); None where there is none, or where it is none: then with a note."""
    text = _chosen(labels, annotations, key)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e12:
        notes.append(f"{key} of {where} is {text!r}, which is not a number of at least 0: the default is taken")
        return None
    return number
