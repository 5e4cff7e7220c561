"""What keeps a resource's pods from running, in words for its conditions: segments, and the gateway with its Deployment."""

from collections.abc import Iterator

from splitinference.controller.cluster_state.segment_pods import SegmentPod
from splitinference.controller.kube_values.start_failures import hindrance
from splitinference.controller.manifests.gateway import GATEWAY
from splitinference.controller.ports import Manifest
from splitinference.controller.reconcile.planning.gather import Seen

NO_START = " does not start on "
_MOST = 5
_QUOTED = 400


def hindered_segments(seen: Seen) -> list[str]:
    """The segments that do not start, with cause and time. Times are moments, so that the words stay the same as time passes."""
    found = [pod for pod in seen.segments if pod.hindered is not None and pod.name in seen.wanted]
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return [*map(_words, found[:_MOST]), *more]


def _words(pod: SegmentPod) -> str:
    assert pod.hindered is not None  # noqa: S101 - what the caller has chosen by
    cause, node = pod.hindered, pod.segment.node
    since = f" since {cause.since:%H:%M:%S}" if cause.since else ""
    until = f" (another plan is made without {node} if it lasts until {cause.until:%H:%M:%S})" if cause.until and not pod.lasting else ""
    return f"{pod.name}{NO_START}{node}{since}: {cause.text}{until}"


def gateway_words(seen: Seen) -> list[str]:
    """Why no pod of the gateway is ready: what its Deployment was refused, in the API server's words, and what hinders its pods."""
    return [*_refused(seen.deployment), *_hindered(seen)]


def _refused(deployment: Manifest | None) -> Iterator[str]:
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            yield f"its pods are refused: {condition.get('reason', '')}: {str(condition.get('message', ''))[:_QUOTED]}"


def _hindered(seen: Seen) -> Iterator[str]:
    for pod in seen.gateways:
        uid = str(pod["metadata"].get("uid", ""))
        cause = hindrance(pod, GATEWAY, seen.now, seen.limits, seen.warnings.get(uid, ""))
        if cause is not None and not pod["metadata"].get("deletionTimestamp"):
            node = (pod.get("spec") or {}).get("nodeName")
            yield f"{pod['metadata']['name']} does not start{f' on {node}' if node else ''}: {cause.text}"
