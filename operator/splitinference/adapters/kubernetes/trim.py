"""What of a watched object is worth its memory: a thousand nodes and tens of thousands of other tenants' pods are kept as long as the
operator lives.

What many objects have alike (conditions, taints, what containers request) is kept once, and so is every word: JSON brings each anew.
What is kept must not be changed by who reads it.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from sys import intern
from typing import Any

from splitinference.controller.cluster_state.figures.node_metrics import PREFIX
from splitinference.controller.cluster_state.figures.series_owners import NAME, PROBE
from splitinference.controller.cluster_state.pods import actual_requests
from splitinference.controller.manifests.pod_parts import COMPONENT, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest

Pairs = tuple[tuple[str, str], ...]


def whole(thing: Manifest) -> dict[str, Any]:
    """All but who wrote which field."""
    metadata = {name: value for name, value in thing["metadata"].items() if name != "managedFields"}
    return {**thing, "metadata": metadata}


def node_kept(node: Manifest) -> dict[str, Any]:
    """Of a node what planning goes by: labels, our annotations, taints, what it has and is, its addresses, and its conditions without their
    heartbeats."""
    metadata, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    about: dict[str, Any] = {"name": intern(str(metadata["name"])), "labels": _words(metadata.get("labels"))}
    if "uid" in metadata:
        about["uid"] = str(metadata["uid"])
    if annotations := {key: value for key, value in (metadata.get("annotations") or {}).items() if key.startswith(PREFIX)}:
        about["annotations"] = annotations
    if "deletionTimestamp" in metadata:
        about["deletionTimestamp"] = metadata["deletionTimestamp"]
    kept: dict[str, Any] = {}
    if spec.get("taints"):
        kept["taints"] = _alike(tuple(_pairs(taint, ("key", "value", "effect")) for taint in spec["taints"]))
    if spec.get("unschedulable"):
        kept["unschedulable"] = True
    has: dict[str, Any] = {
        "allocatable": _same(_pairs(status.get("allocatable") or {})),
        "conditions": _alike(tuple(_pairs(condition, ("type", "status")) for condition in status.get("conditions") or ())),
    }
    # Of devices only: of memory and CPU what is allocatable counts.
    if capacity := {name: amount for name, amount in (status.get("capacity") or {}).items() if "/" in name}:
        has["capacity"] = _same(_pairs(capacity))
    if addresses := status.get("addresses"):
        has["addresses"] = [_words(dict(_pairs(address, ("type", "address")))) for address in addresses]
    if info := status.get("nodeInfo"):
        has["nodeInfo"] = _words(dict(_pairs(info, ("machineID", "systemUUID", "kernelVersion", "architecture"))))
    return {"metadata": about, "spec": kept, "status": has}


def pod_kept(pod: Manifest) -> dict[str, Any]:
    """Our pods whole; of others where they are and what they request, and of link probes also their addresses."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    if (metadata.get("labels") or {}).get(MANAGED_BY) == OURS:
        return whole(pod)
    about: dict[str, Any] = {name: intern(str(metadata[name])) for name in ("namespace", "name") if name in metadata}
    kept: dict[str, Any] = {"nodeName": intern(str(spec["nodeName"]))} if spec.get("nodeName") else {}
    if spec.get("overhead"):
        kept["overhead"] = _same(_pairs(spec["overhead"]))
    for containers in ("containers", "initContainers"):
        if spec.get(containers):
            kept[containers] = _containers(tuple(_container(pod, container) for container in spec[containers]))
    if requests := (spec.get("resources") or {}).get("requests"):
        kept["resources"] = {"requests": _same(_pairs(requests))}
    has: Mapping[str, Any] = _same(_pairs(status, ("phase",)))
    labels = metadata.get("labels") or {}
    if labels.get(COMPONENT) == PROBE and labels.get(NAME) == OURS:  # link probes, which the chart makes
        about["labels"] = _words({NAME: OURS, COMPONENT: PROBE})
        has = {**has, **{name: status[name] for name in ("podIP", "podIPs") if status.get(name)}}
    return {"metadata": about, "spec": kept, "status": has}


def _words(words: Mapping[str, Any] | None) -> dict[str, str]:
    return {intern(str(key)): intern(str(value)) for key, value in (words or {}).items()}


def _pairs(of: Mapping[str, Any], names: Iterable[str] | None = None) -> Pairs:
    return tuple((name, str(of[name])) for name in (of if names is None else names) if of.get(name) is not None)


@lru_cache(maxsize=4096)
def _same(pairs: Pairs) -> dict[str, str]:
    return _words(dict(pairs))


@lru_cache(maxsize=4096)
def _alike(several: tuple[Pairs, ...]) -> list[dict[str, str]]:
    return [_same(pairs) for pairs in several]


def _container(pod: Manifest, container: Mapping[str, Any]) -> tuple[Pairs, str]:
    """What it requests, or holds, where that is more, and whether it runs as long as the pod."""
    return _pairs(actual_requests(pod, container)), str(container.get("restartPolicy") or "")


@lru_cache(maxsize=4096)
def _containers(several: tuple[tuple[Pairs, str], ...]) -> list[dict[str, Any]]:
    return [{"resources": {"requests": _same(requests)}} | ({"restartPolicy": policy} if policy else {}) for requests, policy in several]
