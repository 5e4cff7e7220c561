"""A plan's explanation says where its nodes' figures come from, and what makes a node slow."""

from splitinference.core.cost import predict
from splitinference.core.planner.explain import explain
from tests.core.planning import a_node, a_plan, a_problem


def test_each_stage_says_whether_its_nodes_figures_are_measured_labelled_or_assumed():
    problem = a_problem(a_node("a", figures="measured"), a_node("b", figures="assumed", utilization=0.92, waiting=0.92))
    plan = a_plan("a[0:2] b[2:4]")
    lines = explain(plan, predict(plan, problem), problem, "proven best")
    assert any(line.startswith("layers [0, 2) on a") and line.endswith("GB/s free (measured)") for line in lines)
    (slow,) = [line for line in lines if line.startswith("layers [2, 4) on b")]
    assert "92% lost to waiting for a processor" in slow
    assert slow.endswith("(assumed)")
    assert "used by others" not in slow


def test_compute_for_a_data_type_is_taken_where_it_was_measured():
    snapshot = a_problem(a_node("a", flops_by_dtype={"float32": 5e9}), a_node("b")).snapshot
    assert [node.flops_per_s for node in snapshot.for_dtype("float32").nodes] == [5e9, 100e9]
    assert snapshot.for_dtype("bfloat16") is snapshot
