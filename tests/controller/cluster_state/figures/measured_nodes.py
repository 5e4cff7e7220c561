"""A cluster whose nodes are measured, and pods that end as a test says."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from splitinference.controller.cluster_state.figures.node_benchmark import (
    MEASURE,
    STORE,
)
from splitinference.controller.cluster_state.node_capacity import NOBODY, ground_of
from splitinference.controller.ports import Listing, Manifest, UnavailableError
from splitinference.controller.reconcile.upkeep.node_measuring import Measuring
from splitinference.settings import Settings
from tests.controller import world
from tests.controller.objects import listed

OWN = "splitinference-system"


SETTINGS = Settings(measurements_per_hour=3, core_gflops=20, core_memory_bandwidth_gbps=5)


LABELS = {"splitinference.dev/compute-gflops": "100", "splitinference.dev/memory-bandwidth-gbps": "20"}


SAID = {
    "v": 1,
    "bfloat16": {"gflops": 200.0, "gbps": 9.0, "launch_ms": 0.4},
    "float32": {"gflops": 60.0, "gbps": 8.0},
    "threads": 2,
    "cores": 2.0,
    "share": 0.9,
    "cpu": "A Processor",
}


def a_node(name: str, **labels: str) -> dict[str, Any]:
    node = world.a_node(name, **labels)
    node["metadata"]["uid"] = f"uid-{name}"
    node["status"]["nodeInfo"] = {"machineID": f"m-{name}", "kernelVersion": "6.1", "architecture": "amd64"}
    return node


@dataclass
class Cluster:
    """Nodes, pods and the operator's own namespace, in which pods that measure end as the test says."""

    nodes_there: dict[str, dict[str, Any]]
    pods_there: list[Manifest] = field(default_factory=list)
    measuring: dict[str, dict[str, Any]] = field(default_factory=dict)
    store: dict[str, Any] | None = None
    down: str = ""
    seconds: float = 0.0
    made: list[str] = field(default_factory=list)

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.seconds)

    def nodes(self) -> Listing:
        return listed(*self.nodes_there.values())

    def pods(self) -> Listing:
        return listed(*self.pods_there)

    def owned(self, kind: str, namespace: str, instance: str) -> list[Manifest]:
        assert (kind, namespace, instance) == ("Pod", OWN, MEASURE)
        return list(self.measuring.values())

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        assert (kind, namespace, name) == ("ConfigMap", OWN, STORE)
        if self.down:
            raise UnavailableError(self.down)
        return self.store

    def apply(self, manifest: Manifest) -> None:
        self.store = json.loads(json.dumps(manifest))

    def create(self, manifest: Manifest) -> None:
        pod = copy.deepcopy(dict(manifest))
        pod["metadata"]["creationTimestamp"] = self.now().isoformat()
        self.measuring[pod["metadata"]["name"]] = pod
        self.made.append(self.node_of(pod))
        assert len(self.measuring) == 1, "one at a time"

    def delete(self, kind: str, namespace: str, name: str) -> None:
        del self.measuring[name]

    @staticmethod
    def node_of(pod: Mapping[str, Any]) -> str:
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        return str(terms[0]["matchFields"][0]["values"][0])

    def end(self, message: str = json.dumps(SAID), phase: str = "Succeeded") -> None:
        for pod in self.measuring.values():
            state = {"terminated": {"message": message, "exitCode": 0 if phase == "Succeeded" else 1}}
            pod["status"] = {"phase": phase, "containerStatuses": [{"state": state, "imageID": "registry/x@sha256:" + "a" * 64}]}


def a_cluster(*nodes: dict[str, Any], **more: Any) -> Cluster:
    return Cluster({node["metadata"]["name"]: node for node in nodes}, **more)


def measuring(cluster: Cluster, settings: Settings = SETTINGS) -> Measuring:
    return Measuring(cluster, cluster, cluster, settings)


def looks(cluster: Cluster, measurer: Measuring, count: int = 8, message: str = json.dumps(SAID), phase: str = "Succeeded") -> None:
    for _ in range(count):
        measurer.look()
        cluster.end(message, phase)
        cluster.seconds += 2


def ground(node: Manifest) -> Any:
    return ground_of(node, (), NOBODY, SETTINGS)
