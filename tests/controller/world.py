"""A pretend cluster behind the ports: objects in a dict, pods that get ready when time passes, a gateway that follows its route.

Writes can be counted, and the operator killed before any of them.
"""

import copy
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from splitinference.controller.manifests import Manifests
from splitinference.controller.objects import labels_asked
from splitinference.controller.pods import is_over, node_of, requested_bytes
from splitinference.controller.ports import (
    Failing,
    GatewayReport,
    Manifest,
    ObservedTraffic,
    Pending,
    Percentiles,
    Ports,
    Proof,
    RefusedError,
    RouteState,
    Sample,
    Samples,
    Unreadable,
)
from splitinference.controller.reconcile import Looked, Reconciler
from splitinference.controller.status import stamp
from splitinference.core.profile import Profile
from splitinference.settings import Settings
from tests.core.planning import Exhaustive, a_profile

MIB = 1024 * 1024
NAMESPACE = "team"
SETTINGS = Settings(core_gflops=50.0, core_memory_bandwidth_gbps=1e6, prometheus_url="http://prometheus", gateway_memory="64Mi")


class Killed(BaseException):
    """The operator's process ends here."""


def a_node(name: str, mib: int = 1200, cores: float = 2.0, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {k.replace("__", "/"): v for k, v in labels.items()}, "annotations": {}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": str(cores), "memory": f"{mib}Mi"},
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}],
        },
    }


def a_body(name: str = "chat", created: datetime | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "splitinference.dev/v1alpha1",
        "kind": "SplitInference",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": stamp(created or datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=1)),
        },
        "spec": {
            "model": {"id": "m", "source": {"hostPath": {"path": "/m"}}, "dtype": "float32"},
            "adaptation": {"window": "20s", "cooldown": "60s", "drain": "10s"},
            **spec,
        },
    }


@dataclass
class World:
    """The cluster and everything else outside. `step` makes time pass."""

    nodes: dict[str, dict[str, Any]]
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    profiles: dict[str, Profile | Unreadable | Pending] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    prometheus: str = ""
    in_flight: dict[str, int] = field(default_factory=dict)
    traffic: ObservedTraffic = field(default_factory=ObservedTraffic)
    failing: dict[str, Failing] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    refuse: set[str] = field(default_factory=set)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    killed_after: int | None = None
    proved: list[str] = field(default_factory=list)
    break_first: bool = False
    uids: int = 0
    routes_seen: list[str] = field(default_factory=list)

    # --- the ports -----------------------------------------------------------------------------------------------------------------

    def ports(self) -> Ports:
        return Ports(
            cluster=ClusterOf(self), metrics=self, gateways=Gateways(self), segments=Segments(self), models=Models(self),
            builder=Manifests(SETTINGS), clock=Clock(self), planning=threading.Lock(),
        )  # fmt: skip

    def _write(self, what: str) -> None:
        if self.killed_after is not None:
            if self.killed_after == 0:
                raise Killed
            self.killed_after -= 1
        self.writes.append(what)

    def _all(self, kind: str) -> list[dict[str, Any]]:
        return [copy.deepcopy(found) for (k, _, _), found in self.objects.items() if k == kind]

    def split_inferences(self) -> Sequence[Manifest]:
        return self._all("SplitInference")

    def pods(self) -> Sequence[Manifest]:
        return self._all("Pod")

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        return [
            found
            for found in self._all(kind)
            if found["metadata"]["namespace"] == namespace and found["metadata"]["labels"].get("app.kubernetes.io/instance") == instance
        ]

    def apply(self, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self._write(f"apply {kind} {name}")
        key = kind, manifest["metadata"]["namespace"], name
        there = self.objects.get(key)
        created = there["metadata"]["creationTimestamp"] if there else stamp(self.now)
        self.objects[key] = json.loads(json.dumps(manifest))
        self.objects[key]["metadata"]["creationTimestamp"] = created
        if kind == "ConfigMap":
            self._check_route(manifest)

    def create(self, manifest: Manifest) -> None:
        kind, namespace, name = manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        if kind in self.refuse:
            raise RefusedError("exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4")
        self._write(f"create {kind} {name}")
        self.objects.setdefault((kind, namespace, name), self._born(manifest))

    def _born(self, manifest: Manifest) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(json.dumps(manifest))
        self.uids += 1
        made["metadata"]["uid"] = f"uid-{self.uids}"
        made["status"] = {"phase": "Pending", "conditions": []}
        return made

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self._write(f"delete {kind} {name}")
        found = self.objects.get((kind, namespace, name))
        if found is None:
            return
        if kind == "Pod":
            self._check_delete(found)
            found["metadata"]["deletionTimestamp"] = stamp(self.now)
        else:
            del self.objects[kind, namespace, name]

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        assert status, "an empty patch was written"
        self._write(f"status {name}")
        found = self.objects.get(("SplitInference", namespace, name))
        if found is not None:
            found["status"] = merged(found.get("status") or {}, json.loads(json.dumps(status)))

    def event(self, about: Manifest, kind: str, reason: str, message: str) -> None:
        self.events.append((kind, reason, message))

    def node_cpu_cores(self) -> Samples:
        if self.prometheus:
            return Samples(problem=self.prometheus)
        return Samples(by_name={name: Sample(value=self.busy.get(name, 0.0) * 2, age_seconds=5) for name in self.nodes})

    def segment_cpu_cores(self) -> Samples:
        running = {f"{p['metadata']['namespace']}/{p['metadata']['name']}": Sample(value=0.0, age_seconds=5) for p in self._all("Pod")}
        return Samples(by_name=running)

    def node_memory_available_bytes(self) -> Samples:
        return Samples()

    def links_mbps(self) -> Samples:
        return Samples()

    def links_rtt_ms(self) -> Samples:
        return Samples()

    # --- what must always hold -------------------------------------------------------------------------------------------------------

    def _check_route(self, config_map: Manifest) -> None:
        route = json.loads(config_map["data"]["route.json"])
        self.routes_seen.append(route["revision"])
        for pipeline in route["pipelines"]:
            for hop in pipeline:
                pod = self.objects["Pod", config_map["metadata"]["namespace"], hop["segment"]]
                assert is_ready(pod), f"the route names {hop['segment']}, which is not ready"
                assert hop["segment"] in self.proved, f"the route names {hop['segment']}, which was never proved"

    def _check_delete(self, pod: Manifest) -> None:
        if self.break_first or not is_ready(pod) or node_of(pod) not in self.nodes or pod["metadata"]["name"] in self.dead:
            return
        instance = pod["metadata"]["labels"]["app.kubernetes.io/instance"]
        assert pod["metadata"]["name"] not in self.serving(instance), "a segment of the serving route was deleted"

    def serving(self, instance: str = "chat") -> list[str]:
        """Names of the serving route's segments."""
        found = self.objects.get(("ConfigMap", NAMESPACE, f"{instance}-route"))
        return [hop["segment"] for p in json.loads(found["data"]["route.json"])["pipelines"] for hop in p] if found else []

    # --- time ------------------------------------------------------------------------------------------------------------------------

    def step(self, seconds: float = 5.0) -> None:
        """Time passes: pods are scheduled, run, get ready; what was deleted is gone; gateways take their route."""
        self.now += timedelta(seconds=seconds)
        for key, thing in list(self.objects.items()):
            owner = ("SplitInference", key[1], thing["metadata"].get("labels", {}).get("app.kubernetes.io/instance", ""))
            if key[0] != "SplitInference" and owner not in self.objects and "ownerReferences" in thing["metadata"]:
                del self.objects[key]
            elif key[0] == "Deployment":
                self._gateway_pod(thing)
        for (kind, namespace, name), pod in list(self.objects.items()):
            if kind != "Pod":
                continue
            if pod["metadata"].get("deletionTimestamp"):
                if node_of(pod) in self.nodes and ready_node(self.nodes[node_of(pod)]):
                    del self.objects[kind, namespace, name]
            elif not is_over(pod) and name not in self.stuck:
                self._run(pod)

    def _gateway_pod(self, deployment: Manifest) -> None:
        content = json.dumps(deployment["spec"]["template"], sort_keys=True)
        name = f"{deployment['metadata']['name']}-{hashlib.sha256(content.encode()).hexdigest()[:5]}"
        for old in [
            key for key in self.objects if key[0] == "Pod" and key[2] != name and key[2].startswith(deployment["metadata"]["name"])
        ]:
            del self.objects[old]  # a rolling update, done
        key = ("Pod", NAMESPACE, name)
        if key not in self.objects:
            template = deployment["spec"]["template"]
            labels = {**deployment["metadata"]["labels"], **(template["metadata"].get("labels") or {})}
            pod = {"kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": template["spec"]}
            self.objects[key] = self._born(pod)
        spec = self.objects[key]["spec"]
        asked = labels_asked(spec).items()
        fitting = (name for name, node in self.nodes.items() if ready_node(node) and asked <= node["metadata"]["labels"].items())
        if "nodeName" not in spec and (node := next(fitting, None)) is not None:
            spec["nodeName"] = node

    def _run(self, pod: dict[str, Any]) -> None:
        node = node_of(pod)
        if node not in self.nodes or not ready_node(self.nodes[node]):
            pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
            return
        if "nodeName" not in pod["spec"]:
            allocatable = int(self.nodes[node]["status"]["allocatable"]["memory"][:-2]) * MIB
            held = sum(requested_bytes(p) for p in self._all("Pod") if p["spec"].get("nodeName") == node and not is_over(p))
            if held + requested_bytes(pod) > allocatable:
                pod["status"]["conditions"] = [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "message": "0/3 nodes: Insufficient memory",
                        "lastTransitionTime": stamp(self.now),
                    }
                ]
                return
            pod["spec"]["nodeName"] = node
        pod["status"] |= {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        pod["status"].setdefault("containerStatuses", [{"name": "segment", "restartCount": 0, "state": {"running": {}}}])

    # --- for stories -----------------------------------------------------------------------------------------------------------------

    def add(self, body: dict[str, Any], profile: Profile | Unreadable | Pending | None = None) -> None:
        self.objects["SplitInference", NAMESPACE, body["metadata"]["name"]] = body
        self.profiles[body["metadata"]["name"]] = profile or a_profile()

    def body(self, name: str = "chat") -> dict[str, Any]:
        return self.objects["SplitInference", NAMESPACE, name]

    def status(self, name: str = "chat") -> dict[str, Any]:
        found: dict[str, Any] = self.body(name).get("status") or {}
        return found

    def condition(self, kind: str, name: str = "chat") -> dict[str, Any]:
        found: dict[str, Any] = next((c for c in self.status(name).get("conditions", []) if c["type"] == kind), {})
        return found

    def placement(self, name: str = "chat") -> str:
        """Where the plan is, in short."""
        return " ".join(f"{s['node']}[{s['start']}:{s['end']}]" for s in self.status(name)["plan"]["segments"])

    def change(self, name: str = "chat", **spec: Any) -> None:
        """The user changes the spec."""
        body = self.body(name)
        body["spec"] = {**body["spec"], **spec}
        body["metadata"]["generation"] += 1

    def gateway_node(self, name: str = "chat") -> str:
        """Where the gateway runs."""
        (pod,) = (p for p in self.owned("Pod", NAMESPACE, name) if p["metadata"]["labels"]["app.kubernetes.io/component"] == "gateway")
        return node_of(pod)

    def segments(self, name: str = "chat") -> list[str]:
        """Segment pods that are there and are not leaving."""
        return sorted(
            p["metadata"]["name"]
            for p in self.owned("Pod", NAMESPACE, name)
            if p["metadata"]["labels"]["app.kubernetes.io/component"] == "segment" and not p["metadata"].get("deletionTimestamp")
        )


@dataclass
class Operator:
    """The operator's process: passes over one world. A new one knows nothing."""

    world: World
    solver: Any = field(default_factory=Exhaustive)

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(self.world.ports(), SETTINGS, self.solver)

    def look(self, name: str = "chat") -> Looked:
        return self.reconciler.reconcile(NAMESPACE, name)

    def run(self, steps: int = 12, *names: str, seconds: float = 5.0) -> None:
        """So many passes with time in between."""
        for _ in range(steps):
            for name in names or ("chat",):
                self.look(name)
            self.world.step(seconds)


@dataclass
class ClusterOf:
    """The cluster's port: all but the nodes are the world's own methods."""

    world: World

    def nodes(self) -> Sequence[Manifest]:
        return [copy.deepcopy(node) for node in self.world.nodes.values()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world, name)


@dataclass
class Gateways:
    world: World

    def routes(self, namespace: str, instance: str) -> GatewayReport | None:
        gateways = (p for p in self.world.owned("Pod", namespace, instance) if p["metadata"]["name"].startswith(f"{instance}-gateway-"))
        pod = next(gateways, None)
        if pod is None or not is_ready(pod):
            return None
        found = self.world.objects.get(("ConfigMap", namespace, f"{instance}-route"))
        revision = json.loads(found["data"]["route.json"])["revision"] if found else None
        routes = {name: RouteState(in_flight=count, state="draining") for name, count in self.world.in_flight.items()}
        return GatewayReport(revision=revision, routes=routes, observed=self.world.traffic, failing=self.world.failing)


@dataclass
class Segments:
    world: World

    def prove(self, namespace: str, segment: str, model: str, pod_ip: str) -> Proof:
        if segment in self.world.dead:
            return Proof(ok=False, dead=True, why=f"{segment} answered 500: the stub is gone")
        if segment in self.world.gone:
            return Proof(ok=False, unreachable=True, why=f"{segment} cannot be reached")
        self.world.proved.append(segment)
        return Proof(ok=True, milliseconds=1.0)


@dataclass
class Models:
    world: World

    def profile(self, resource: Manifest) -> Profile | Pending | Unreadable:
        return self.world.profiles[resource["metadata"]["name"]]


@dataclass
class Clock:
    world: World

    def now(self) -> datetime:
        return self.world.now


def is_ready(pod: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def ready_node(node: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])


def merged(before: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch, applied."""
    after = dict(before)
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, Mapping):
            after[key] = merged(after[key] if isinstance(after.get(key), dict) else {}, value)
        else:
            after[key] = value
    return after


def seen_traffic(requests: int = 10, per_token: float = 12.0) -> ObservedTraffic:
    figures = Percentiles(p50=per_token, p95=per_token)
    return ObservedTraffic(requests=requests, time_to_first_token_ms=Percentiles(p50=90, p95=120), time_per_output_token_ms=figures)
