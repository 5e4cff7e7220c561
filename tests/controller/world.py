"""The pretend cluster in time: pods get scheduled, run and get ready, and what stories say of them; and the operator over it."""

import hashlib
import json
import zlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.controller.cluster_state.pods import is_over, node_of, requested, requested_bytes, requested_millicores
from splitinference.controller.manifests.pod_parts import labels_asked
from splitinference.controller.ports import Manifest, Pending, Unreadable
from splitinference.controller.reconcile.one_pass import Looked
from splitinference.controller.reconcile.reconcile import Reconciler
from splitinference.core.values.profile import Profile
from tests.controller.objects import MIB, NAMESPACE, a_body, a_node, is_ready, ready_node, seen_traffic
from tests.controller.pretend import SETTINGS, KilledError, Pretend
from tests.core.planning import Exhaustive, a_profile

__all__ = ["MIB", "NAMESPACE", "SETTINGS", "KilledError", "Operator", "World", "a_body", "a_node", "is_ready", "seen_traffic"]


_WAITING = (("PodScheduled", "True"), ("Ready", "False"))


@dataclass
class World(Pretend):
    """The cluster and everything else outside. `step` makes time pass."""

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
            owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": name, "uid": f"rs-{name}", "controller": True}
            about = {"name": name, "namespace": NAMESPACE, "labels": labels, "ownerReferences": [owner]}
            pod = {"kind": "Pod", "metadata": about, "spec": template["spec"]}
            self.objects[key] = self._born(pod)
        spec = self.objects[key]["spec"]
        asked = labels_asked(spec).items()
        fitting = (name for name, node in self.nodes.items() if ready_node(node) and asked <= node["metadata"]["labels"].items())
        if "nodeName" not in spec and (node := next(fitting, None)) is not None:
            spec["nodeName"] = node

    def _run(self, pod: dict[str, Any]) -> None:
        node = node_of(pod)
        mounted = [volume["secret"]["secretName"] for volume in pod["spec"].get("volumes", ()) if volume["name"] == "tls"]
        if pod["status"]["phase"] == "Pending" and not all(("Secret", NAMESPACE, name) in self.objects for name in mounted):
            pod["spec"].setdefault("nodeName", node)
            return  # the kubelet waits for the Secret
        if node not in self.nodes or not ready_node(self.nodes[node]):
            pod["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
            return
        if "nodeName" not in pod["spec"]:
            allocatable = self.nodes[node]["status"]["allocatable"]
            there = [p for p in self._all("Pod") if p["spec"].get("nodeName") == node and not is_over(p)]
            short = [
                what
                for what, has, asked in (
                    ("memory", int(allocatable["memory"][:-2]) * MIB, sum(map(requested_bytes, [*there, pod]))),
                    ("cpu", 1000 * float(allocatable["cpu"]), sum(map(requested_millicores, [*there, pod]))),
                )
                if asked > has
            ]
            short += [
                what
                for what in (pod["spec"]["containers"][0].get("resources") or {}).get("requests") or {}
                if "/" in what and sum(requested(p, what) for p in [*there, pod]) > int(allocatable.get(what, 0))
            ]
            if node in self.closed:
                short = ["something that only the scheduler knows"]
            if short:
                before = next((c for c in pod["status"]["conditions"] if c["type"] == "PodScheduled"), None)
                pod["status"]["conditions"] = [
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "message": f"0/3 nodes: Insufficient {short[0]}",
                        "lastTransitionTime": before["lastTransitionTime"] if before else stamp(self.now),
                    }
                ]
                return
            pod["spec"]["nodeName"] = node
            pod["bound"] = stamp(self.now)
        if node in self.hinders and pod["metadata"]["labels"].get("app.kubernetes.io/component") == "segment":
            waits = [{"type": kind, "status": value, "lastTransitionTime": pod["bound"]} for kind, value in _WAITING]
            pod["status"] |= {"phase": "Pending", "conditions": waits, **self.hinders[node]}
            return
        if any("waiting" in c["state"] for c in pod["status"].get("containerStatuses", [])):
            del pod["status"]["containerStatuses"]
        own = zlib.crc32(pod["metadata"]["name"].encode())
        pod["status"] |= {
            "phase": "Running",
            "podIP": pod["status"].get("podIP", f"10.{own % 250}.{own // 250 % 250}.1"),
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        pod["status"].setdefault("containerStatuses", [{"name": "segment", "restartCount": 0, "state": {"running": {}}}])

    # --- for stories -----------------------------------------------------------------------------------------------------------------

    def add(self, body: dict[str, Any], profile: Profile | Unreadable | Pending | None = None) -> None:
        self.objects["SplitInference", NAMESPACE, body["metadata"]["name"]] = body
        self.profiles[body["metadata"]["name"]] = profile or a_profile()

    def body(self, name: str = "chat") -> dict[str, Any]:
        return self.objects["SplitInference", NAMESPACE, name]

    def tenant(self, node: str, mib: int = 1, cores: str = "1m") -> None:
        """Another tenant's pod on the node, in the place of the one before."""
        requests = {"memory": f"{mib}Mi", "cpu": cores}
        self.objects["Pod", "others", f"tenant-{node}"] = {
            "kind": "Pod",
            "metadata": {"name": f"tenant-{node}", "namespace": "others", "labels": {}, "uid": f"tenant-{node}"},
            "spec": {"nodeName": node, "containers": [{"name": "work", "resources": {"requests": requests}}]},
            "status": {"phase": "Running", "conditions": []},
        }

    def tenant_gone(self, node: str) -> None:
        """The other tenant's pod has left the node."""
        self.objects.pop(("Pod", "others", f"tenant-{node}"), None)

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
        self.reconciler = Reconciler(self.world.ports(), self.world.settings, self.solver)

    def look(self, name: str = "chat") -> Looked:
        return self.reconciler.reconcile(NAMESPACE, name)

    def run(self, steps: int = 12, *names: str, seconds: float = 5.0) -> None:
        """So many passes with time in between."""
        for _ in range(steps):
            for name in names or ("chat",):
                self.look(name)
            self.world.step(seconds)
