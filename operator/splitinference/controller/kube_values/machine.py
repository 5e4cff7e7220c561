"""Which machines may be used: their operating system and architecture, their taints, and whether they are about to leave the cluster."""

from collections.abc import Mapping
from typing import Any

from splitinference.core.values.cluster import Taint
from splitinference.settings import Settings

OS, ARCH, LINUX = "kubernetes.io/os", "kubernetes.io/arch", "linux"
CORDON = "node.kubernetes.io/unschedulable"
_SAID_ELSEWHERE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable", "node.kubernetes.io/memory-pressure")


def foreign(labels: Mapping[str, str], settings: Settings) -> str:
    """Why our images do not run on a node with these labels; empty where they do, or where its kubelet has not said what it is."""
    system = labels.get(OS, LINUX)
    if system != LINUX:
        return f"its operating system is {system}, the images are for {LINUX}"
    architecture, known = labels.get(ARCH, ""), settings.architectures
    if architecture and known and architecture not in known:
        return f"its architecture is {architecture}, the images are for {', '.join(known)}"
    return ""


def leaving(node: Mapping[str, Any], settings: Settings) -> str:
    """The notice by which this node is about to leave, in words; empty where it stays. Tolerations do not count: a pod that tolerates the
    notice ends with its node all the same."""
    spec = node.get("spec") or {}
    keys = [str(taint.get("key", "")) for taint in spec.get("taints") or []]
    keys += [CORDON] if spec.get("unschedulable") else []
    return next((f"it is about to leave, by its taint {key}" for key in keys if key in settings.leaving_taint_keys), "")


def taints_of(node: Mapping[str, Any]) -> tuple[Taint, ...]:
    """Its taints, and that it was cordoned. Not those of readiness and of memory, which have checks of their own that say more."""
    spec = node.get("spec") or {}
    found = [
        Taint(key=t.get("key", ""), value=t.get("value") or "", effect=t.get("effect", "NoSchedule")) for t in spec.get("taints") or []
    ]
    if spec.get("unschedulable") and not any(t.key == CORDON for t in found):
        found.append(Taint(key=CORDON))
    return tuple(t for t in found if t.key not in _SAID_ELSEWHERE)
