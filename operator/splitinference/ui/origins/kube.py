"""The cluster, live: watches of nodes, pods and SplitInferences, Prometheus now and then, and reviews of tokens and rights."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kubernetes import client

from splitinference.adapters.kubernetes.api import Api
from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.adapters.kubernetes.cluster import WatchedCluster
from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.adapters.promql.queries import Query
from splitinference.controller.api.group import GROUP
from splitinference.controller.cluster_state.figures.node_benchmark import STORE, Records, read_store
from splitinference.controller.cluster_state.figures.node_metrics import Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.cluster_state.node_capacity import Standing
from splitinference.controller.cluster_state.snapshot import Picture
from splitinference.controller.ports import Manifest, RefusedError, Samples, UnavailableError
from splitinference.settings import Settings
from splitinference.ui.access import Identity
from splitinference.ui.origins.sources import Objects, basis_from, document_of
from splitinference.ui.page.document import Document
from splitinference.ui.page.resources import Load
from splitinference.ui.questions.asked import Basis, UnanswerableError

TIMEOUT_SECONDS = 5.0
METRICS_SECONDS = 5.0
"""Prometheus has nothing newer sooner."""
RIGHTS_SECONDS = 60.0
OLDEST_SECONDS = 60.0
"""Counts of requests that are older say nothing of now."""
_KINDS = {"splitinferences": GROUP, "nodes": "", "pods": ""}
_RUNNING, _WAITING = "splitinference_gateway_running_sequences", "splitinference_gateway_queue_depth"


class Reviews(Api):
    """Asks the API server who somebody is and what he may do."""

    def may_i(self, verb: str, resource: str, namespace: str = "") -> bool:
        """Whether this process itself may do this. Raises UnavailableError."""
        about = _attributes(verb, resource, namespace)
        return self._allowed("selfsubjectaccessreviews", {"resourceAttributes": about})

    def may(self, who: Identity, verb: str, resource: str, namespace: str = "") -> bool:
        """Whether somebody may do this. Raises UnavailableError and RefusedError."""
        spec: dict[str, Any] = {"resourceAttributes": _attributes(verb, resource, namespace), "user": who.user, "groups": list(who.groups)}
        if who.uid:
            spec["uid"] = who.uid
        if who.extra:
            spec["extra"] = {key: list(values) for key, values in who.extra.items()}
        return self._allowed("subjectaccessreviews", spec)

    def who(self, token: str, audience: str) -> Identity | None:
        """Whose token this is; None where it is nobody's. Raises UnavailableError and RefusedError."""
        spec: dict[str, Any] = {"token": token, **({"audiences": [audience]} if audience else {})}
        answer = self._call(
            "POST",
            "/apis/authentication.k8s.io/v1/tokenreviews",
            body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec},
        )
        status = answer.get("status") or {}
        if status.get("authenticated") is not True or (audience and audience not in (status.get("audiences") or ())):
            return None
        user = status.get("user") or {}
        extra = {str(key): tuple(map(str, values)) for key, values in (user.get("extra") or {}).items()}
        return Identity(str(user.get("username", "")), tuple(map(str, user.get("groups") or ())), str(user.get("uid", "")), extra)

    def _allowed(self, plural: str, spec: Mapping[str, Any]) -> bool:
        kind = {"selfsubjectaccessreviews": "SelfSubjectAccessReview", "subjectaccessreviews": "SubjectAccessReview"}[plural]
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = self._call("POST", f"/apis/authorization.k8s.io/v1/{plural}", body=body)
        return (answer.get("status") or {}).get("allowed") is True


def _attributes(verb: str, resource: str, namespace: str) -> dict[str, str]:
    found = {"verb": verb, "resource": resource, "group": _KINDS[resource]}
    return {**found, "namespace": namespace} if namespace else found


class PageMetrics(PrometheusMetrics):
    """Prometheus, with the gateways' own counts of requests."""

    def loads(self) -> Mapping[tuple[str, str], Load]:
        """Running and waiting requests by namespace and name of the gateway's pod; empty where nobody scrapes gateways."""
        running, waiting = (self._ask(_of_pods(name)) for name in (_RUNNING, _WAITING))
        pods = {name for samples in (running, waiting) for name in samples.by_name}
        found = {}
        for name in pods:
            namespace, _, pod = name.partition("/")
            found[namespace, pod] = Load(_count(running, name), _count(waiting, name))
        return found


def _of_pods(metric: str) -> Query:
    """A metric of gateways by pod; an old sample is none."""
    by = "max by (namespace, pod)"
    return Query(value=f"{by} ({metric})", age=f"{by} (time() - timestamp({metric}))", by=("namespace", "pod"))


def _count(samples: Samples, name: str) -> int | None:
    sample = samples.by_name.get(name)
    if sample is None or sample.value is None or not 0 <= sample.value < 1e9 or not 0 <= sample.age_seconds <= OLDEST_SECONDS:
        return None
    return int(sample.value)


class LiveCluster:
    """Implements `Source`. What its account may not list is left out, with a note that says which right is missing."""

    def __init__(self, api: client.ApiClient, settings: Settings, namespaces: Sequence[str] = (), fallback: str = "") -> None:
        """`namespaces`: those to show, none means all; `fallback`: the one to show where all may not be listed."""
        self._api = api
        self._settings = settings
        self._wanted = tuple(namespaces)
        self._fallback = fallback
        self._reviews = Reviews(api, TIMEOUT_SECONDS)
        # What is read once is not watched.
        self._plain = KubeCluster(api, TIMEOUT_SECONDS, before_write=_never)
        self._cluster: WatchedCluster | None = None
        self._namespaces: tuple[str, ...] = ()
        self._rights: tuple[float, Mapping[str, bool]] | None = None
        self._metrics = PageMetrics(settings)
        self._measured: tuple[float, Measured, Mapping[tuple[str, str], Load]] = (float("-inf"), Measured(), {})
        self._records: tuple[float, Records] = (float("-inf"), {})
        self._seen: tuple[Objects, Picture] | None = None

    def read(self) -> Document:
        """The newest state of the watches."""
        may, notes = self._may(), []
        if not may["splitinferences"]:
            where = f"in the namespace {self._wanted[0]}" if len(self._wanted) == 1 else "in all namespaces"
            raise RefusedError(
                f"This account may not list and watch SplitInferences {where}. Ask for the right, or name a namespace with -n."
            )
        cluster = self._watched()
        resources = cluster.split_inferences()
        nodes = cluster.nodes() if may["nodes"] else ()
        pods = cluster.pods() if may["pods"] else ()
        if self._namespaces and not self._wanted:
            notes.append(f"This account may not list SplitInferences in all namespaces, so the page shows {self._namespaces[0]} alone.")
        missing = [kind for kind in ("nodes", "pods") if not may[kind]]
        if missing:
            notes.append(f"This account may not list and watch {' and '.join(missing)} of the cluster, so their figures are not known.")
        measured, loads = self._read_metrics(nodes, pods)
        if measured.problem:
            notes.append(f"The use of nodes is not known: {measured.problem}.")
        objects = Objects(datetime.now(UTC), resources, nodes, pods, measured, loads, self._read_records() if nodes else {}, tuple(notes))
        before: Standing | None = self._seen[1].standing if self._seen else None
        document, picture = document_of(objects, self._settings, before)
        self._seen = objects, picture
        return document

    def basis(self, key: str) -> Basis:
        """From the last look."""
        if self._seen is None:
            raise UnanswerableError("The cluster has not been read yet. Try again in a moment.")
        objects, picture = self._seen

        def kept(namespace: str, name: str) -> Manifest | None:
            try:
                return self._plain.get("ConfigMap", namespace, name)
            except RefusedError as error:
                raise UnanswerableError(f"The page may not read the model's profile, the ConfigMap {namespace}/{name}: {error}") from error

        return basis_from(objects, picture, key, self._settings, kept)

    def close(self) -> None:
        """End the watches."""
        if self._cluster is not None:
            self._cluster.stop()

    def _may(self) -> Mapping[str, bool]:
        """What this account may list and watch. Asked again now and then, as rights change."""
        now = time.monotonic()
        if self._rights is None or now - self._rights[0] > RIGHTS_SECONDS:
            namespaces = self._wanted
            resources = all(self._both("splitinferences", namespace) for namespace in namespaces or ("",))
            if not resources and not namespaces and self._fallback and self._both("splitinferences", self._fallback):
                resources, namespaces = True, (self._fallback,)
            if namespaces != self._namespaces:
                self.close()
                self._cluster, self._namespaces = None, namespaces
            found = {"splitinferences": resources, **{kind: self._both(kind) for kind in ("nodes", "pods")}}
            self._rights = now, found
        return self._rights[1]

    def _both(self, resource: str, namespace: str = "") -> bool:
        return all(self._reviews.may_i(verb, resource, namespace) for verb in ("list", "watch"))

    def _watched(self) -> WatchedCluster:
        if self._cluster is None:
            self._cluster = WatchedCluster(
                self._api, TIMEOUT_SECONDS, self._namespaces, lambda *_: None, lambda _: None, before_write=_never
            )
        return self._cluster

    def _read_metrics(self, nodes: Sequence[Manifest], pods: Sequence[Manifest]) -> tuple[Measured, Mapping[tuple[str, str], Load]]:
        now = time.monotonic()
        if now - self._measured[0] >= METRICS_SECONDS:
            measured = read_metrics(self._metrics, Directory(nodes, pods, self._settings.operator_namespace), self._settings)
            self._measured = time.monotonic(), measured, {} if measured.problem else self._metrics.loads()
        return self._measured[1], self._measured[2]

    def _read_records(self) -> Records:
        """What the operator has measured of nodes; nothing where that may not be read."""
        now = time.monotonic()
        if now - self._records[0] > RIGHTS_SECONDS:
            try:
                found = read_store(self._plain.get("ConfigMap", self._settings.operator_namespace, STORE))
            except (RefusedError, UnavailableError):
                found = {}
            self._records = now, found
        return self._records[1]


def _never() -> None:
    raise UnavailableError("the page changes nothing")
