"""Pods, route and gateway → what the walk sees, and which segments fail for reasons that will not go away by themselves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from splitinference.controller.cluster_state.node_devices import device_of
from splitinference.controller.cluster_state.pods import is_over, labels_of, node_of, requested_bytes, requested_millicores
from splitinference.controller.kube_values.device_images import resource_of
from splitinference.controller.kube_values.start_failures import USUAL, Hindrance, Limits, hindrance, is_ready, own_status
from splitinference.controller.manifests.pod_parts import COMPONENT, LAYERS_LABEL, MODEL_LABEL
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Manifest
from splitinference.core.transition.state import ObservedSegment, Phase


@dataclass(frozen=True)
class Known:
    """What is known beside the pods.

    `usable`: nodes that are ready; `owner`: the resource's uid (pods of one that had its name before are leaving); `wanted`: names in the
    plan; `proven`, `broken` and `lost`: proof keys (broken: with what is wrong; lost: out of reach besides); `held_back`: names whose
    failure is not answered yet, and why; `limits`: how long a start may be hindered; `warnings`: the newest event about a pod, by uid.
    """

    now: datetime
    usable: frozenset[str]
    owner: str = ""
    wanted: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset()
    broken: Mapping[str, str] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    held_back: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = USUAL
    warnings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentPod:
    """One segment's pod. `proof_key` changes with every start of its container, so a proof is of the process that runs; `ready` is the
    kubelet's opinion; `hindered` says what keeps it from starting, `lasting` what is wrong on this node that waiting will not mend, `lost`
    how its node is out of reach."""

    segment: ObservedSegment
    model: str
    ip: str
    proof_key: str
    ready: bool
    hindered: Hindrance | None = None
    lasting: str = ""
    lost: str = ""

    @property
    def name(self) -> str:
        """The segment's name."""
        return self.segment.name


def read_segments(pods: Sequence[Manifest], known: Known) -> tuple[SegmentPod, ...]:
    """The segments that these pods are. One on a lost node counts as failed unless the plan wants it: then it is hoped for."""
    segments = (pod for pod in pods if labels_of(pod).get(COMPONENT) == SEGMENT)
    return tuple(found for pod in segments if (found := _segment(pod, known)) is not None)


def _segment(pod: Manifest, known: Known) -> SegmentPod | None:
    name, found = str(pod["metadata"]["name"]), labels_of(pod)
    start, _, end = found.get(LAYERS_LABEL, "").partition("-")
    if not (start.isdigit() and end.isdigit()) or int(end) <= int(start):
        return None
    status, node = pod.get("status") or {}, node_of(pod)
    key = proof_key(pod)
    hindered = hindrance(pod, SEGMENT, known.now, known.limits, known.warnings.get(str(pod["metadata"].get("uid", "")), ""))
    phase, why = _phase(pod, node, key, known, hindered)
    segment = ObservedSegment(
        name=name,
        start=int(start),
        end=int(end),
        node=node,
        memory_bytes=0 if is_over(pod) else requested_bytes(pod),
        millicores=0 if is_over(pod) else requested_millicores(pod),
        family=family_of(pod),
        processor=device_of(pod),
        device="" if is_over(pod) else resource_of(device_of(pod)),
        phase=phase,
        why=why,
    )
    model = f"seg-{found.get(MODEL_LABEL, '')}-{start}-{end}"
    hindered = hindered if phase in (Phase.STARTING, Phase.FAILED) and not is_over(pod) else None
    return SegmentPod(
        segment=segment,
        model=model,
        ip=str(status.get("podIP") or ""),
        proof_key=key,
        ready=is_ready(pod, SEGMENT),
        hindered=hindered,
        lasting=hindered.text if hindered is not None and hindered.lasts(known.now) else "",
        lost=known.broken.get(key, "") if key in known.lost else "",
    )


def family_of(pod: Manifest) -> str:
    """Model and dtype of a segment's pod: what segments must share to be in one route."""
    dtype = next(
        (e.get("value", "") for c in pod["spec"].get("containers") or [] for e in c.get("env") or [] if e["name"] == "SI_DTYPE"), ""
    )
    return f"{labels_of(pod).get(MODEL_LABEL, '')}/{dtype}"


def proof_key(pod: Manifest) -> str:
    """Names one run of the segment's container."""
    return f"{pod['metadata'].get('uid', '')}/{_container(pod).get('restartCount', 0)}"


def _container(pod: Manifest) -> Mapping[str, Any]:
    return own_status(pod, SEGMENT)


def _phase(pod: Manifest, node: str, key: str, known: Known, hindered: Hindrance | None) -> tuple[Phase, str]:
    name = pod["metadata"]["name"]
    owners = {str(owner.get("uid", "")) for owner in pod["metadata"].get("ownerReferences") or []}
    if pod["metadata"].get("deletionTimestamp") or (known.owner and owners and known.owner not in owners):
        return Phase.LEAVING, ""
    why = _ended(pod) if is_over(pod) else known.broken.get(key, "")
    if why:
        return (Phase.STARTING, f"{why}; {known.held_back[name]}") if name in known.held_back else (Phase.FAILED, why)
    if node not in known.usable:
        return (Phase.STARTING if name in known.wanted else Phase.FAILED), f"{node} is not ready"
    if key in known.proven:
        return Phase.PROVEN, ""
    return (Phase.READY, "") if is_ready(pod, SEGMENT) else (Phase.STARTING, hindered.text if hindered else "")


def _ended(pod: Manifest) -> str:
    status = pod.get("status") or {}
    ended = ((_container(pod).get("state") or {}).get("terminated")) or {}
    reason = status.get("reason") or ended.get("reason") or "it ended"
    code = f" with exit code {ended['exitCode']}" if "exitCode" in ended else ""
    message = status.get("message") or ended.get("message") or ""
    return f"{reason}{code}" + (f": {message[:200]}" if message else "")
