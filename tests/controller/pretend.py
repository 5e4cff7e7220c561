"""A pretend cluster behind the ports: objects in a dict, a gateway that follows its route, and rules that no write may break.

Writes can be counted, and the operator killed before any of them.
"""

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.controller.cluster_state.pods import node_of
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.ports import Listing, Manifest, NameTakenError, Pending, Ports, RefusedError, Sample, Samples, Unreadable
from splitinference.controller.trust.ownership import belongs_to, owner_uid, why_taken
from splitinference.core.values.profile import Profile
from splitinference.settings import AllowedToleration, Settings
from splitinference_protocol.report import Failing, ObservedTraffic, Verified
from tests.controller.objects import NAMESPACE, is_ready, listed, merged
from tests.controller.pretend_ports import Authority, Clock, ClusterOf, Gateways, Models, Segments

SETTINGS = Settings(
    core_gflops=50.0,
    core_memory_bandwidth_gbps=1e6,
    prometheus_url="http://prometheus",
    gateway_memory="64Mi",
    allowed_host_paths=("/m", "/models", "/n"),
    allowed_tolerations=(AllowedToleration(operator="Exists"),),
)


class KilledError(BaseException):
    """The operator's process ends here."""


@dataclass
class Pretend:
    """The cluster and everything else outside, as the ports show it, and what must always hold of it."""

    nodes: dict[str, dict[str, Any]]
    settings: Settings = SETTINGS
    objects: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    profiles: dict[str, Profile | Unreadable | Pending] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    prometheus: str = ""
    in_flight: dict[str, int] = field(default_factory=dict)
    held: int = 0
    traffic: ObservedTraffic = field(default_factory=ObservedTraffic)
    failing: dict[str, Failing] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    adapters: dict[str, dict[str, int]] = field(default_factory=dict)  # what segments hold
    adapters_in_flight: dict[str, int] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    stuck: set[str] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    refuse: set[str] = field(default_factory=set)
    told: dict[str, str] = field(default_factory=dict)
    hinders: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[tuple[str, str, str]] = field(default_factory=list)
    writes: list[str] = field(default_factory=list)
    killed_after: int | None = None
    proved: list[str] = field(default_factory=list)
    break_first: bool = False
    uids: int = 0
    issued: int = 0
    routes_seen: list[str] = field(default_factory=list)
    shown: dict[str, dict[Any, dict[str, Any]]] = field(default_factory=dict)
    listed: dict[str, Listing] = field(default_factory=dict)

    # --- the ports -----------------------------------------------------------------------------------------------------------------

    def ports(self) -> Ports:
        return Ports(
            cluster=ClusterOf(self), metrics=self, gateways=Gateways(self), segments=Segments(self), models=Models(self),
            builder=Manifests(self.settings), authority=Authority(self), clock=Clock(self), planning=threading.Lock(),
        )  # fmt: skip

    def _write(self, what: str) -> None:
        if self.killed_after is not None:
            if self.killed_after == 0:
                raise KilledError
            self.killed_after -= 1
        self.writes.append(what)

    def _all(self, kind: str) -> Listing:
        return self.shown_as(kind, {key: found for key, found in self.objects.items() if key[0] == kind})

    def shown_as(self, kind: str, there: Mapping[Any, dict[str, Any]]) -> Listing:
        """Copies of what is there, as watches have it: of the same generation while nothing changed, so that what is kept by it is kept."""
        before = self.shown.get(kind, {})
        self.shown[kind] = {
            key: before[key] if key in before and before[key] == found else copy.deepcopy(found) for key, found in there.items()
        }
        now, last = tuple(self.shown[kind].values()), self.listed.get(kind)
        if last is None or now != last:
            self.listed[kind] = listed(*now)
        return self.listed[kind]

    def split_inferences(self) -> Listing:
        return self._all("SplitInference")

    def pods(self) -> Listing:
        return self._all("Pod")

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        return [
            found
            for found in self._all(kind)
            if found["metadata"]["namespace"] == namespace
            and found["metadata"].get("labels", {}).get("app.kubernetes.io/instance") == instance
            and belongs_to(found, instance)
        ]

    def pod_warning(self, _: str, uid: str) -> str:
        return next((text for name, text in self.told.items() for pod in self._all("Pod") if _is(pod, name, uid)), "")

    def apply(self, manifest: Manifest) -> None:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self._write(f"apply {kind} {name}")
        key = kind, manifest["metadata"]["namespace"], name
        there = self.objects.get(key)
        if there is not None and owner_uid(there) != owner_uid(manifest):
            raise NameTakenError(why_taken(there, manifest))
        created = there["metadata"]["creationTimestamp"] if there else stamp(self.now)
        self.objects[key] = json.loads(json.dumps(manifest))
        self.objects[key]["metadata"]["creationTimestamp"] = created
        if kind == "ConfigMap":
            self._check_route(manifest)

    def apply_unread(self, manifest: Manifest) -> None:
        there = self.objects.get(("Secret", manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
        if there is not None and there["metadata"].get("ownerReferences") != manifest["metadata"]["ownerReferences"]:
            raise RefusedError(f"NameTaken: Secret {manifest['metadata']['name']} exists")
        self.apply(manifest)

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

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any], version: str = "") -> str:
        assert status, "an empty patch was written"
        self._write(f"status {name}")
        found = self.objects.get(("SplitInference", namespace, name))
        if found is not None:
            found["status"] = merged(found.get("status") or {}, json.loads(json.dumps(status)))
        return version

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

    def node_gpu_used(self) -> Samples:
        return Samples()

    def node_gpu_used_by_others(self) -> Samples:
        return Samples()

    def node_watts(self) -> Samples:
        return Samples()

    def node_cpu_waiting(self) -> Samples:
        return Samples()

    def node_cpu_limited(self) -> Samples:
        return Samples()

    def segment_cpu_waiting(self) -> Samples:
        return Samples()

    def segment_cpu_throttled(self) -> Samples:
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


def _is(pod: Manifest, node: str, uid: str) -> bool:
    return pod["metadata"].get("uid") == uid and node_of(pod) == node
