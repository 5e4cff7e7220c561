"""Nodes are measured one at a time, within a budget, never where a segment runs; and what is measured counts, unless a label says else."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.cluster_state.figures.node_benchmark import (
    MEASURE,
    POD_SECONDS,
    STORE,
    UNPLACED_SECONDS,
    Record,
    There,
    next_step,
    pending,
    read_figures,
    read_store,
    store_object,
    system_of,
    with_figures,
)
from splitinference.controller.cluster_state.node_capacity import NOBODY, ground_of
from splitinference.controller.ports import Listing, Manifest, RefusedError, UnavailableError
from splitinference.controller.reconcile.upkeep.node_measuring import BUSY_SECONDS, IDLE_SECONDS, Measuring
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from splitinference.settings import Settings
from tests.controller import world
from tests.controller.cluster_state.test_snapshot import a_pod
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


def test_nodes_are_measured_one_after_the_other_and_the_planner_sees_it():
    cluster = a_cluster(a_node("a"), a_node("b"))
    measurer = measuring(cluster)
    assert pending(cluster.nodes(), {}, SETTINGS) == ("a", "b")
    looks(cluster, measurer)
    assert cluster.made == ["a", "b"]
    assert not cluster.measuring, "nothing is left behind"
    shown = measurer.shown(cluster.nodes())
    for node in shown:
        found = ground(node).node
        assert (found.flops_per_s, found.memory_bandwidth_bytes_per_s, found.figures) == (200e9, 9e9, "measured")
        assert found.flops_by_dtype == {"float32": 60e9}
        assert (found.efficiency.prefill.launch_ms, found.efficiency.decode.launch_ms) == (0.4, 0.4)
    assert measurer.pending(cluster.nodes()) == ()


def test_those_of_which_nothing_is_known_come_first_and_labels_win():
    labelled = a_node("a", **LABELS)
    cluster = a_cluster(labelled, a_node("b"))
    measurer = measuring(cluster)
    assert measurer.pending(cluster.nodes()) == ("b",), "nobody waits for a node whose labels say it"
    looks(cluster, measurer)
    assert cluster.made == ["b", "a"]
    found = ground(measurer.shown(cluster.nodes())[0])
    assert (found.node.flops_per_s, found.node.memory_bandwidth_bytes_per_s, found.node.figures) == (100e9, 20e9, "labelled")
    assert found.notes == ("a label says 20 GB/s of node a, where 9 were measured: the label is used",)


def test_a_label_for_one_of_the_two_counts_for_that_one():
    node = a_node("a", **{"splitinference.dev/compute-gflops": "150"})
    cluster = a_cluster(node)
    measurer = measuring(cluster)
    looks(cluster, measurer)
    (found,) = [ground(shown).node for shown in measurer.shown(cluster.nodes())]
    assert (found.flops_per_s, found.memory_bandwidth_bytes_per_s, found.figures) == (150e9, 9e9, "labelled and measured")


def test_without_label_and_measurement_it_is_assumed():
    found = ground(a_node("a")).node
    assert (found.flops_per_s, found.figures) == (40e9, "assumed")


GPU_NODE = {"splitinference.dev/processor": "gpu"}


@pytest.mark.parametrize("label", ["nvidia.com/gpu.product", "splitinference.dev/processor-product"])
def test_a_gpu_of_a_known_product_has_the_catalogues_figures(label: str):
    found = ground(a_node("a", **GPU_NODE, **{label: "NVIDIA-L4"})).node
    assert (found.flops_per_s, found.memory_bandwidth_bytes_per_s, found.figures) == (121e12, 300e9, "catalogue")
    assert 0.3 < found.efficiency.prefill.compute < 0.6
    assert "taken from vllm on NVIDIA-L4" in found.efficiency.source
    assert (found.efficiency.prefill.spread, found.efficiency.decode.spread) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("labels", "basis"),
    [
        ({**GPU_NODE, "nvidia.com/gpu.product": "NVIDIA-L4", **LABELS}, "labelled"),
        ({**GPU_NODE, "nvidia.com/gpu.product": "NVIDIA-L4", "splitinference.dev/compute-gflops": "100"}, "assumed and labelled"),
        ({**GPU_NODE, "nvidia.com/gpu.product": "Abacus"}, "assumed"),
        ({"nvidia.com/gpu.product": "NVIDIA-L4"}, "assumed"),
    ],
)
def test_labels_win_over_the_catalogue_and_where_it_does_not_count_all_of_the_figures_is_reached(labels: dict[str, str], basis: str):
    """The last one: a node with GPUs whose segments compute with its CPUs."""
    found = ground(a_node("a", **labels)).node
    assert (found.figures, found.efficiency) == (basis, Efficiency())


def test_what_was_measured_wins_over_the_catalogue():
    node = a_node("a", **{"nvidia.com/gpu.product": "NVIDIA-L4"})
    cluster = a_cluster(node)
    measurer = measuring(cluster)
    looks(cluster, measurer)
    (shown,) = measurer.shown(cluster.nodes())
    shown = {**shown, "metadata": {**shown["metadata"], "labels": {**shown["metadata"]["labels"], **GPU_NODE}}}
    found = ground(shown).node
    assert (found.figures, found.efficiency.decode) == ("measured", PhaseEfficiency(launch_ms=0.4))


LAUNCH = "splitinference.dev/layer-launch-ms"


@pytest.mark.parametrize(
    ("labels", "launch"),
    [
        ({}, 0.4),
        ({"splitinference.dev/compute-gflops": "150"}, 0.4),
        ({LAUNCH: "0.7"}, 0.7),
        ({LAUNCH: "0"}, 0.0),
        ({LAUNCH: "often"}, 0.4),
        ({LAUNCH: "2e4"}, 0.4),
        (LABELS, 0.0),
        ({**LABELS, LAUNCH: "0.7"}, 0.7),
    ],
)
def test_what_a_layer_takes_besides_is_labelled_or_measured_with_the_bandwidth(labels: dict[str, str], launch: float):
    """A label's bandwidth may be that of whole layers, launches included: what was measured of launches would count twice."""
    cluster = a_cluster(a_node("a", **labels))
    measurer = measuring(cluster)
    looks(cluster, measurer)
    (shown,) = measurer.shown(cluster.nodes())
    found = ground(shown)
    assert found.node.efficiency.decode == PhaseEfficiency(launch_ms=launch)
    assert any(LAUNCH in note for note in found.notes) is (labels.get(LAUNCH) in {"often", "2e4"})


def test_figures_of_an_older_image_have_no_launch_and_nonsense_is_refused():
    older = read_figures(json.dumps({**SAID, "bfloat16": {"gflops": 1.0, "gbps": 1.0}}))
    assert isinstance(older, Record)
    assert older.rates["bfloat16"].launch_ms == 0
    for nonsense in (-1, 1e5, "x"):
        assert isinstance(read_figures(json.dumps({**SAID, "bfloat16": {"gflops": 1.0, "gbps": 1.0, "launch_ms": nonsense}})), str)


def test_where_a_segment_runs_nothing_is_measured():
    cluster = a_cluster(a_node("a"), pods_there=[a_pod("s", "a", instance="chat")])
    measurer = measuring(cluster)
    looks(cluster, measurer)
    assert cluster.made == []
    cluster.pods_there = []
    looks(cluster, measurer)
    assert cluster.made == ["a"]


def test_no_more_than_the_budget_in_an_hour():
    cluster = a_cluster(*(a_node(name) for name in "abcde"))
    measurer = measuring(cluster)
    looks(cluster, measurer, 20)
    assert cluster.made == ["a", "b", "c"]
    cluster.seconds += 3600
    looks(cluster, measurer, 20)
    assert cluster.made == ["a", "b", "c", "d", "e"]


def test_a_restart_measures_nothing_twice_and_takes_what_was_under_way():
    cluster = a_cluster(a_node("a"), a_node("b"))
    looks(cluster, measuring(cluster), 2)
    measuring(cluster).look()
    for _ in range(8):
        measurer = measuring(cluster)
        measurer.look()
        cluster.end()
    assert cluster.made == ["a", "b"]
    assert {node.get("measured") is not None for node in measurer.shown(cluster.nodes())} == {True}


@pytest.mark.parametrize(
    "change",
    [
        lambda node: node["status"]["nodeInfo"].update(kernelVersion="6.2"),
        lambda node: node["status"]["nodeInfo"].update(machineID="other"),
        lambda node: node["status"]["allocatable"].update(cpu="4"),
        lambda node: node["metadata"].update(uid="another"),
    ],
)
def test_another_system_is_measured_anew_and_its_old_figures_do_not_count(change: Any):
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)
    looks(cluster, measurer)
    changed = copy.deepcopy(cluster.nodes_there["a"])
    change(changed)
    cluster.nodes_there["a"] = changed
    assert ground(measurer.shown(cluster.nodes())[0]).node.figures == "assumed"
    looks(cluster, measurer)
    assert cluster.made == ["a", "a"]
    assert ground(measurer.shown(cluster.nodes())[0]).node.figures == "measured"


def test_it_is_repeated_after_a_while_and_records_of_nodes_that_are_gone_go():
    cluster = a_cluster(a_node("a"), a_node("b"))
    measurer = measuring(cluster)
    looks(cluster, measurer)
    cluster.seconds += 31 * 86400
    del cluster.nodes_there["b"]
    looks(cluster, measurer)
    assert cluster.made == ["a", "b", "a"]
    assert set(read_store(cluster.store)) == {"uid-a"}


@pytest.mark.parametrize(
    ("message", "phase", "why"),
    [
        ("Traceback\nImportError: torch", "Failed", "ImportError: torch"),
        ("", "Failed", "wrote no output"),
        (json.dumps({**SAID, "share": 0.02}), "Succeeded", "other work used the node: the measurement got only 2 % of it"),
        (json.dumps({**SAID, "bfloat16": {"gflops": -1, "gbps": 2}}), "Succeeded", "no figures"),
        (json.dumps({**SAID, "float32": {"gflops": float("inf"), "gbps": 2}}), "Succeeded", "no figures"),
        (json.dumps({"share": 1.0}), "Succeeded", "no data type"),
        ("[]", "Succeeded", "no figures"),
    ],
)
def test_a_measurement_that_failed_is_tried_again_later_and_nobody_waits_for_it(message: str, phase: str, why: str):
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)
    looks(cluster, measurer, 4, message, phase)
    assert cluster.made == ["a"]
    (record,) = read_store(cluster.store).values()
    assert (why.replace(" %", "%") in record.why, record.failures) == (True, 1), record.why
    assert measurer.pending(cluster.nodes()) == ()
    assert ground(measurer.shown(cluster.nodes())[0]).node.figures == "assumed"
    cluster.seconds += 601
    looks(cluster, measurer, 4, message, phase)
    assert cluster.made == ["a", "a"]
    cluster.seconds += 601
    looks(cluster, measurer, 4, message, phase)
    assert cluster.made == ["a", "a"], "later and later"


def test_a_pod_that_gets_no_place_is_given_up():
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)
    assert measurer.look() == BUSY_SECONDS
    (pod,) = cluster.measuring.values()
    pod["status"] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available: Insufficient memory"}],
    }
    cluster.seconds += UNPLACED_SECONDS + 1
    measurer.look()
    (record,) = read_store(cluster.store).values()
    assert "Insufficient memory" in record.why
    assert not cluster.measuring


def test_a_pod_that_does_not_end_is_given_up_and_one_that_pulls_its_image_is_not():
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)
    measurer.look()
    (pod,) = cluster.measuring.values()
    pod["spec"]["nodeName"] = "a"
    pod["status"] = {
        "phase": "Pending",
        "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such host"}}}],
    }
    cluster.seconds += POD_SECONDS
    measurer.look()
    assert cluster.store is None
    cluster.seconds += 16
    measurer.look()
    (record,) = read_store(cluster.store).values()
    assert record.why == "ImagePullBackOff: no such host"


def test_a_failure_leaves_the_figures_that_are_known():
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)
    looks(cluster, measurer)
    cluster.seconds += 31 * 86400
    looks(cluster, measurer, 3, "no", "Failed")
    assert ground(measurer.shown(cluster.nodes())[0]).node.figures == "measured"


def tainted(name: str) -> dict[str, Any]:
    node = a_node(name)
    node["spec"]["taints"] = [{"key": "edge", "value": "yes", "effect": "NoSchedule"}]
    return node


def unready(name: str) -> dict[str, Any]:
    node = a_node(name)
    node["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    return node


def test_nodes_that_no_pod_of_ours_may_use_are_left_alone_and_not_waited_for():
    cordoned = a_node("c")
    cordoned["spec"]["unschedulable"] = True
    others = [
        tainted("t"),
        unready("u"),
        cordoned,
        a_node("w", kubernetes__os__="windows"),
        a_node("g", **{"splitinference.dev/processor": "gpu"}),
    ]
    others[3]["metadata"]["labels"] = {"kubernetes.io/os": "windows"}
    cluster = a_cluster(*others)
    measurer = measuring(cluster)
    assert measurer.look() == IDLE_SECONDS
    assert (cluster.made, measurer.pending(cluster.nodes())) == ([], ())
    tolerant = SETTINGS.model_copy(update={"measuring_tolerations": ({"key": "edge", "operator": "Exists"},)})
    looks(cluster, measuring(cluster, tolerant), 2)
    assert cluster.made == ["t"]


def test_what_a_tenants_pod_says_with_our_labels_is_nothing():
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)
    measurer.look()
    cluster.end()
    (pod,) = cluster.measuring.values()
    (own,) = next_step(There(cluster.nodes(), [], [pod]), {}, cluster.now(), SETTINGS).records.values()
    assert own.rates
    liar = {**pod, "metadata": {**pod["metadata"], "namespace": "team"}}
    step = next_step(There(cluster.nodes(), [], [liar]), {}, cluster.now(), SETTINGS)
    assert (step.records, step.delete) == ({}, ())


def test_the_pod_is_restricted_small_and_uses_what_a_segment_would():
    cluster = a_cluster(a_node("a"))
    given = SETTINGS.model_copy(update={"segment_cpu_limit": "1500m", "measuring_priority_class": "lowest"})
    measuring(cluster, given).look()
    (pod,) = cluster.measuring.values()
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["namespace"] == OWN
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["spec"]["priorityClassName"] == "lowest"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["resources"] == {"requests": {"cpu": "100m", "memory": "448Mi"}, "limits": {"memory": "448Mi", "cpu": "1500m"}}
    asked = {entry["name"]: entry["valueFrom"]["resourceFieldRef"]["divisor"] for entry in container["env"]}
    assert asked == {"SI_THREADS": "1", "SI_MILLICORES": "1m"}


def test_an_api_server_that_is_away_is_tried_again():
    cluster = a_cluster(a_node("a"), down="the API server did not answer")
    measurer = measuring(cluster)
    assert measurer.look() == IDLE_SECONDS
    cluster.down = ""
    looks(cluster, measurer)
    assert cluster.made == ["a"]


def test_nobody_waits_where_the_api_server_refuses():
    cluster = a_cluster(a_node("a"))
    measurer = measuring(cluster)

    def refuse(manifest: Manifest) -> None:
        raise RefusedError("pods is forbidden: exceeded quota")

    cluster.create, create = refuse, cluster.create  # type: ignore[method-assign]
    assert measurer.pending(cluster.nodes()) == ("a",)
    assert measurer.look() == IDLE_SECONDS
    assert measurer.pending(cluster.nodes()) == ()
    cluster.create = create  # type: ignore[method-assign]
    looks(cluster, measurer)
    assert cluster.made == ["a"]


def test_records_survive_the_store_and_damaged_ones_are_none():
    record = read_figures(json.dumps(SAID))
    assert isinstance(record, Record)
    kept = store_object({"u": record}, SETTINGS)
    kept["data"] |= {"x": "{", "y": '{"name": "y"}'}
    assert read_store(kept) == {"u": record}
    assert read_store(None) == {}


def test_the_same_objects_are_shown_while_nothing_changed():
    cluster = a_cluster(a_node("a"), a_node("b"))
    measurer = measuring(cluster)
    nodes = cluster.nodes()
    assert measurer.shown(nodes).generation == measurer.shown(Listing(nodes, nodes.generation)).generation
    first = measurer.shown(nodes)
    looks(cluster, measurer, 3)
    second = measurer.shown(nodes)
    assert second.generation != first.generation
    assert second[1] is first[1], "only what changed is worked out anew"


def test_figures_of_another_system_are_not_shown():
    node = a_node("a")
    record = Record(name="a", system=system_of(node), time=datetime(2026, 1, 1, tzinfo=UTC), rates={"float32": {"gflops": 1, "gbps": 1}})
    assert "measured" in with_figures(node, {"uid-a": record})
    assert "measured" not in with_figures(node, {"uid-a": record.model_copy(update={"system": "x"})})
