"""Room that plans leave for pods of ours that are no segments.

A rollout of a single gateway makes the second pod before the first one ends, so that no request is lost. Plans that fill every node would
keep that pod waiting. With several gateways one gives way instead, and needs no room. A gateway that waits for memory or CPU is a reason to
plan again, however that came.
"""

from collections.abc import Sequence
from datetime import datetime

from splitinference.controller.cluster_state.node_capacity import holds
from splitinference.controller.cluster_state.pods import requested_bytes, requested_millicores
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.kube_values.start_failures import hindrance
from splitinference.controller.manifests.gateway import GATEWAY
from splitinference.controller.manifests.pod_parts import labels_asked
from splitinference.controller.ports import Manifest
from splitinference.core.values.room import Room
from splitinference.settings import Settings

NEW_GATEWAY = "the new gateway of a rollout"
GATEWAY_POD = "the gateway"
SCARCE = ("Insufficient memory", "Insufficient cpu")
"""What the scheduler says where less of it would do; a plan changes nothing else that it says."""


def rooms_of(deployment: Manifest | None, gateways: Sequence[Manifest], now: datetime, settings: Settings) -> tuple[Room, ...]:
    """What the gateway needs: nothing while a rollout has its second pod, or where there is no Deployment yet."""
    if deployment is None:
        return ()
    waiting = [(pod, why) for pod in gateways if (why := _waits(pod, now))]
    if waiting:
        pod, why = waiting[0]
        return (_room(pod, GATEWAY_POD, settings, why),)
    spec = deployment.get("spec") or {}
    if int(spec.get("replicas") or 0) != 1 or sum(holds(pod) for pod in gateways) > 1:
        return ()
    return (_room(spec.get("template") or {}, NEW_GATEWAY, settings),)


def _room(pod: Manifest, what: str, settings: Settings, waits: str = "") -> Room:
    """`pod`: one, or the template of one."""
    segment = quantity(settings.segment_cpu_request) or 0
    return Room(
        what=what,
        labels=labels_asked(pod.get("spec") or {}),
        memory_bytes=requested_bytes(pod),
        millicores=requested_millicores(pod),
        segment_millicores=int(1000 * segment),
        waits=waits,
    )


def _waits(pod: Manifest, now: datetime) -> str:
    """The scheduler's words about a pod that has waited for memory or CPU for a while; empty for any other."""
    if pod["metadata"].get("deletionTimestamp"):
        return ""
    found = hindrance(pod, GATEWAY, now)
    scarce = found is not None and found.lasts(now) and any(words in found.text for words in SCARCE)
    return found.text if found is not None and scarce else ""
