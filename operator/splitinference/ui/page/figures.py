"""Nodes and links as the page lists them: what others use, what we hold, and what is free."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured
from splitinference.controller.cluster_state.node_capacity import Ground
from splitinference.controller.cluster_state.pods import is_ours, requested_bytes
from splitinference.controller.cluster_state.snapshot import Picture
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.core.values.cluster import Network, Node
from splitinference.settings import Settings
from splitinference.ui.page.document import Item, rounded, shortened
from splitinference.view import NodeView

MIB = 2.0**20
MOST_LINKS = 2000
"""Links that a document lists: a thousand nodes have a million. Those between nodes that serve come first."""
_MBPS = 8 / 1e6


def node_items(views: Iterable[NodeView], picture: Picture, settings: Settings) -> dict[str, Item]:
    """Nodes by name: the shared view of each, and figures of the operator's own reading."""
    judge = Judge(max_age_seconds=settings.metrics_max_age_seconds)
    standing = picture.standing
    found: dict[str, Item] = {}
    for view in views:
        index = standing.index.get(view.name)
        if index is None:
            continue
        ground, node = standing.grounds[index], picture.snapshot.nodes[index]
        others, ours = _use(ground, picture.measured, judge)
        memory = _memory(ground, node)
        item = {
            **view.model_dump(mode="json", exclude={"labels", "used_by_others"}),
            "usedByOthers": rounded(others, 2),
            "usedByUs": rounded(ours, 2),
            "waiting": rounded(node.waiting, 2),
            "excluded": node.excluded,
            "pressured": standing.pressured.get(view.name, ""),
            "figures": node.figures,
            **memory,
        }
        found[view.name] = shortened(item)
    return found


def _use(ground: Ground, measured: Measured, judge: Judge) -> tuple[float | None, float | None]:
    """Shares of the node's compute that others use, and that our segments of all resources use."""
    name = ground.node.name
    if ground.gpu:
        everybody, others = (judge.share(s, name, "GPU use") for s in (measured.node_gpu_used, measured.node_gpu_used_by_others))
    else:
        everybody = judge.used(measured, name, ground.cores)
        ours = [f"{pod['metadata'].get('namespace')}/{pod['metadata']['name']}" for pod in ground.pods if is_ours(pod, SEGMENT)]
        others = judge.used_by_others(measured, name, ground.cores, ours)
    if everybody is None or others is None:
        return others, None
    return others, max(0.0, min(1.0, everybody) - others)


def _memory(ground: Ground, node: Node) -> dict[str, float]:
    """MiB: what pods may have in all, what our segments request, what others hold, and what is free."""
    whole = float(quantity(((ground.read.get("status") or {}).get("allocatable") or {}).get("memory", 0)) or 0)
    ours = sum(requested_bytes(pod) for pod in ground.pods if is_ours(pod, SEGMENT))
    free = float(node.memory_free_bytes)
    return {
        "memoryMib": round(whole / MIB),
        "oursMib": round(ours / MIB),
        "freeMib": round(free / MIB),
        "othersMib": round(max(0.0, whole - ours - free) / MIB),
    }


def link_items(network: Network, serving: Sequence[str] = ()) -> tuple[dict[str, Item], int]:
    """Links that are known to differ from the usual one, by source→target, at most `MOST_LINKS`; and how many there are in all."""
    wanted, listed = set(serving), network.links
    first = [link for link in listed if link.source in wanted and link.target in wanted]
    rest = [link for link in listed if not (link.source in wanted and link.target in wanted)]
    found: dict[str, Item] = {
        f"{link.source}→{link.target}": {
            "source": link.source,
            "target": link.target,
            "mbps": rounded(link.quality.bandwidth_bytes_per_s * _MBPS, 1),
            "rttMs": rounded(link.quality.rtt_ms, 2),
        }
        for link in [*first, *rest][:MOST_LINKS]
    }
    return found, len(listed)


def hops(resources: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of nodes that hold segments of these items, each once."""
    names = (s["node"] for item in resources if item["plan"] for pipeline in item["plan"]["pipelines"] for s in pipeline["segments"])
    return list(dict.fromkeys(names))
