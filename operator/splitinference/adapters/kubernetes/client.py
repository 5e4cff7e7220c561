"""The Kubernetes API, spoken to with plain JSON through the official client: the `Cluster` of the ports, and some reads for other adapters.

Every call has a time limit; what may pass is UnavailableError, what the API server will not take is RefusedError with its words.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from kubernetes import client

from splitinference.adapters.kubernetes.api import (
    AlreadyThereError,
    Api,
    ConflictError,
    NotFoundError,
    api_path,
    api_version,
    connect,
    current_namespace,
)
from splitinference.controller.api.group import API_VERSION, GROUP, KIND, PLURAL
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest, NameTakenError, RefusedError, UnavailableError
from splitinference.controller.trust.ownership import belongs_to, controller_of, is_left_over, owner_uid, why_taken

__all__ = ["FIELD_MANAGER", "KubeCluster", "api_path", "api_version", "connect", "current_namespace"]

log = logging.getLogger(__name__)

FIELD_MANAGER = "splitinference"
APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_JSON_PATCH = "application/json-patch+json"
_METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_NEVER_READ = ("Secret",)
_LOG_LIMIT_BYTES = 2 * 2**20
"""Twice what a reading pod prints at most, as a ConfigMap holds no more."""


class KubeCluster(Api):
    """Implements `Cluster`. One instance may be used from many threads."""

    def __init__(
        self,
        api: client.ApiClient,
        timeout_seconds: float,
        namespaces: Sequence[str] = (),
        before_write: Callable[[], None] = lambda: None,
    ) -> None:
        """`namespaces`: those whose SplitInferences count; none means all. `before_write` raises UnavailableError where nothing may be
        changed now."""
        super().__init__(api, timeout_seconds, before_write)
        self._namespaces = tuple(namespaces)

    def split_inferences(self) -> Sequence[Manifest]:
        """All of them, in the watched namespaces."""
        if not self._namespaces:
            return self._list(f"/apis/{API_VERSION}/{PLURAL}", KIND)
        return [item for namespace in self._namespaces for item in self._list(api_path(KIND, namespace), KIND)]

    def split_inference(self, namespace: str, name: str) -> Manifest | None:
        """One of them; None if it is gone."""
        return self._get(api_path(KIND, namespace, name))

    def nodes(self) -> Sequence[Manifest]:
        """All nodes."""
        return self._list("/api/v1/nodes", "Node")

    def pods(self) -> Sequence[Manifest]:
        """All pods that are not Succeeded."""
        return self._list("/api/v1/pods", "Pod", fieldSelector="status.phase!=Succeeded")

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        """Objects of this kind that carry our labels for this instance and belong to it."""
        found = self._list(api_path(kind, namespace), kind, labelSelector=f"{MANAGED_BY}={OURS},{INSTANCE}={instance}")
        return [thing for thing in found if belongs_to(thing, instance)]

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object; None if there is none."""
        return self._get(api_path(kind, namespace, name))

    def pod_warning(self, namespace: str, uid: str) -> str:
        """The newest Warning event about the pod."""
        query = {"fieldSelector": f"involvedObject.uid={uid},type=Warning", "limit": "100"}
        try:
            found = self._call("GET", api_path("Event", namespace), query=query).get("items") or []
        except RefusedError as error:  # older rights do not include it: then the pod's status has to do
            log.debug("events about a pod in %s cannot be read: %s", namespace, error)
            return ""
        newest = max(found, key=_last_seen, default=None)
        return f"{newest.get('reason', '')}: {newest.get('message', '')}" if newest else ""

    def apply(self, manifest: Manifest) -> None:
        """Create it, or apply it to the object that is there if that is ours. ValueError: the manifest names no SplitInference as owner."""
        kind, about = manifest["kind"], manifest["metadata"]
        if not owner_uid(manifest):
            raise ValueError(f"{kind} {about['name']} has no SplitInference as its controller")
        if kind in _NEVER_READ:
            self.apply_unread(manifest)
            return
        found = self.get(kind, about["namespace"], about["name"])
        if found is None or owner_uid(found) != owner_uid(manifest):
            # What was read may be older than the object that stands there now, so the API server decides.
            found = self._made(manifest)
        # With a UID the API server applies this to that very object, and creates none in its place.
        body = {**manifest, "metadata": {**about, "uid": found["metadata"]["uid"]}}
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        try:
            answer = self._call("PATCH", api_path(kind, about["namespace"], about["name"]), body=body, content_type=APPLY, query=query)
        except NotFoundError as error:
            self._deleted(kind, about["namespace"], about["name"])
            raise UnavailableError(f"{kind} {about['name']} was deleted meanwhile") from error
        self._wrote(kind, self._applied_alone(answer, kind))

    def _made(self, manifest: Manifest) -> Manifest:
        """The object after it was created, or as it was there already with the same owner. Raises NameTakenError."""
        kind, about = manifest["kind"], manifest["metadata"]
        path = api_path(kind, about["namespace"])
        try:
            return dict(self._call("POST", path, body=manifest, query={"fieldManager": FIELD_MANAGER}))
        except AlreadyThereError as error:
            found = self._get(api_path(kind, about["namespace"], about["name"]))
            if found is None:
                raise UnavailableError(f"{kind} {about['name']} no longer exists") from error
            if owner_uid(found) != owner_uid(manifest):
                raise NameTakenError(why_taken(found, manifest)) from error
            return found

    def _applied_alone(self, answer: Manifest, kind: str) -> Manifest:
        """Creating notes our fields as updated, applying as applied. Only the second may stay: a field that no manifest has any more goes
        only where nobody else has it."""
        entries = answer["metadata"].get("managedFields") or []
        kept = [entry for entry in entries if not _is_our_update(entry)]
        if len(kept) == len(entries):
            return answer
        about = answer["metadata"]
        patch = [
            {"op": "test", "path": "/metadata/resourceVersion", "value": about["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": kept},
        ]
        path = api_path(kind, about["namespace"], about["name"])
        try:
            return dict(self._call("PATCH", path, body=patch, content_type=_JSON_PATCH))
        except (RefusedError, UnavailableError) as error:
            log.debug("%s %s: who wrote which field is noted by the next apply: %s", kind, about["name"], error)
            return answer

    def apply_unread(self, manifest: Manifest) -> None:
        """For Secrets, which we may write and not read: created, or applied where our owner is on it. Only metadata is sent back.

        Raises NameTakenError where another object has the name.
        """
        kind, about = manifest["kind"], manifest["metadata"]
        path = api_path(kind, about["namespace"], about["name"])
        try:
            there = self._call("PATCH", path, body={}, content_type=_MERGE, accept=_METADATA)
        except NotFoundError:
            query = {"fieldManager": FIELD_MANAGER}
            self._call("POST", api_path(kind, about["namespace"]), body=manifest, query=query, accept=_METADATA)
            return
        if owner_uid(there) != owner_uid(manifest):
            raise NameTakenError(why_taken({**there, "kind": kind}, manifest))
        # With the UID the write is for the very object that was looked at.
        mine = {**manifest, "metadata": {**about, "uid": there["metadata"]["uid"]}}
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        self._call("PATCH", path, body=mine, content_type=APPLY, query=query, accept=_METADATA)

    def create(self, manifest: Manifest) -> None:
        """Create; already there is success, unless another owner has it."""
        kind, about = manifest["kind"], manifest["metadata"]
        try:
            self._wrote(kind, self._call("POST", api_path(kind, about["namespace"]), body=manifest, query={"fieldManager": FIELD_MANAGER}))
        except AlreadyThereError as error:
            log.debug("%s %s is already there", kind, about["name"])
            if not owner_uid(manifest):
                return
            found = self._get(api_path(kind, about["namespace"], about["name"]))
            if found is not None and owner_uid(found) != owner_uid(manifest) and not is_left_over(found, manifest):
                raise NameTakenError(why_taken(found, manifest)) from error

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete in the background the very object that was read, if it is ours."""
        found = self.get(kind, namespace, name)
        if found is None:
            self._deleted(kind, namespace, name)
            return
        owner = controller_of(found)
        if owner is None or not owner.is_resource:
            log.warning("%s %s/%s is not deleted: no SplitInference is its controller", kind, namespace, name)
            return
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": {"uid": found["metadata"]["uid"]},
        }
        try:
            answer = self._call("DELETE", api_path(kind, namespace, name), body=options)
        except (NotFoundError, ConflictError):
            log.debug("%s %s is gone already", kind, name)
            self._deleted(kind, namespace, name)
            return
        if "deletionTimestamp" in (answer.get("metadata") or {}):
            self._wrote(kind, answer)
        else:
            self._deleted(kind, namespace, name)

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any], version: str = "") -> str:
        """Merge-patch the status if the resource is as it was read; not found is success."""
        body: dict[str, Any] = {"status": status}
        if version:
            body["metadata"] = {"resourceVersion": version}
        try:
            answer = self._call("PATCH", api_path(KIND, namespace, name) + "/status", body=body, content_type=_MERGE)
        except NotFoundError:
            log.debug("%s/%s is gone, its status is not written", namespace, name)
            return version
        self._wrote(KIND, answer)
        return str(answer["metadata"].get("resourceVersion", ""))

    def event(self, about: Manifest, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Write an Event, once for the same words about the same generation."""
        target = about["metadata"]
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        words = json.dumps([target.get("uid"), target.get("generation"), kind, reason, message])
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": target["namespace"], "name": f"{target['name']}.{hashlib.sha256(words.encode()).hexdigest()[:16]}"},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "namespace": target["namespace"],
                "name": target["name"],
                "uid": target.get("uid", ""),
                "resourceVersion": target.get("resourceVersion", ""),
            },
            "type": kind,
            "reason": reason,
            "message": message[:1024],
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "source": {"component": FIELD_MANAGER},
            "reportingComponent": f"{GROUP}/operator",
            "reportingInstance": "",
        }
        try:
            self.create(event)
        except (UnavailableError, RefusedError) as error:
            log.warning("event %s about %s/%s was not written: %s", reason, target["namespace"], target["name"], error)

    def _wrote(self, kind: str, answer: Manifest) -> None:
        """What the API server has after a write of ours; for those who keep what they read."""

    def _deleted(self, kind: str, namespace: str, name: str) -> None:
        """We deleted it, and it is gone."""

    def pod_log(self, namespace: str, name: str, container: str) -> str:
        """The whole log of our own container of a pod, whatever others were added to it; empty while there is none."""
        query = {"limitBytes": str(_LOG_LIMIT_BYTES), "container": container}
        try:
            text = self._call("GET", api_path("Pod", namespace, name) + "/log", raw=True, query=query)
        except (NotFoundError, RefusedError) as error:
            log.warning("the log of container %s of pod %s/%s cannot be read: %s", container, namespace, name, error)
            return ""
        return text if isinstance(text, str) else ""


def _last_seen(event: Manifest) -> str:
    """When an event was last seen, as text that sorts: writers of events fill in different fields."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return str(next((time for time in times if time), ""))


def _is_our_update(entry: Mapping[str, Any]) -> bool:
    return entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Update" and not entry.get("subresource")
