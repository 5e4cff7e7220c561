"""Restricted problems: without classes of processors, with less memory, with the cuts and places of a plan."""

import pytest

from splitinference.core.decide.feasibility.restrict import may_stay, pinned, same_cuts, with_room, without, without_classes
from splitinference.core.values.cluster import CPU, Node, Processor, Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Pin, TrustRule
from tests.core.planning import MIB, a_node, a_plan, a_problem

HOST = Processor(name="", flops_per_s=1e11, memory_bandwidth_bytes_per_s=1e15, memory_free_bytes=1000 * MIB)
GPU = Processor(
    name="x.y/gpu/0", kind="x100", resource="x.y/gpu", flops_per_s=1e13, memory_bandwidth_bytes_per_s=1e15, memory_free_bytes=4000 * MIB
)
NPU = GPU.model_copy(update={"name": "x.y/npu/0", "kind": "n1", "resource": "x.y/npu"})


def left(node: Node, **barred: str) -> Node:
    """The node where classes are barred, each with why."""
    (found,) = without_classes(Snapshot(nodes=(node,)), barred).nodes
    return found


# --- classes of processors ------------------------------------------------------------------------------------------------------------


def test_where_no_class_is_barred_the_snapshot_is_the_same_object():
    snapshot = Snapshot(nodes=(a_node("a"), a_node("b", processors=(HOST, GPU))))
    assert without_classes(snapshot, {}) is snapshot
    assert without_classes(snapshot, {"other": "it is barred"}) is snapshot


def test_one_node_of_several_changes_and_the_others_are_the_same():
    plain, mixed = a_node("a"), a_node("b", processors=(HOST, GPU))
    found = without_classes(Snapshot(nodes=(plain, mixed)), {"x100": "the model has no kernels for it"}).nodes
    assert found[0] is plain
    assert found[1].processors == (HOST,)


def test_a_barred_device_goes_and_the_rest_of_the_node_stays():
    found = left(a_node("a", processors=(HOST, GPU, NPU), devices_out={"x.y/old": "it is unhealthy"}), x100="it is barred")
    assert found.processors == (HOST, NPU)
    assert found.devices_out == {"x.y/old": "it is unhealthy", "x.y/gpu": "it is barred"}
    assert found.excluded == ""


def test_a_place_without_a_resource_is_no_device_that_is_out():
    found = left(a_node("a", processors=(HOST, GPU)), **{CPU: "only devices"})
    assert found.processors == (GPU,)
    assert found.devices_out == {}


def test_a_node_without_a_place_that_is_left_is_excluded_with_the_reason_of_its_first_place():
    found = left(a_node("a", processors=(HOST, GPU)), **{CPU: "only accelerators", "x100": "it is barred"})
    assert found.excluded == "only accelerators, and it has no such processor (x.y/gpu: it is barred)"
    assert found.processors == (HOST, GPU)


def test_a_reason_that_is_said_already_is_not_said_again_and_devices_are_named_in_order():
    found = left(a_node("a", processors=(GPU, NPU), devices_out={"x.y/old": "it is unhealthy"}), x100="it is barred", n1="it is barred")
    assert found.excluded == "it is barred, and it has no such processor (x.y/old: it is unhealthy)"
    assert found.devices_out == {"x.y/old": "it is unhealthy", "x.y/gpu": "it is barred", "x.y/npu": "it is barred"}
    several = left(a_node("a", devices_out={"z/z": "second", "b/b": "first"}), **{CPU: "why"})
    assert several.excluded == "why, and it has no such processor (b/b: first; z/z: second)"


def test_a_node_without_devices_is_barred_by_the_class_of_its_own_processors_alone():
    node = a_node("a")
    assert left(node, x100="it is barred") is node
    assert left(node, **{CPU: "only accelerators"}).excluded == "only accelerators, and it has no such processor"


def test_a_node_that_is_kept_away_already_keeps_its_reason():
    assert left(a_node("a", excluded="it is being drained"), **{CPU: "x"}).excluded == "it is being drained"


# --- nodes and memory -----------------------------------------------------------------------------------------------------------------


def test_named_nodes_are_not_ready_and_without_names_the_problem_is_the_same_object():
    problem = a_problem(a_node("a"), a_node("b"))
    assert without(problem, []) is problem
    assert [(node.name, node.ready) for node in without(problem, ["b"]).snapshot.nodes] == [("a", True), ("b", False)]


@pytest.mark.parametrize(("most", "free"), [(-1, 0), (0, 0), (99, 99), (100, 100), (101, 100)])
def test_a_node_has_at_most_so_much_memory_and_never_less_than_none(most, free):
    problem = a_problem(a_node("a", mib=100), a_node("b", mib=100))
    a, b = with_room(problem, {"a": most * MIB}).snapshot.nodes
    assert (a.memory_free_bytes, b.memory_free_bytes) == (free * MIB, 100 * MIB)
    assert with_room(problem, {}) is problem


@pytest.mark.parametrize(("most", "host", "device"), [(0, 0, 0), (1, 1, 4000 * MIB)])
def test_devices_keep_their_own_memory_unless_nothing_may_be_there(most, host, device):
    (node,) = with_room(a_problem(a_node("a", processors=(HOST, GPU))), {"a": most}).snapshot.nodes
    assert [place.memory_free_bytes for place in node.processors] == [host, device]


# --- cuts and places of a plan --------------------------------------------------------------------------------------------------------

PLAN = a_plan("a[0:2] b[2:4]")


def cuts(plan: Plan = PLAN, digest: str = "0123456789abcdef", **constraints: object) -> Constraints | None:
    problem = a_problem(a_node("a"), a_node("b"), constraints=Constraints(**constraints))
    found = same_cuts(problem, plan.model_copy(update={"model_digest": digest}))
    return None if found is None else found.constraints


def test_the_cuts_of_a_plan_are_the_only_ones():
    found = cuts()
    assert found is not None
    assert (found.split_points, found.min_segments, found.max_segments) == ((2,), 2, 2)


@pytest.mark.parametrize(
    ("constraints", "stated"),
    [
        ({"split_points": (1, 2, 3)}, True),
        ({"split_points": (2,)}, True),
        ({"split_points": (1, 3)}, False),
        ({"min_segments": 1}, True),
        ({"min_segments": 2}, True),
        ({"min_segments": 3}, False),
        ({"max_segments": 1}, False),
        ({"max_segments": 2}, True),
        ({"max_segments": 3}, True),
        ({"pipelines": 2}, False),
    ],
)
def test_cuts_that_the_spec_forbids_now_cannot_be_kept(constraints, stated):
    assert (cuts(**constraints) is not None) is stated


def test_nor_those_of_another_model():
    assert cuts(digest="fedcba9876543210") is None


def test_nor_those_of_pipelines_of_different_lengths():
    both = PLAN.model_copy(update={"pipelines": (*PLAN.pipelines, *a_plan("c[0:4]").pipelines)})
    assert cuts(both, pipelines=2) is None
    alike = PLAN.model_copy(update={"pipelines": (*PLAN.pipelines, *a_plan("c[0:1] d[1:4]").pipelines)})
    found = cuts(alike, pipelines=2)
    assert found is not None
    assert found.split_points == (1, 2)


def test_segments_that_stay_are_pins_beside_those_of_the_spec():
    there = Pin(start=0, end=1, node="a")
    problem = a_problem(a_node("a"), a_node("b"), constraints=Constraints(pins=(there,)))
    assert pinned(problem, PLAN.segments[1:]).constraints.pins == (there, Pin(start=2, end=4, node="b"))


def stays(*nodes: Node, **constraints: object) -> list[str]:
    return [segment.node for segment in may_stay(PLAN, a_problem(*nodes, constraints=Constraints(**constraints)))]


def test_segments_may_stay_on_nodes_that_can_be_used_and_may_have_every_layer_of_them():
    assert stays(a_node("a"), a_node("b")) == ["a", "b"]
    assert stays(a_node("a")) == ["a"]
    assert stays(a_node("a", ready=False), a_node("b")) == ["b"]
    for layer, staying in ((0, ["b"]), (1, ["b"]), (2, ["a"]), (3, ["a"])):
        rule = TrustRule(start=layer, end=layer + 1, labels={"trusted": "true"})
        assert stays(a_node("a"), a_node("b"), trust=(rule,)) == staying, layer
