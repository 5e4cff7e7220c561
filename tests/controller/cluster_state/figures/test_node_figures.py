"""Which figures of a node count: its labels, what was measured, the catalogue's, or those that are assumed."""

import json
from datetime import UTC, datetime

import pytest

from splitinference.controller.cluster_state.figures.node_benchmark import (
    Record,
    read_figures,
    system_of,
    with_figures,
)
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from tests.controller.cluster_state.figures.measured_nodes import LABELS, SAID, a_cluster, a_node, ground, looks, measuring


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


def test_figures_of_another_system_are_not_shown():
    node = a_node("a")
    record = Record(name="a", system=system_of(node), time=datetime(2026, 1, 1, tzinfo=UTC), rates={"float32": {"gflops": 1, "gbps": 1}})
    assert "measured" in with_figures(node, {"uid-a": record})
    assert "measured" not in with_figures(node, {"uid-a": record.model_copy(update={"system": "x"})})
