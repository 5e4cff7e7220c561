"""The cluster with its reads from watches: passes of a hundred resources ask the API server for nothing while nothing changes.

What a pass needs is kept as the server sent it, less what nobody here reads (`kept` says what that is).
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from splitinference.adapters.kubernetes.client import api_path, api_version
from splitinference.adapters.kubernetes.counted import CountedCluster
from splitinference.adapters.kubernetes.store import Mirror, Source, Stream
from splitinference.adapters.kubernetes.trim import node_kept, pod_kept, whole
from splitinference.controller.api.spec import KIND
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest
from splitinference.controller.trust.ownership import belongs_to

_SILENCE_SECONDS = 75.0
"""The server sends a bookmark every minute, so a stream that says nothing for longer is dead."""
_OURS = (
    "Service", "ConfigMap", "Deployment", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "PodDisruptionBudget",
)  # fmt: skip


class WatchedCluster(CountedCluster):
    """Implements `Cluster`. A kind is watched from when it is first asked for; `stop` ends the watches."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        """As `CountedCluster`."""
        super().__init__(*settings, **more)
        ours = {"labelSelector": f"{MANAGED_BY}={OURS}"}
        self._mirrors: dict[str, Sequence[Mirror]] = {
            KIND: [self._mirror(KIND, namespace, {}) for namespace in self._namespaces or ("",)],
            "Node": [self._mirror("Node", "", {})],
            "Pod": [self._mirror("Pod", "", {})],
        }
        self._mirrors |= {kind: [self._mirror(kind, namespace, ours) for namespace in self._namespaces or ("",)] for kind in _OURS}
        self._derived_lock = threading.Lock()
        self._unfinished: tuple[object, tuple[Manifest, ...]] = (None, ())
        self._by_owner: dict[str, tuple[object, Mapping[tuple[str, str], tuple[Manifest, ...]]]] = {}

    # --- reads -----------------------------------------------------------------------------------------------------------------------

    def split_inferences(self) -> Sequence[Manifest]:
        """All of them, in the watched namespaces; the same tuple while nothing changed."""
        return self._all(KIND)

    def split_inference(self, namespace: str, name: str) -> Manifest | None:
        """One of them, as the watch has it; None if it is gone."""
        return next((found for mirror in self._mirrors[KIND] if (found := mirror.get(namespace, name)) is not None), None)

    def nodes(self) -> Sequence[Manifest]:
        """All nodes; the same tuple while nothing changed."""
        return self._all("Node")

    def pods(self) -> Sequence[Manifest]:
        """All pods that are not Succeeded; the same tuple while nothing changed."""
        found = self._all("Pod")
        with self._derived_lock:
            if self._unfinished[0] is not found:
                self._unfinished = found, tuple(pod for pod in found if (pod.get("status") or {}).get("phase") != "Succeeded")
            return self._unfinished[1]

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        """Objects of this kind that carry our labels for this instance."""
        if kind not in self._mirrors:
            return super().owned(kind, namespace, instance)
        found = self._all(kind)
        with self._derived_lock:
            known = self._by_owner.get(kind)
            if known is None or known[0] is not found:
                known = self._by_owner[kind] = found, _by_owner(found)
        return known[1].get((namespace, instance), ())

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object; what is not among the watched is asked for."""
        for mirror in self._mirrors.get(kind, ()):
            if (found := mirror.get(namespace, name)) is not None:
                return found
        return super().get(kind, namespace, name)

    def stop(self) -> None:
        """End all watches."""
        for mirrors in self._mirrors.values():
            for mirror in mirrors:
                mirror.stop()

    def _all(self, kind: str) -> tuple[Manifest, ...]:
        mirrors = self._mirrors[kind]
        if len(mirrors) == 1:
            return mirrors[0].all()
        return tuple(thing for mirror in mirrors for thing in mirror.all())

    # --- writes ----------------------------------------------------------------------------------------------------------------------

    def _wrote(self, kind: str, answer: Manifest) -> None:
        for mirror in self._of(kind, str(answer["metadata"].get("namespace", ""))):
            mirror.wrote(answer)

    def _deleted(self, kind: str, namespace: str, name: str) -> None:
        for mirror in self._of(kind, namespace):
            mirror.deleted(namespace, name)

    def _of(self, kind: str, namespace: str) -> Sequence[Mirror]:
        """The mirrors that show objects of this namespace."""
        mirrors = self._mirrors.get(kind, ())
        return mirrors if len(mirrors) < 2 else [mirrors[self._namespaces.index(namespace)]]

    def noticed(self, kind: str, thing: Manifest, gone: bool) -> None:
        """What another watch told about an object of this kind: whoever it wakes must not read an older state."""
        for mirror in self._of(kind, str(thing["metadata"].get("namespace", ""))):
            mirror.noticed(thing, gone)

    def on_nodes(self, changed: Callable[[], None]) -> None:
        """Call `changed`, in another thread, whenever something about a node changed that is a reason to look: not its heartbeats."""
        for mirror in self._mirrors["Node"]:
            mirror.tell(changed)

    # --- watches ---------------------------------------------------------------------------------------------------------------------

    def _mirror(self, kind: str, namespace: str, query: Mapping[str, str]) -> Mirror:
        path = api_path(kind, namespace)

        def listed() -> Iterator[tuple[list[Manifest], str]]:
            return self._pages(path, kind, **query)

        def watched(version: str) -> Stream:
            seconds = str(random.randint(240, 300))  # not all at once
            asked = {**query, "watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": seconds}
            stream: Stream = self._call("GET", path, query=asked, stream_seconds=_SILENCE_SECONDS)
            return stream

        stamp = {"apiVersion": api_version(kind), "kind": kind}
        keep = {"Node": node_kept, "Pod": pod_kept}.get(kind, whole)
        return Mirror(Source(kind, listed, watched, lambda thing: stamp | keep(thing)))


def _by_owner(things: Sequence[Manifest]) -> Mapping[tuple[str, str], tuple[Manifest, ...]]:
    found: dict[tuple[str, str], list[Manifest]] = {}
    for thing in things:
        labels = thing["metadata"].get("labels") or {}
        if labels.get(MANAGED_BY) == OURS and belongs_to(thing, str(labels.get(INSTANCE, ""))):
            found.setdefault((str(thing["metadata"].get("namespace", "")), str(labels.get(INSTANCE, ""))), []).append(thing)
    return {key: tuple(values) for key, values in found.items()}
