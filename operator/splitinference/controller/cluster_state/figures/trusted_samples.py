"""Series as Prometheus has them → one sample for each node, pod or link, from those who may speak about it; and what was left out."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.ports import Sample, Samples, Unusable
from splitinference.core.values.value import Value

MOST_NAMES = 5
"""So many names stand in a message; of the others there is a number."""
PART, MEASURED_BY, BY_SEGMENT = "of", "si_by", "segment"


class Coverage(Value):
    """Of how many nodes there is a figure, which have none, and what the series that match no node call themselves."""

    nodes: int = 0
    known: int = 0
    without: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """In a sentence; empty where nothing is odd."""
        if not self.nodes or (self.known == self.nodes and not self.unmatched):
            return ""
        said = f"CPU use is known for {self.known} of {self.nodes} nodes"
        said += f", not of {names(self.without)}" if self.without else ""
        return said + (f"; series for {names(self.unmatched)} match no node" if self.unmatched else "")


def names(found: Sequence[str]) -> str:
    """Some of the names, and how many more there are."""
    listed = ", ".join(name[:100] for name in sorted(found)[:MOST_NAMES])
    return listed + (f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else "")


def coverage(samples: Samples, by_node: Samples, directory: Directory) -> Coverage:
    """What of the answer is about nodes that there are."""
    there = {str(node["metadata"]["name"]) for node in directory.nodes or ()}
    lost = {_called(s.labels, name) for name, s in samples.by_name.items() if _node(name, s, directory)[0] is None}
    known = there & set(by_node.by_name)
    return Coverage(nodes=len(there), known=len(known), without=tuple(sorted(there - known)), unmatched=tuple(sorted(lost)))


def _called(labels: Mapping[str, str], name: str) -> str:
    return next((labels[key] for key in ("node", "kubernetes_node", "nodename", "Hostname", "instance") if labels.get(key)), name)


def _node(name: str, sample: Sample, directory: Directory) -> tuple[str | None, bool]:
    """The node that the sample is about, and whether the scrape vouches for that. A query of the user's names it itself."""
    if sample.labels:
        return directory.node_of(sample.labels)
    return (name if directory.nodes is None else directory.named(name)), False


def of_nodes(samples: Samples, directory: Directory) -> Samples:
    """By the names of nodes. Parts of one figure (`of`) are added up."""
    found: dict[str, dict[str, list[tuple[bool, Sample]]]] = defaultdict(lambda: defaultdict(list))
    for name, sample in samples.by_name.items():
        node, vouched = _node(name, sample, directory)
        if node is not None:
            found[node][sample.labels.get(PART, "")].append((vouched, sample))
    notes: list[str] = []
    by_name = {}
    for node, parts in sorted(found.items()):
        chosen = [_one(node, several, notes) for several in parts.values()]
        if whole := _sum(chosen):
            by_name[node] = whole
    for series in samples.unusable:
        if (about := directory.node_of(series.labels)[0]) is not None:
            notes.append(f"node {about}: {series.why}")
    return _with(samples, by_name, notes)


def _with(samples: Samples, by_name: Mapping[str, Sample], notes: Sequence[str]) -> Samples:
    """The answer by the names of who is there, and with notes about them alone."""
    return samples.model_copy(update={"by_name": by_name, "unusable": (), "notes": tuple(dict.fromkeys([*samples.notes, *notes]))})


def of_pods(samples: Samples, directory: Directory) -> Samples:
    """By `namespace/pod`, of segments."""
    found: dict[str, list[tuple[bool, Sample]]] = defaultdict(list)
    for name, sample in samples.by_name.items():
        pod = f"{sample.labels['namespace']}/{sample.labels['pod']}" if "pod" in sample.labels else name
        there, vouched = directory.pod_is_there(pod, sample.labels) if sample.labels else (True, False)
        if there:
            found[pod].append((vouched, sample))
    notes: list[str] = []
    by_name = {pod: one for pod, several in sorted(found.items()) if (one := _one(pod, several, notes)) is not None}
    for series in samples.unusable:
        pod = "/".join(series.labels.get(label, "") for label in ("namespace", "pod"))
        if directory.pod_is_there(pod, series.labels)[0]:
            where = directory.place(pod)
            notes.append(f"pod {pod}{f' on node {where}' if where else ''}: {series.why}")
    return _with(samples, by_name, notes)


def _one(name: str, several: Sequence[tuple[bool, Sample]], notes: list[str]) -> Sample | None:
    """The sample that counts: where the scrape vouches for some, one of those; one that was scraped twice counts once."""
    best = [sample for vouched, sample in several if vouched] or [sample for _, sample in several]
    if len({sample.labels.get("instance", str(number)) for number, sample in enumerate(best)}) > 1:
        notes.append(f"{name}: {len(best)} series where one was expected, so none is used")
        return None
    return min(best, key=lambda sample: abs(sample.age_seconds))


def _sum(parts: Iterable[Sample | None]) -> Sample | None:
    given = [part for part in parts if part is not None]
    if len(given) < 2:
        return given[0] if given else None
    values = [part.value for part in given if part.value is not None]
    value = math.fsum(values) if len(values) == len(given) else None
    return Sample(value=value, age_seconds=max(part.age_seconds for part in given))


@dataclass(frozen=True)
class Choice:
    """Of several values for a link the `best` of those that are `fresh` (seconds), and none that is older than `keep` or below `least`."""

    best: Callable[[Iterable[float]], float]
    least: float
    fresh: float
    keep: float


def of_links(samples: Samples, directory: Directory, choice: Choice) -> Samples:
    """By `source/target`: of the fresh values the best one, else the newest, as ADR 12 has it. A pod speaks for links from its own node
    only; what others say of links is left out, and counted while it is fresh."""
    found: dict[str, list[Sample]] = defaultdict(list)
    strangers: dict[str, int] = defaultdict(int)
    for name, sample in samples.by_name.items():
        labels = sample.labels
        if not labels:
            found[name].append(sample)
            continue
        if sample.value is None or not choice.least <= sample.value < math.inf or sample.age_seconds > choice.keep:
            continue
        if _may_say(labels, directory):
            found[f"{labels['source']}/{labels['target']}"].append(sample)
        elif sample.age_seconds <= choice.fresh:
            strangers["/".join(filter(None, (labels.get("namespace"), labels.get("pod")))) or labels.get("instance", "nobody")] += 1
    by_name = {name: _best(several, choice) for name, several in sorted(found.items())}
    notes = [note for series in samples.unusable if (note := _about_link(series, directory))]
    if strangers:
        left, who = sum(strangers.values()), names(list(strangers))
        notes.append(f"{left} series about links were ignored, because they come from none of our segments or probes: {who}")
    return _with(samples, by_name, notes)


def _about_link(series: Unusable, directory: Directory) -> str:
    """What is odd about a link, in words; empty where strangers say it, or a pod that is gone: a link that it used is not judged."""
    labels = series.labels
    speaker = directory.speaker(labels) if directory.nodes is not None else None
    if directory.nodes is not None and (speaker is None or directory.is_gone(speaker) or not _may_say(labels, directory)):
        return ""
    by = f", measured by pod {speaker.namespace}/{speaker.name}" if speaker else ""
    return f"link from node {labels.get('source', '')} to node {labels.get('target', '')}{by}: {series.why}"


def _may_say(labels: Mapping[str, str], directory: Directory) -> bool:
    if directory.nodes is None:
        return True
    speaker = directory.speaker(labels)
    if speaker is None or speaker.segment != (labels.get(MEASURED_BY) == BY_SEGMENT):
        return False
    return labels.get("source") == speaker.node and labels.get("segment", speaker.name) == speaker.name


def _best(several: Sequence[Sample], choice: Choice) -> Sample:
    newest = min(sample.age_seconds for sample in several)
    counting = [s for s in several if s.age_seconds <= choice.fresh] or [s for s in several if s.age_seconds == newest]
    values = [sample.value for sample in counting if sample.value is not None]
    return Sample(value=choice.best(values) if values else None, age_seconds=newest)
