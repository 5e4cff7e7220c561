"""Nodes are measured one at a time, within a budget, never where a segment runs; and what is measured counts, unless a label says else."""

import copy
import json
from typing import Any

import pytest

from splitinference.controller.cluster_state.figures.node_benchmark import (
    POD_SECONDS,
    UNPLACED_SECONDS,
    Record,
    There,
    next_step,
    pending,
    read_figures,
    read_store,
    store_object,
)
from splitinference.controller.ports import Listing, Manifest, RefusedError
from splitinference.controller.reconcile.upkeep.node_measuring import BUSY_SECONDS, IDLE_SECONDS
from tests.controller.cluster_state.figures.measured_nodes import LABELS, OWN, SAID, SETTINGS, a_cluster, a_node, ground, looks, measuring
from tests.controller.cluster_state.read import a_pod


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
