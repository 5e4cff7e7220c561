"""Links between nodes: measured ones first, then the particular ones of an annotation, then the nodes' own figures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from splitinference.controller.pods import labels_of
from splitinference.controller.ports import Manifest
from splitinference.controller.readings import PREFIX, Judge, Measured, positive_number
from splitinference.core.cluster import Link, LinkQuality, Network
from splitinference.settings import Settings

_MBPS = 1e6 / 8
_MOST_LINKS = 200_000
Quality = tuple[float | None, float | None]
"""Mbit/s and ms; None where it is not known."""


def read_network(nodes: Sequence[Manifest], measured: Measured, ingress: str, settings: Settings, judge: Judge) -> Network:
    """All links that are not as the settings have it; `ingress` is the gateway's node. Of the two ends' own figures the worse counts."""
    default = LinkQuality(bandwidth_bytes_per_s=settings.link_mbps * _MBPS, rtt_ms=settings.link_rtt_ms)
    own: dict[str, Quality] = {}
    special: dict[tuple[str, str], Quality] = {}
    for node in nodes:
        name, labels, annotations = str(node["metadata"]["name"]), labels_of(node), node["metadata"].get("annotations") or {}
        mbps = positive_number(labels, annotations, PREFIX + "link-mbps", judge.notes, f"node {name}")
        own[name] = (mbps or None, positive_number(labels, annotations, PREFIX + "link-rtt-ms", judge.notes, f"node {name}"))
        for target, quality in _links_of(name, annotations, judge).items():
            special[name, target] = special[target, name] = quality
    names = list(own)
    pairs = dict.fromkeys(pair for pair in special if set(pair) <= own.keys() and pair[0] != pair[1])
    labelled = [name for name in names if own[name] != (None, None)]
    if len(labelled) * len(names) <= _MOST_LINKS:
        pairs |= dict.fromkeys((a, b) for one in labelled for two in names if one != two for a, b in ((one, two), (two, one)))
    else:
        judge.notes.append(f"{len(labelled)} nodes have links of their own: too many, only those of the annotation {PREFIX}links are taken")
    seen = {*measured.links_mbps.by_name, *measured.links_rtt_ms.by_name}
    pairs |= {(a, b): None for text in sorted(seen) for a, _, b in [text.partition("/")] if a in own and b in own and a != b}
    links = []
    for a, b in pairs:
        rates = [rate for rate in (own[a][0], own[b][0]) if rate]
        rtts = [rtt for rtt in (own[a][1], own[b][1]) if rtt is not None]
        mbps, rtt = min(rates, default=settings.link_mbps), max(rtts, default=settings.link_rtt_ms)
        particular = special.get((a, b), (None, None))
        measured_mbps = judge.value(measured.links_mbps, f"{a}/{b}", "bandwidth", least=1e-3)
        measured_rtt = judge.value(measured.links_rtt_ms, f"{a}/{b}", "round trip")
        mbps = next(value for value in (measured_mbps, particular[0], mbps) if value is not None)
        rtt = next(value for value in (measured_rtt, particular[1], rtt) if value is not None)
        links.append(Link(source=a, target=b, quality=LinkQuality(bandwidth_bytes_per_s=mbps * _MBPS, rtt_ms=rtt)))
    return Network(default=default, links=tuple(links), ingress=ingress)


def _links_of(node: str, annotations: Mapping[str, str], judge: Judge) -> Mapping[str, Quality]:
    text = annotations.get(PREFIX + "links")
    if text is None:
        return {}
    try:
        given: dict[str, dict[str, Any]] = json.loads(text)
        found = {str(target): (_number(q.get("mbps"), 1e-3), _number(q.get("rttMs"), 0.0)) for target, q in given.items()}
    except (ValueError, AttributeError, TypeError):
        judge.notes.append(f'{PREFIX}links of node {node} is not of the form {{"node-b": {{"mbps": 50, "rttMs": 10}}}}: it is left out')
        return {}
    return found


def _number(value: object, least: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e12:
        raise ValueError(f"{value!r} is no number of at least {least:g}")
    return float(value)
