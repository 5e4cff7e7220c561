"""Links between nodes: measured ones first, then the particular ones of an annotation, then the nodes' own figures."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from splitinference.controller.cluster_state.figures.node_metrics import PREFIX, Judge, Measured, positive_number
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.ports import Manifest
from splitinference.core.values.cluster import Link, LinkQuality, Network
from splitinference.settings import Settings

_MBPS = 1e6 / 8
_MOST_LINKS = 200_000
Quality = tuple[float | None, float | None]
"""Mbit/s and ms; None where it is not known."""


def read_network(nodes: Sequence[Manifest], measured: Measured, ingress: str, settings: Settings, judge: Judge) -> Network:
    """The network; `ingress` is the gateway's node. Of the two ends' own figures the worse counts.

    What most nodes have is the default, so only links that differ from it are listed.
    """
    lasting = Judge(max_age_seconds=settings.link_max_age_seconds, notes=judge.notes)
    own: dict[str, tuple[float, float]] = {}
    special: dict[tuple[str, str], Quality] = {}
    for node in nodes:
        name, labels, annotations = str(node["metadata"]["name"]), labels_of(node), node["metadata"].get("annotations") or {}
        mbps = positive_number(labels, annotations, PREFIX + "link-mbps", judge.notes, f"node {name}")
        rtt = positive_number(labels, annotations, PREFIX + "link-rtt-ms", judge.notes, f"node {name}")
        own[name] = (mbps or settings.link_mbps, settings.link_rtt_ms if rtt is None else rtt)
        for target, quality in _links_of(name, annotations, judge).items():
            special[name, target] = special[target, name] = quality
    usual = max(Counter(own.values()).items(), key=lambda item: item[1], default=((settings.link_mbps, settings.link_rtt_ms), 0))[0]
    names = {*measured.links_mbps.by_name, *measured.links_rtt_ms.by_name, *map(_reverse, measured.links_rtt_ms.by_name)}
    measured_pairs = [tuple(text.split("/", 1)) for text in sorted(names)]
    particular = dict.fromkeys((a, b) for a, b in [*special, *measured_pairs] if a in own and b in own and a != b)
    odd = tuple(name for name in own if own[name] != usual)
    if len(odd) * len(own) > _MOST_LINKS:
        judge.notes.append(
            f"{len(odd)} nodes have links unlike the others', which is too many: only links from the annotation {PREFIX}links are used"
        )
        odd = ()
    exact = []
    for a, b in particular:
        given = special.get((a, b), (None, None))
        mbps = lasting.value(measured.links_mbps, f"{a}/{b}", "bandwidth", least=1e-3)
        rtt = lasting.value(measured.links_rtt_ms, f"{a}/{b}", "round trip")
        if rtt is None:  # a round trip is one of both directions
            rtt = lasting.value(measured.links_rtt_ms, f"{b}/{a}", "round trip")
        worse = (min(own[a][0], own[b][0]), max(own[a][1], own[b][1]))
        noted = (None if mbps is None else _coarse(mbps, math.floor), None if rtt is None else _coarse(rtt, math.ceil, least_step=0.1))
        first, second = (next(v for v in found if v is not None) for found in zip(noted, given, worse, strict=True))
        exact.append((a, b, first, second))
    default, links = _laid_out(tuple(own.items()), odd, tuple(exact), usual)
    return Network(default=default, links=links, ingress=ingress)


@lru_cache(maxsize=8)
def _laid_out(
    own: tuple[tuple[str, tuple[float, float]], ...],
    odd: tuple[str, ...],
    exact: tuple[tuple[str, str, float, float], ...],
    usual: tuple[float, float],
) -> tuple[LinkQuality, tuple[Link, ...]]:
    """The default and the links that differ. Remembered, since nodes change less often than there are passes over them."""
    figures = dict(own)
    links = {
        (a, b): (min(figures[a][0], figures[b][0]), max(figures[a][1], figures[b][1])) for one in odd for a, b in _both_ways(one, figures)
    }
    links |= {(a, b): (mbps, rtt) for a, b, mbps, rtt in exact}
    qualities = {pair: LinkQuality(bandwidth_bytes_per_s=pair[0] * _MBPS, rtt_ms=pair[1]) for pair in {usual, *links.values()}}
    # All values were judged before; there may be many links, and to validate each again would take most of the time.
    listed = tuple(Link.model_construct(source=a, target=b, quality=qualities[found]) for (a, b), found in links.items())
    return qualities[usual], listed


def _coarse(value: float, towards: Callable[[float], int], least_step: float = 0.0) -> float:
    """Two digits of a measured value: what differs in the third is noise, and would make links that are alike look different each time."""
    if value <= 0:
        return 0.0
    step = max(least_step, 10.0 ** (math.floor(math.log10(value)) - 1))
    return round(towards(round(value / step, 6)) * step, 6)


def _reverse(name: str) -> str:
    source, _, target = name.partition("/")
    return f"{target}/{source}"


def _both_ways(one: str, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    for two in names:
        if two != one:
            yield one, two
            yield two, one


def _links_of(node: str, annotations: Mapping[str, str], judge: Judge) -> Mapping[str, Quality]:
    text = annotations.get(PREFIX + "links")
    if text is None:
        return {}
    try:
        given: dict[str, dict[str, Any]] = json.loads(text)
        found = {str(target): (_number(q.get("mbps"), 1e-3), _number(q.get("rttMs"), 0.0)) for target, q in given.items()}
    except (ValueError, AttributeError, TypeError):
        judge.notes.append(f'{PREFIX}links of node {node} is not of the form {{"node-b": {{"mbps": 50, "rttMs": 10}}}}: it is ignored')
        return {}
    return found


def _number(value: object, least: float) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 1e12:
        raise ValueError(f"{value!r} is not a number of at least {least:g}")
    return float(value)
