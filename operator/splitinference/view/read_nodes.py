"""Nodes as Kubernetes JSON → `NodeView`, with what our pods hold on them."""

from collections.abc import Iterable, Mapping
from typing import Any

from splitinference.controller.kube_values.quantity import quantity
from splitinference.view.json_values import items, mapping, text
from splitinference.view.model import HeldView, NodeView
from splitinference.view.read import COMPONENT, INSTANCE, LAYERS, MIB

Json = Mapping[str, Any]
MANAGED_BY = "app.kubernetes.io/managed-by"
_OVER = ("Succeeded", "Failed")
_COMPONENTS = ("segment", "verifier", "gateway", "prefetch")


def read_nodes(nodes: Iterable[Json], pods: Iterable[Json] = (), used: Mapping[str, float] | None = None) -> tuple[NodeView, ...]:
    """All nodes by name. `pods`: of which ours count; `used`: share of each node's processors that others use, from 0 to 1, where known."""
    held: dict[str, list[HeldView]] = {}
    for pod in pods:
        if (found := _held(pod)) is not None:
            held.setdefault(text(mapping(pod.get("spec")).get("nodeName")), []).append(found)
    seen = (_node(node, tuple(held.get(_name(node), ())), (used or {}).get(_name(node))) for node in nodes)
    return tuple(sorted(seen, key=lambda node: node.name))


def _name(node: Json) -> str:
    return text(mapping(node.get("metadata")).get("name"))


def _node(node: Json, held: tuple[HeldView, ...], used: float | None) -> NodeView:
    labels = {str(key): text(value) for key, value in mapping(mapping(node.get("metadata")).get("labels")).items()}
    spec, status = mapping(node.get("spec")), mapping(node.get("status"))
    room = mapping(status.get("allocatable")) or mapping(status.get("capacity"))
    conditions = {text(found.get("type")): text(found.get("status")) for found in items(status.get("conditions"))}
    memory = _amount(room.get("memory"))
    return NodeView(
        name=_name(node),
        ready=conditions.get("Ready") == "True",
        cordoned=spec.get("unschedulable") is True,
        zone=labels.get("topology.kubernetes.io/zone", ""),
        architecture=labels.get("kubernetes.io/arch", ""),
        cores=_amount(room.get("cpu")),
        memory_mib=None if memory is None else memory / MIB,
        accelerators={str(key): int(_amount(value) or 0) for key, value in room.items() if str(key).endswith("/gpu")},
        taints=tuple(f"{text(t.get('key'))}:{text(t.get('effect'))}" for t in items(spec.get("taints"))),
        labels=labels,
        used_by_others=used,
        held=held,
    )


def _held(pod: Json) -> HeldView | None:
    """What this pod holds, if it is one of ours that still runs on a node."""
    about, spec = mapping(pod.get("metadata")), mapping(pod.get("spec"))
    labels = mapping(about.get("labels"))
    component = text(labels.get(COMPONENT))
    if labels.get(MANAGED_BY) != "splitinference" or component not in _COMPONENTS or not spec.get("nodeName"):
        return None
    if mapping(pod.get("status")).get("phase") in _OVER:
        return None
    asked = [_amount(mapping(mapping(c.get("resources")).get("requests")).get("memory")) or 0.0 for c in items(spec.get("containers"))]
    return HeldView(
        namespace=text(about.get("namespace")),
        resource=text(labels.get(INSTANCE)),
        segment=text(about.get("name")),
        component=component,
        layers=text(labels.get(LAYERS)),
        memory_mib=sum(asked) / MIB,
    )


def _amount(value: object) -> float | None:
    found = quantity(value) if value is not None else None
    return None if found is None else float(found)
