"""Whose figures are these? Labels of a series → the node or pod that it is about, and whether the scrape itself vouches for that.

Prometheus setups name nodes differently: by a label `node`, by the machine's own host name (`nodename`), by an address in `instance`; with
or without a domain, in other case. And any pod that is scraped may export any metric. What a scrape adds (`instance`, the address that was
asked) wins over what the pod exports.
"""

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from splitinference.controller.cluster_state.pods import is_ours, labels_of, node_of
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Manifest

PROBE = "probe"
NAME = "app.kubernetes.io/name"
_SAID = ("node", "kubernetes_node")
"""Labels with the node's name, which scrapes add."""
_HOST_NAMES = ("nodename", "kubernetes_io_hostname", "Hostname")
"""Labels with a host name."""
_HOST_NAME_LABEL = "kubernetes.io/hostname"
_ADDRESSES = ("InternalIP", "Hostname", "InternalDNS")


@dataclass(frozen=True)
class Speaker:
    """A pod of ours that exports links: where it is, and its addresses. `segment`: it is a segment, not a probe."""

    namespace: str
    name: str
    node: str
    addresses: frozenset[str]
    segment: bool


@dataclass(frozen=True)
class Directory:
    """Nodes by all their names, and our pods. `nodes` None: names are taken as they are. `past`: pods that are gone."""

    nodes: Sequence[Manifest] | None = None
    pods: Sequence[Manifest] = ()
    operator_namespace: str = ""
    past: Mapping[tuple[str, str], Speaker] = field(default_factory=dict)
    _levels: tuple[Mapping[str, set[str]], ...] = field(init=False, repr=False)
    _speakers: Mapping[tuple[str, str], Speaker] = field(init=False, repr=False)
    _by_address: Mapping[str, Sequence[Speaker]] = field(init=False, repr=False)
    _places: Mapping[str, str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        levels: list[dict[str, set[str]]] = [defaultdict(set) for _ in range(3)]
        for node in self.nodes or ():
            name = str(node["metadata"]["name"])
            addresses = {
                str(a.get("address", "")) for a in (node.get("status") or {}).get("addresses") or () if a.get("type") in _ADDRESSES
            }
            others = {other for other in (*addresses, labels_of(node).get(_HOST_NAME_LABEL, "")) if other}
            levels[0][_folded(name)].add(name)
            for other in others:
                levels[1][_folded(other)].add(name)
            for known in (name, *others):
                if not _is_address(known):
                    levels[2][_first(known)].add(name)
        object.__setattr__(self, "_levels", tuple(levels))
        speakers = {(found.namespace, found.name): found for found in speakers_of(self.pods, self.operator_namespace)}
        object.__setattr__(self, "_speakers", speakers)
        by_address: dict[str, list[Speaker]] = defaultdict(list)
        for speaker in speakers.values():
            for address in speaker.addresses:
                by_address[address].append(speaker)
        object.__setattr__(self, "_by_address", by_address)
        places = {f"{p['metadata'].get('namespace', '')}/{p['metadata']['name']}": node_of(p) for p in self.pods if is_ours(p, SEGMENT)}
        object.__setattr__(self, "_places", places)

    def named(self, text: str, *, whole: bool = False) -> str | None:
        """The node of this name, address or host name, in whatever case; also by the first part of a host name unless `whole`, if only one
        node's begins so. None where there is none, or where there are several."""
        for level in self._levels[:2]:
            if found := level.get(_folded(text)):
                return next(iter(found)) if len(found) == 1 else None
        if whole or _is_address(text):
            return None
        found = self._levels[2].get(_first(text), set())
        return next(iter(found)) if len(found) == 1 else None

    def node_of(self, labels: Mapping[str, str]) -> tuple[str | None, bool]:
        """The node that a series is about; and whether the scraped address is the node's own, as it is for kubelets and exporters in the
        host's network, and is not for what some pod exports."""
        if self.nodes is None:
            return next((labels[key] for key in (*_SAID, *_HOST_NAMES) if labels.get(key)), None) or host(labels.get("instance", "")), False
        asked = host(labels.get("instance", ""))
        scraped = self.named(asked, whole=True) if asked else None
        said = (self.named(labels[key]) for key in _SAID if labels.get(key))
        host_names = (self.named(labels[key]) for key in _HOST_NAMES if labels.get(key))
        for found in (*said, scraped, *host_names, self.named(asked) if asked else None):
            if found is not None:
                return found, found == scraped
        return None, False

    def pod_is_there(self, pod: str, labels: Mapping[str, str]) -> tuple[bool, bool]:
        """Whether a series about the segment's pod `namespace/name` comes from the node where that is, and whether the scrape vouches for
        it. A pod that is not known is about nobody."""
        if self.nodes is None:
            return True, False
        place = self._places.get(pod)
        node, vouched = self.node_of(labels)
        return place is not None and node in (None, place), vouched and node == place

    def place(self, pod: str) -> str | None:
        """The node of the segment's pod `namespace/name`; None where there is no such pod."""
        return self._places.get(pod)

    def is_gone(self, speaker: Speaker) -> bool:
        """Whether the pod was there once, and is not any more."""
        return (speaker.namespace, speaker.name) not in self._speakers

    def speaker(self, labels: Mapping[str, str]) -> Speaker | None:
        """The pod of ours that was scraped for this series; None where it is none, or cannot be told."""
        asked = host(labels.get("instance", ""))
        key = labels.get("namespace", ""), labels.get("pod", "")
        if _is_address(asked):
            there = self._by_address.get(_folded(asked), ())
            if len(there) == 1 and key in (("", ""), (there[0].namespace, there[0].name)):
                return there[0]
            gone = self.past.get(key)
            return gone if gone is not None and not there and _folded(asked) in gone.addresses else None
        # Some setups put a name in place of the address.
        found = self._speakers.get(key) or self.past.get(key)
        return found if found is not None and asked and (asked == found.name or self.named(asked) == found.node) else None


def speakers_of(pods: Iterable[Manifest], operator_namespace: str) -> Iterable[Speaker]:
    """Segments, which a SplitInference owns, and link probes, which are in the operator's namespace."""
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status") or {}
        labels, namespace = labels_of(pod), str(metadata.get("namespace", ""))
        segment = is_ours(pod, SEGMENT) and any(o.get("kind") == "SplitInference" for o in metadata.get("ownerReferences") or ())
        probe = labels.get(COMPONENT) == PROBE and labels.get(NAME) == "splitinference" and namespace == operator_namespace
        if segment or probe:
            several = (str(entry.get("ip", "")) for entry in status.get("podIPs") or ())
            addresses = frozenset(_folded(ip) for ip in (str(status.get("podIP") or ""), *several) if ip)
            yield Speaker(namespace, str(metadata["name"]), node_of(pod), addresses, segment)


def host(instance: str) -> str:
    """The host of `host:port`, `[address]:port`, or of what has no port."""
    if instance.startswith("["):
        return instance[1:].partition("]")[0]
    return instance.partition(":")[0] if instance.count(":") == 1 else instance


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _folded(text: str) -> str:
    """As names are compared: addresses in their usual form, all in small letters."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return text.lower().rstrip(".")


def _first(name: str) -> str:
    return _folded(name).partition(".")[0]
