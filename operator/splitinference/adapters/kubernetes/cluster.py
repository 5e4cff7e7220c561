"""The cluster with its reads from watches: passes of a hundred resources ask the API server for nothing while nothing changes.

What a pass needs is kept as the server sent it, less what nobody here reads (`kept` says what that is).
"""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from splitinference.adapters.kubernetes.client import api_path, api_version
from splitinference.adapters.kubernetes.counted import CountedCluster
from splitinference.adapters.kubernetes.store import Mirror, Source, Stream
from splitinference.adapters.kubernetes.trim import node_kept, pod_kept, whole
from splitinference.controller.api.group import KIND
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Generation, Listing, Manifest
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
        self._merged: dict[str, Listing] = {}
        self._unfinished: Listing | None = None
        self._by_owner: dict[str, tuple[Generation, Mapping[tuple[str, str], tuple[Manifest, ...]]]] = {}

    # --- reads -----------------------------------------------------------------------------------------------------------------------

    def split_inferences(self) -> Listing:
        """All of them, in the watched namespaces."""
        return self._all(KIND)

    def split_inference(self, namespace: str, name: str) -> Manifest | None:
        """One of them, as the watch has it; None if it is gone."""
        return next((found for mirror in self._mirrors[KIND] if (found := mirror.get(namespace, name)) is not None), None)

    def nodes(self) -> Listing:
        """All nodes."""
        return self._all("Node")

    def pods(self) -> Listing:
        """All pods that are not Succeeded."""
        found = self._all("Pod")
        with self._derived_lock:
            if self._unfinished is None or self._unfinished.generation != found.generation:
                unfinished = (pod for pod in found if (pod.get("status") or {}).get("phase") != "Succeeded")
                self._unfinished = Listing(unfinished, found.generation)
            return self._unfinished

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        """Objects of this kind that carry our labels for this instance."""
        if kind not in self._mirrors:
            return super().owned(kind, namespace, instance)
        found = self._all(kind)
        with self._derived_lock:
            known = self._by_owner.get(kind)
            if known is None or known[0] != found.generation:
                known = self._by_owner[kind] = found.generation, _by_owner(found)
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

    def _all(self, kind: str) -> Listing:
        """Of several namespaces: put together anew only when one of them is at another generation."""
        mirrors = self._mirrors[kind]
        if len(mirrors) == 1:
            return mirrors[0].all()
        listings = [mirror.all() for mirror in mirrors]
        generation = tuple(number for listing in listings for number in listing.generation)
        with self._derived_lock:
            known = self._merged.get(kind)
            if known is None or known.generation != generation:
                known = self._merged[kind] = Listing((thing for listing in listings for thing in listing), generation)
            return known

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

    def on_change(self, changed: Callable[[str, Manifest, bool], None]) -> None:
        """Begin to watch what wakes passes: resources, their pods and nodes. Call `changed` with the kind, the object, and whether it is
        gone: for what is there at first, and for each change after it can be read. It is called in other threads; heartbeats of nodes and
        pods of others are no change."""

        def of_ours(pod: Manifest, gone: bool) -> None:
            # A cluster may have tens of thousands of others, which come and go.
            if (pod["metadata"].get("labels") or {}).get(MANAGED_BY) == OURS:
                changed("Pod", pod, gone)

        for kind, told in ((KIND, partial(changed, KIND)), ("Pod", of_ours), ("Node", partial(changed, "Node"))):
            for mirror in self._mirrors[kind]:
                mirror.tell(told)

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
