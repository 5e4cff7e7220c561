"""The cluster, with requests counted, and decisions as they are written: what the status says was decided is what metrics count."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.manifests.pod_parts import COMPONENT, INSTANCE
from splitinference.controller.ports import Manifest
from splitinference.controller.reconcile.upkeep.credentials import NOT_AFTER
from splitinference.controller.runtime.workqueue import Key

Counted = Callable[[Key, str, str], None]


class CountedCluster(KubeCluster):
    """Implements `Cluster`. `decided` is told resource, transition and reason of each new decision; `called` each request's method;
    `certified` resource, role and end of each certificate that was written."""

    def __init__(
        self,
        api: client.ApiClient,
        timeout_seconds: float,
        namespaces: Sequence[str],
        decided: Counted,
        called: Callable[[str], None],
        *,
        before_write: Callable[[], None] = lambda: None,
        certified: Counted = lambda key, role, ends: None,
    ) -> None:
        super().__init__(api, timeout_seconds, namespaces, before_write)
        self._decided = decided
        self._called = called
        self._certified = certified
        self._last: dict[Key, str] = {}

    def _call(self, method: str, path: str, **how: Any) -> Any:
        self._called(method)
        return super()._call(method, path, **how)

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any], version: str = "") -> str:
        """As ever; then the newest decision is counted, if it is another than the one written before."""
        written = super().patch_status(namespace, name, status, version)
        newest = next(iter(status.get("decisions") or ()), None)
        if newest is None:
            return written
        words = f"{newest.get('time')} {newest.get('reason')} {newest.get('message')}"
        if self._last.get((namespace, name)) != words:
            self._last[namespace, name] = words
            self._decided((namespace, name), str(newest.get("transition", "")), str(newest.get("reason", "")))
        return written

    def apply_unread(self, manifest: Manifest) -> None:
        """As ever; then the end of its certificate is told, if it holds one."""
        super().apply_unread(manifest)
        about = manifest["metadata"]
        if ends := (about.get("annotations") or {}).get(NOT_AFTER):
            labels = about["labels"]
            self._certified((about["namespace"], labels[INSTANCE]), labels[COMPONENT], ends)
