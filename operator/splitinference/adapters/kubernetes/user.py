"""The Kubernetes API as a person uses it: by a context of a kubeconfig, with the rights of that person."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import urllib3
import yaml
from kubernetes import client, config

from splitinference.adapters.kubernetes.api import NotFoundError, api_path, connect
from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.ports import Manifest, RefusedError, UnavailableError

_MERGE = "application/merge-patch+json"
_BROKEN = (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError, IndexError)
"""What a kubeconfig that is not one makes the client raise."""


def connect_user(kubeconfig: str | None, context: str | None) -> client.ApiClient:
    """A client for the context. Raises UnavailableError with what is wrong with the kubeconfig."""
    try:
        return connect(kubeconfig, context)
    except UnavailableError:
        raise
    except _BROKEN as error:
        where = kubeconfig or "KUBECONFIG or ~/.kube/config"
        raise UnavailableError(f"the kubeconfig ({where}) cannot be used: {' '.join(str(error).split())[:200]}") from error


def contexts(kubeconfig: str | None) -> list[str]:
    """Names of the kubeconfig's contexts; none where it cannot be read."""
    try:
        found, _ = config.list_kube_config_contexts(kubeconfig)
    except _BROKEN:
        return []
    return [str(context["name"]) for context in found]


class UserCluster(KubeCluster):
    """Reads and small writes for the command line."""

    def in_namespace(self, kind: str, namespace: str, selector: str = "") -> Sequence[Manifest]:
        """Objects of a kind in one namespace, or in all ("")."""
        return self._list(api_path(kind, namespace), kind, **({"labelSelector": selector} if selector else {}))

    def namespaces(self) -> Sequence[str]:
        """Names of all namespaces."""
        return [str(found["metadata"]["name"]) for found in self._call("GET", "/api/v1/namespaces").get("items") or ()]

    def node(self, name: str) -> Manifest | None:
        """One node; None if there is none."""
        return self._get(api_path("Node", "", name))

    def answers(self, path: str) -> bool:
        """Whether the API server knows this path."""
        try:
            self._call("GET", path)
        except NotFoundError:
            return False
        return True

    def version(self) -> str:
        """The API server's version, such as v1.34.4."""
        return str(self._call("GET", "/version").get("gitVersion", ""))

    def server_date(self) -> tuple[str, float]:
        """The Date header of an answer and the seconds that the answer took."""
        began = time.monotonic()
        try:
            answer = self._api.call_api(
                "/version", "GET", auth_settings=["BearerToken"], response_type="object", _preload_content=False,
                _return_http_data_only=True, _request_timeout=self._timeout,
            )  # fmt: skip
        except (client.ApiException, urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(f"the API server did not answer GET /version: {error}") from error
        answer.read()
        answer.release_conn()
        return str(answer.headers.get("Date", "")), time.monotonic() - began

    def may(self, verb: str, group: str, resource: str, namespace: str = "", subresource: str = "") -> bool:
        """Whether the user may do this, by a SelfSubjectAccessReview."""
        attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, "subresource": subresource}
        kind = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        body = {**kind, "spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}}}
        answer = self._call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=body)
        return bool((answer.get("status") or {}).get("allowed"))

    def me(self) -> str:
        """The user's name as the API server has it; empty where it does not say."""
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        try:
            answer = self._call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", body=kind)
        except (RefusedError, UnavailableError):
            return ""
        return str(((answer.get("status") or {}).get("userInfo") or {}).get("username", ""))

    def patch(self, kind: str, namespace: str, name: str, change: Mapping[str, Any], version: str = "") -> Manifest:
        """Merge-patch an object; with `version` only if it is still as it was read. Raises RefusedError, UnavailableError."""
        body = dict(change)
        if version:
            body["metadata"] = {**(body.get("metadata") or {}), "resourceVersion": version}
        found: Manifest = self._call(
            "PATCH", api_path(kind, namespace, name), body=body, content_type=_MERGE, query={"fieldManager": "kubectl-split"}
        )
        return found

    def log_lines(self, namespace: str, pod: str, query: Mapping[str, str], silent_seconds: float | None) -> Iterator[bytes]:
        """The lines of a container's log. With `silent_seconds` it stays open, and ends after so long a silence."""
        path = api_path("Pod", namespace, pod) + "/log"
        answer = self._call("GET", path, query=query, accept="*/*", stream_seconds=silent_seconds or self._timeout)
        rest = b""
        try:
            for block in answer.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
            if rest:
                yield rest
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise UnavailableError(f"the log of {pod} ended: {error}") from error
        finally:
            answer.close()
            answer.release_conn()
