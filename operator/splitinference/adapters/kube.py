"""The Kubernetes API, spoken to with plain JSON through the official client: the `Cluster` of the ports, and some reads for other adapters.

Every call has a time limit; what may pass is UnavailableError, what the API server will not take is RefusedError with its words.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

import urllib3
from kubernetes import client, config

from splitinference.adapters.failures import in_words
from splitinference.controller.objects import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest, RefusedError, UnavailableError
from splitinference.controller.resource import API_VERSION, GROUP, KIND, PLURAL

log = logging.getLogger(__name__)

FIELD_MANAGER = "splitinference"
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_LOG_LIMIT_BYTES = 16 * 2**20
_PAGE = "100"
"""Objects of one answer to a list. A node may be 20 kB of JSON, and as Python has it several times that, until what counts is kept."""

_PATHS = {
    "Node": ("/api/v1", "nodes"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "Event": ("/api/v1", "events"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    KIND: (f"/apis/{API_VERSION}", PLURAL),
}
_API_VERSIONS = {kind: path.removeprefix("/apis/").removeprefix("/api/") for kind, (path, _) in _PATHS.items()}


def connect(kubeconfig: str | None = None) -> client.ApiClient:
    """A client for the cluster that this process runs in, or else for the kubeconfig's current context; for that of `kubeconfig` if given.

    Raises UnavailableError where there is neither. Nothing is tried twice: the next pass is soon.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(configuration)
        else:
            config.load_kube_config(kubeconfig, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise UnavailableError(f"neither in a cluster, nor a usable kubeconfig: {error}") from error
    configuration.retries = False
    return client.ApiClient(configuration)


def current_namespace(kubeconfig: str | None = None) -> str:
    """The namespace of the kubeconfig's current context; `default` where it has none."""
    try:
        _, context = config.list_kube_config_contexts(kubeconfig)
    except (config.ConfigException, OSError):
        return "default"
    return str(context.get("context", {}).get("namespace") or "default")


class KubeCluster:
    """Implements `Cluster`. One instance may be used from many threads."""

    def __init__(self, api: client.ApiClient, timeout_seconds: float, namespaces: Sequence[str] = ()) -> None:
        """`namespaces`: those whose SplitInferences count; none means all."""
        self._api = api
        self._timeout = timeout_seconds
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
        """Objects of this kind that carry our labels for this instance."""
        return self._list(api_path(kind, namespace), kind, labelSelector=f"{MANAGED_BY}={OURS},{INSTANCE}={instance}")

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
        """Server-side apply, forced."""
        about = manifest["metadata"]
        path = api_path(manifest["kind"], about["namespace"], about["name"])
        answer = self._call("PATCH", path, body=manifest, content_type=_APPLY, query={"fieldManager": FIELD_MANAGER, "force": "true"})
        self._wrote(manifest["kind"], answer)

    def create(self, manifest: Manifest) -> None:
        """Create; already there is success."""
        path = api_path(manifest["kind"], manifest["metadata"]["namespace"])
        try:
            self._wrote(manifest["kind"], self._call("POST", path, body=manifest, query={"fieldManager": FIELD_MANAGER}))
        except _AlreadyThereError:
            log.debug("%s %s is already there", manifest["kind"], manifest["metadata"]["name"])

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete in the background; not found is success."""
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            answer = self._call("DELETE", api_path(kind, namespace, name), body=options)
        except _NotFoundError:
            log.debug("%s %s is gone already", kind, name)
            self._deleted(kind, namespace, name)
            return
        if "deletionTimestamp" in (answer.get("metadata") or {}):
            self._wrote(kind, answer)
        else:
            self._deleted(kind, namespace, name)

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        """Merge-patch the status; not found is success."""
        try:
            answer = self._call("PATCH", api_path(KIND, namespace, name) + "/status", body={"status": status}, content_type=_MERGE)
            self._wrote(KIND, answer)
        except _NotFoundError:
            log.debug("%s/%s is gone, its status is not written", namespace, name)

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
        except (_NotFoundError, RefusedError) as error:
            log.warning("the log of container %s of pod %s/%s cannot be read: %s", container, namespace, name, error)
            return ""
        return text if isinstance(text, str) else ""

    def secret_value(self, namespace: str, name: str, key: str) -> bytes | None:
        """One key of a Secret, still in base64; None if it is not there."""
        secret = self._get(api_path("Secret", namespace, name))
        value = ((secret or {}).get("data") or {}).get(key)
        return None if value is None else str(value).encode()

    def _list(self, path: str, kind: str, **query: str) -> list[Manifest]:
        return [item for page, _ in self._pages(path, kind, **query) for item in page]

    def _pages(self, path: str, kind: str, **query: str) -> Iterator[tuple[list[Manifest], str]]:
        """All objects, page by page, each with the version of the list."""
        # Lists leave out what all of their items are; a caller should not need to know where an object came from.
        stamp = {"apiVersion": api_version(kind), "kind": kind}
        page: dict[str, str] = {}
        while True:
            try:
                answer = self._call("GET", path, query={**query, "limit": _PAGE, **page})
            except _NotFoundError as error:
                raise UnavailableError(f"{path} is not known to the API server") from error
            about = answer.get("metadata") or {}
            yield [stamp | item for item in answer.get("items") or ()], str(about.get("resourceVersion", ""))
            if not about.get("continue"):
                return
            page = {"continue": str(about["continue"])}

    def _get(self, path: str) -> Manifest | None:
        try:
            return dict(self._call("GET", path))
        except _NotFoundError:
            return None

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        raw: bool = False,
        stream_seconds: float | None = None,
    ) -> Any:
        """The answer as JSON; as text if `raw`; an open stream that may be silent for `stream_seconds` if that is given."""
        headers = {"Accept": "application/json, */*" if raw else "application/json"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            answer = self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                response_type="str" if raw else "object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=not raw and stream_seconds is None,
                _request_timeout=(self._timeout, stream_seconds or self._timeout),
            )
            return answer.data.decode("utf-8", "replace") if raw else answer
        except client.ApiException as error:
            raise _meaning(error, method, path) from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(f"the API server did not answer {method} {path}: {in_words(error)}") from error


def _last_seen(event: Manifest) -> str:
    """When an event was last seen, as text that sorts: writers of events fill in different fields."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp"))
    return str(next((time for time in times if time), ""))


class _NotFoundError(RefusedError):
    """404."""


class _AlreadyThereError(RefusedError):
    """409 AlreadyExists."""


def api_version(kind: str) -> str:
    """Group and version of a kind."""
    return _API_VERSIONS[kind]


def api_path(kind: str, namespace: str, name: str = "") -> str:
    """Where objects of a kind are; without a namespace those of all namespaces."""
    prefix, plural = _PATHS[kind]
    path = f"{prefix}/namespaces/{quote(namespace, safe='')}/{plural}" if namespace else f"{prefix}/{plural}"
    return f"{path}/{quote(name, safe='')}" if name else path


def _meaning(error: client.ApiException, method: str, path: str) -> Exception:
    reason, message = _said(error)
    match error.status:
        case 404 if method in ("GET", "DELETE", "PATCH"):
            return _NotFoundError(message)
        case 409 if reason == "AlreadyExists":
            return _AlreadyThereError(message)
        case 400 | 403 | 404 | 405 | 413 | 415 | 422:
            return RefusedError(message)
        case 500 if "webhook" in message and method != "GET":
            # A webhook that is down refuses until somebody mends it; as a passing trouble nobody would ever read of it.
            return RefusedError(message)
        case _:
            return UnavailableError(f"the API server answered {method} {path} with {error.status}: {message}")


def _said(error: client.ApiException) -> tuple[str, str]:
    try:
        status = json.loads(error.body)
        return str(status.get("reason", "")), str(status.get("message", "")) or str(error.reason)
    except (TypeError, ValueError, AttributeError):
        return "", str(error.body or error.reason)
