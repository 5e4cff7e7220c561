"""`splitinference bench processors`: two levels are never worse, and the table says what exists."""

from splitinference.cli.bench.planning.instances import transformer
from splitinference.cli.bench.planning.processors import Row, compare, nodes_only, problems, table
from splitinference.core.values.problem import Goal, Workload


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


def test_what_fits_on_one_gpu_is_one_segment_there():
    """A model of BERT-Large's size at batch 1 and sequence 128, on nodes with an A100 and 32 cores each."""
    _, known = next(iter(problems()))
    node = known.snapshot.nodes[0]
    fast = node.processors[1].model_copy(update={"flops_per_s": 312e12, "memory_bandwidth_bytes_per_s": 2039e9})
    nodes = tuple(node.model_copy(update={"name": name, "processors": (node.processors[0], fast)}) for name in ("a", "b"))
    problem = known.model_copy(
        update={
            "profile": transformer(24, 1024, name="BERT-Large"),
            "snapshot": known.snapshot.model_copy(update={"nodes": nodes}),
            "workload": Workload(prompt_tokens=128, output_tokens=1, max_context_tokens=512, max_concurrent_sequences=1),
        }
    )
    row = compare("two nodes", problem)
    assert len(row.segments) == 1
    assert row.segments[0].endswith("/t4/0"), "on a device, not on a CPU"
