"""`splitinference bench processors`: two levels are never worse, and the table says what exists."""

from splitinference.cli.bench.planning.processors import Row, compare, nodes_only, problems, table
from splitinference.core.values.problem import Goal


def instance(cluster: str, model: str, goal: Goal) -> Row:
    return next(compare(name, problem) for name, problem in problems()
                if (name, problem.profile.model, problem.objective.goal) == (cluster, model, goal))  # fmt: skip


def test_a_second_gpu_in_the_same_node_spares_the_hop_to_another_node():
    row = instance("2 × (2 T4, 16 cores)", "13B", Goal.LATENCY)
    assert row.change is not None
    assert -0.2 < row.change < -0.05
    assert len({place.rpartition(" ")[2].partition("/")[0] for place in row.segments}) == 1, "both segments are on one node"


def test_slices_hold_a_model_that_no_slice_alone_holds():
    row = instance("(7 slices of an A100, 32 cores)", "7B", Goal.LATENCY)
    assert (row.nodes_only, row.change) == (None, None)
    assert row.both is not None
    assert "| no plan |" in table([row])


def test_nodes_only_keeps_the_quickest_processor_of_each_node():
    _, problem = next(iter(problems()))
    nodes = nodes_only(problem).snapshot.nodes
    assert [[place.name for place in node.processors] for node in nodes] == [["t4/0"]] * 3
    assert [len(node.processors) for node in problem.snapshot.nodes] == [2] * 3
