"""What the operator keeps for itself in its own namespace. No SplitInference owns it, so the chart's Role there limits what is written."""

from collections.abc import Sequence
from typing import Any

from splitinference.adapters.kubernetes.api import NotFoundError, api_path
from splitinference.adapters.kubernetes.client import APPLY, FIELD_MANAGER, KubeCluster
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest


class OwnNamespace(KubeCluster):
    """Implements `Store`. An object counts as the operator's own by its labels: whoever may write in this namespace is the operator."""

    def apply(self, manifest: Manifest) -> None:
        """Server-side apply, forced."""
        about = manifest["metadata"]
        path, query = api_path(manifest["kind"], about["namespace"], about["name"]), {"fieldManager": FIELD_MANAGER, "force": "true"}
        self._call("PATCH", path, body=manifest, content_type=APPLY, query=query)

    def replace(self, manifest: Manifest) -> None:
        """Write an object that was read, if it is still as it was read. Raises UnavailableError if it is not."""
        about = manifest["metadata"]
        path = api_path(manifest["kind"], about["namespace"], about["name"])
        self._call("PUT", path, body=manifest, query={"fieldManager": FIELD_MANAGER})

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete in the background; not found is success."""
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            self._call("DELETE", api_path(kind, namespace, name), body=options)
        except NotFoundError:
            return

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        """Objects of this kind with our labels for this instance."""
        return self._list(api_path(kind, namespace), kind, labelSelector=f"{MANAGED_BY}={OURS},{INSTANCE}={instance}")
