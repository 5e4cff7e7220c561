"""Why a pod does not start, in the words of the scheduler, the kubelet and the API server, and how long that may go on.

Only our own container and what must end before it are judged. What a service mesh or another webhook added to the pod is its own matter,
unless it keeps our container from starting.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from splitinference.controller.ports import Manifest
from splitinference.settings import Settings
from splitinference_modelfiles import sealed
from splitinference_modelfiles.stored.digests import MISMATCH

_UNSCHEDULABLE_SECONDS = 20.0
_RESTARTS_THAT_LAST = 3
_QUIET = ("", "ContainerCreating", "PodInitializing")
"""Reasons to wait that say nothing: an image is pulled, a volume is mounted, an init container runs."""
_SILENT_SECONDS = 10.0
_ASK_AGAIN = timedelta(seconds=15)
_LONGEST = 300


@dataclass(frozen=True)
class Limits:
    """How long a cause may last before the node is avoided for it. `failure`: where something failed; `start`: where nothing is known to
    have failed, and an image may still be on its way."""

    failure_seconds: float = 60.0
    start_seconds: float = 600.0

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """As the settings have them."""
        return cls(failure_seconds=settings.start_failure_seconds, start_seconds=settings.segment_start_seconds)


USUAL = Limits()


@dataclass(frozen=True)
class Hindrance:
    """What keeps a container from running. `reason` is one word, `text` says all; `since`: from when the time counts; `limit_seconds`: so
    long it may last, None where another node would not help."""

    reason: str
    text: str
    since: datetime | None = None
    limit_seconds: float | None = None

    def lasts(self, now: datetime) -> bool:
        """Whether it has lasted longer than it may."""
        if self.limit_seconds is None:
            return False
        if self.limit_seconds == 0:
            return True
        return self.since is not None and (now - self.since).total_seconds() > self.limit_seconds

    @property
    def until(self) -> datetime | None:
        """When the node will be avoided for it."""
        return self.since + timedelta(seconds=self.limit_seconds) if self.since and self.limit_seconds is not None else None


def hindrance(pod: Manifest, name: str, now: datetime, limits: Limits = USUAL, warning: str = "") -> Hindrance | None:
    """What keeps the container `name` of this pod from running; None if nothing is known to. `warning`: the newest event about the pod."""
    if (found := _unscheduled(pod, limits, now)) is not None:
        return found
    since = _not_ready_since(pod)
    own, inits = own_status(pod, name), (pod.get("status") or {}).get("initContainerStatuses") or []
    for status in inits:
        if (found := _failing(status, f"init container {status.get('name')}: ", since, limits)) is not None:
            return found
    if (found := _failing(own, "", since, limits)) is not None:
        return found
    if "running" in (own.get("state") or {}):
        return _never_ready(own, since, limits)
    if not is_bound(pod):
        return None
    if warning:
        return Hindrance(reason=warning.partition(":")[0], text=warning[:_LONGEST], since=since, limit_seconds=limits.failure_seconds)
    if since is not None and (now - since).total_seconds() > limits.failure_seconds:
        # An init container that runs is at work: it fetches a model.
        working = next((s for s in inits if "running" in (s.get("state") or {}) and not s.get("ready")), None)
        text = f"init container {working.get('name')} runs" if working else "the image is pulled, or a volume is mounted"
        return Hindrance(reason="ContainerCreating", text=text, since=since, limit_seconds=None if working else limits.start_seconds)
    return None


def own_status(pod: Manifest, name: str) -> Mapping[str, Any]:
    """The status of the container of this name; empty while there is none. The order of statuses means nothing."""
    status = pod.get("status") or {}
    everything = [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]
    return next((found for found in everything if found.get("name") == name), {})


def ended_with(pod: Manifest, name: str) -> Mapping[str, Any] | None:
    """How our own container ended for good; None while it runs or may run again. Others' containers may run on beside it."""
    ended: Mapping[str, Any] | None = (own_status(pod, name).get("state") or {}).get("terminated")
    return ended


def is_ready(pod: Manifest, name: str) -> bool:
    """Whether our own container is ready. A sidecar that is not does not count: the proof by an inference finds out if it matters."""
    own = own_status(pod, name)
    if "ready" in own:
        return bool(own["ready"])
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in (pod.get("status") or {}).get("conditions") or [])


def is_bound(pod: Manifest) -> bool:
    """Whether the pod has a node."""
    return bool((pod.get("spec") or {}).get("nodeName"))


def is_silent(pod: Manifest, name: str, now: datetime) -> bool:
    """Whether the pod has waited on its node for a while and its status does not say for what: then its events may."""
    since = _not_ready_since(pod)
    if not is_bound(pod) or since is None or (now - since).total_seconds() < _SILENT_SECONDS or (pod["metadata"].get("deletionTimestamp")):
        return False
    state = own_status(pod, name).get("state") or {}
    waits = not state or str((state.get("waiting") or {}).get("reason", "-")) in _QUIET
    return waits and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


@dataclass
class Told:
    """What events said of pods that are silent, kept for a while so that a pass every second does not ask every second."""

    _known: dict[str, tuple[datetime, str]] = field(default_factory=dict)

    def warnings(self, pods: Sequence[tuple[Manifest, str]], now: datetime, ask: Callable[[str, str], str]) -> Mapping[str, str]:
        """The newest warning about each silent pod, by uid. `pods`: each with the name of our container; `ask`: namespace and uid."""
        found = {}
        for pod, name in pods:
            uid = str(pod["metadata"].get("uid", ""))
            if not uid or not is_silent(pod, name, now):
                continue
            asked, text = self._known.get(uid, (None, ""))
            if asked is None or now - asked >= _ASK_AGAIN or now < asked:
                text = ask(str(pod["metadata"].get("namespace", "")), uid)
                asked = now
            found[uid] = (asked, text)
        self._known = found
        return {uid: text for uid, (_, text) in found.items() if text}


def _unscheduled(pod: Manifest, limits: Limits, now: datetime) -> Hindrance | None:
    for condition in _conditions(pod):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            reason = str(condition.get("reason") or "Unschedulable")
            text = f"not scheduled: {condition.get('message', '')}"[:_LONGEST]
            # A gate is another controller's matter, such as a queue's; no other node would be quicker.
            limit = None if reason == "SchedulingGated" else _UNSCHEDULABLE_SECONDS
            return Hindrance(reason=reason, text=text, since=time_of(condition.get("lastTransitionTime")), limit_seconds=limit)
    created = time_of(pod["metadata"].get("creationTimestamp"))
    if not is_bound(pod) and created is not None and (now - created).total_seconds() > limits.failure_seconds:
        return Hindrance(reason="NoScheduler", text="no scheduler has handled the pod", since=created)
    return None


def _failing(status: Mapping[str, Any], prefix: str, since: datetime | None, limits: Limits) -> Hindrance | None:
    """A container that waits for more than time, or that ended and will be started again."""
    state, restarts = status.get("state") or {}, int(status.get("restartCount") or 0)
    waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
    last = (status.get("lastState") or {}).get("terminated") or {}
    if str(waiting.get("reason") or "") not in _QUIET:
        reason, text = str(waiting["reason"]), str(waiting.get("message") or "")
    elif ended.get("exitCode"):
        reason, text, last = str(ended.get("reason") or "Error"), "", ended
    elif restarts and last.get("exitCode") and not status.get("ready") and status.get("started") is not True:
        reason, text = str(last.get("reason") or "Error"), ""
    else:
        return None
    code = f", last exit code {last['exitCode']}" if "exitCode" in last else ""
    killed = str(last.get("reason") or "")
    code += f" ({killed})" if code and killed not in ("", "Error", reason) else ""
    # What the container wrote last says more than that the kubelet backs off.
    text = (str(last.get("message") or "") or text).strip()[-_LONGEST:]
    said = f"{prefix}{reason}{code}" + (f": {text}" if text else "")
    if MISMATCH in text:  # the same files will not become others
        return Hindrance(reason=MISMATCH, text=said, since=since, limit_seconds=0)
    if (locked := next((name for name in sealed.REASONS if f"{name}: " in text), None)) is not None:
        return Hindrance(reason=locked, text=said, since=since, limit_seconds=_locked_seconds(locked, limits))
    if restarts >= _RESTARTS_THAT_LAST and reason == "CrashLoopBackOff":
        return Hindrance(reason=reason, text=f"{restarts} restarts, {said}", since=since, limit_seconds=0)
    if "running" in state:  # it may yet come up, so only the limit for a whole start counts
        return Hindrance(reason=reason, text=f"{said}; it runs again", since=since, limit_seconds=limits.start_seconds)
    return Hindrance(reason=reason, text=said, since=since, limit_seconds=limits.failure_seconds)


def _locked_seconds(reason: str, limits: Limits) -> float | None:
    """How long a node is waited for whose pod cannot decrypt the model. A broker that is down or lacks the key is no matter of the node."""
    if reason in (sealed.UNREACHABLE, sealed.NO_KEY):
        return None
    return limits.failure_seconds if reason == sealed.NOT_RELEASED else 0


def _never_ready(own: Mapping[str, Any], since: datetime | None, limits: Limits) -> Hindrance | None:
    """A process that runs and has been started anew by the kubelet since it had too long to get ready."""
    restarts = int(own.get("restartCount") or 0)
    if not restarts or own.get("started") is not False:
        return None
    limit = limits.start_seconds + limits.failure_seconds
    return Hindrance(
        reason="NotReady", text=f"it runs, but did not become ready in {restarts + 1} starts", since=since, limit_seconds=limit
    )


def _not_ready_since(pod: Manifest) -> datetime | None:
    """From when the wait counts: the pod got its node, or stopped being ready, whichever is later."""
    moments = [
        time_of(c.get("lastTransitionTime"))
        for c in _conditions(pod)
        if (c.get("type"), c.get("status")) in (("PodScheduled", "True"), ("Ready", "False"))
    ]
    known = [moment for moment in [*moments, time_of((pod.get("status") or {}).get("startTime"))] if moment is not None]
    return max(known, default=None)


def _conditions(pod: Manifest) -> Iterator[Mapping[str, Any]]:
    yield from (pod.get("status") or {}).get("conditions") or []


def time_of(text: object) -> datetime | None:
    """A time as Kubernetes writes it; None for what is none."""
    try:
        return datetime.fromisoformat(str(text))
    except ValueError:
        return None
