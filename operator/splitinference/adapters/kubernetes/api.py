"""Requests to the Kubernetes API in plain JSON, through the official client: each within limits of time and bytes, and errors by meaning.

What may pass is UnavailableError, what the API server will not take is RefusedError with its words.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote

import urllib3
import yaml
from kubernetes import client, config
from requests.utils import get_environ_proxies, select_proxy

from splitinference.adapters.failures import in_words
from splitinference.controller.api.group import API_VERSION, KIND, PLURAL
from splitinference.controller.ports import Manifest, RefusedError, UnavailableError

_PAGE = 100
"""Objects of one answer to a list. A node may be 20 kB of JSON, and as Python has it several times that, until what counts is kept."""
_ANSWER_LIMIT_BYTES = 24 * 2**20
"""Of one answer: objects of other tenants may have 1.5 MB each. A list that is longer is asked for in shorter pages."""

_LONGEST_WORDS = 2000
"""Characters of an answer that is no Kubernetes status, such as a proxy's page."""

_CONNECTIONS = 64
"""Kept open: one for each watch, and one for each pass that runs."""

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
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "CustomResourceDefinition": ("/apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    KIND: (f"/apis/{API_VERSION}", PLURAL),
}
_API_VERSIONS = {kind: path.removeprefix("/apis/").removeprefix("/api/") for kind, (path, _) in _PATHS.items()}


def connect(kubeconfig: str | None = None, context: str | None = None) -> client.ApiClient:
    """A client for the cluster that this process runs in, or else for the kubeconfig's current context; for that of `kubeconfig`, or
    for `context`, if given.

    Raises UnavailableError where there is neither. Nothing is tried twice: the next pass is soon.

    From inside the cluster no proxy is used: the API server is a Service there. From outside HTTPS_PROXY and NO_PROXY count, as with
    kubectl. The client's own reading of these variables forgets NO_PROXY. A kubeconfig's `proxy-url` is not read.
    """
    configuration = client.Configuration()
    inside = kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ
    try:
        if inside:
            config.load_incluster_config(configuration)
        else:
            config.load_kube_config(kubeconfig, context, client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise UnavailableError(f"not in a cluster, and there is no usable kubeconfig: {error}") from error
    configuration.proxy = None if inside else select_proxy(configuration.host, get_environ_proxies(configuration.host))
    configuration.retries = False
    configuration.connection_pool_maxsize = _CONNECTIONS
    return client.ApiClient(configuration)


def current_namespace(kubeconfig: str | None = None, context: str | None = None) -> str:
    """The namespace of the kubeconfig's current context, or of `context`; `default` where it has none."""
    try:
        known, found = config.list_kube_config_contexts(kubeconfig)
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return "default"
    if context is not None:
        found = next((one for one in known if one.get("name") == context), {})
    return str((found.get("context") or {}).get("namespace") or "default")


class Api:
    """May be used from many threads."""

    def __init__(self, api: client.ApiClient, timeout_seconds: float, before_write: Callable[[], None] = lambda: None) -> None:
        """`before_write` raises UnavailableError where nothing may be changed now."""
        self._api = api
        self._timeout = timeout_seconds
        self._before_write = before_write

    def _list(self, path: str, kind: str, **query: str) -> list[Manifest]:
        return [item for page, _ in self._pages(path, kind, **query) for item in page]

    def _pages(self, path: str, kind: str, **query: str) -> Iterator[tuple[list[Manifest], str]]:
        """All objects, page by page, each with the version of the list."""
        # Lists leave out what all of their items are; a caller should not need to know where an object came from.
        stamp = {"apiVersion": api_version(kind), "kind": kind}
        page: dict[str, str] = {}
        limit = _PAGE
        while True:
            try:
                answer = self._call("GET", path, query={**query, "limit": str(limit), **page})
            except NotFoundError as error:
                raise UnavailableError(f"{path} is not known to the API server") from error
            except _TooLongError:
                if limit == 1:
                    raise
                limit = max(1, limit // 4)
                continue
            about = answer.get("metadata") or {}
            yield [stamp | item for item in answer.get("items") or ()], str(about.get("resourceVersion", ""))
            if not about.get("continue"):
                return
            page = {"continue": str(about["continue"])}

    def _get(self, path: str) -> Manifest | None:
        try:
            return dict(self._call("GET", path))
        except NotFoundError:
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
        accept: str = "application/json",
        stream_seconds: float | None = None,
    ) -> Any:
        """The answer as JSON; as text if `raw`; an open stream that may be silent for `stream_seconds` if that is given."""
        if method != "GET":
            self._before_write()
        headers = {"Accept": "application/json, */*" if raw else accept}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            answer = self._api.call_api(
                path,
                method,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                response_type="object",
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _preload_content=False,
                _request_timeout=(self._timeout, stream_seconds or self._timeout),
            )
            if stream_seconds is not None:
                return answer
            data = _whole(answer, path)
            return data.decode("utf-8", "replace") if raw else json.loads(data)
        except client.ApiException as error:
            raise _meaning(error, method, path) from error
        except ValueError as error:
            raise UnavailableError(f"the API server answered {method} {path} with something that is not JSON") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(f"the API server did not answer {method} {path}: {in_words(error)}") from error


class NotFoundError(RefusedError):
    """404."""


class AlreadyThereError(RefusedError):
    """409 AlreadyExists."""


class ConflictError(UnavailableError):
    """409 Conflict: the object is another, or another version, than the one that was meant."""


class _TooLongError(UnavailableError):
    """An answer that is longer than may be kept in memory."""


def _whole(answer: urllib3.HTTPResponse, path: str) -> bytes:
    """The body of an answer, which is given back to the pool. Raises _TooLongError before it is all in memory."""
    data = bytearray()
    try:
        for block in answer.stream(1 << 18):
            data += block
            if len(data) > _ANSWER_LIMIT_BYTES:
                answer.close()
                raise _TooLongError(f"the API server's answer to {path} is longer than {_ANSWER_LIMIT_BYTES} bytes")
    finally:
        answer.release_conn()
    return bytes(data)


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
            return NotFoundError(message)
        case 409 if reason == "AlreadyExists":
            return AlreadyThereError(message)
        case 409:
            return ConflictError(f"{path} was changed meanwhile: {message}")
        case 422 if "metadata.uid" in message and "immutable" in message:  # an apply to an object that was replaced since it was read
            return ConflictError(f"{path} was changed meanwhile: {message}")
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
        body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else error.body
        return "", str(body or error.reason)[:_LONGEST_WORDS]
