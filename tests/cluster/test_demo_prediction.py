"""What the demo predicts of its stages from labels, against steps that were measured with the segment's own layers under the same quotas.

SmolLM2-135M in bfloat16 on one core of an AMD EPYC, which other work used too: 10 blocks and the head, in ms, pauses between steps.
"""

import pytest

from e2e.cluster.machine.speed import Speed
from splitinference.controller.cluster_state.node_capacity import NOBODY, ground_of
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import layer_cost
from splitinference.core.values.problem import Workload
from splitinference.core.values.profile import Layer, LayerKind
from splitinference.settings import Settings
from tests.controller.world import a_node

BLOCK = Layer(
    index=1,
    name="block",
    weight_bytes=7_080_192,
    flops_per_token=7_077_888,
    flops_per_token_and_context=4 * 576,
    kv_bytes_per_token=768,
    boundary_bytes_per_token=1152,
)
HEAD = Layer(index=31, name="head", kind=LayerKind.HEAD, weight_bytes=56_624_256, flops_per_token=56_623_104, boundary_bytes_per_token=8)
MEASURED = [
    pytest.param(Speed(217.4, 14.81, 0.4697), 13.3, 4.6, id="a whole core"),
    pytest.param(Speed(47.51, 3.543, 3.45), 68.9, 19.1, id="a quarter of a core"),
]
"""What the node's measurement says, and what ten blocks and the head took."""


def step_ms(layer: Layer, labels: dict[str, str]) -> float:
    """A decode step of one sequence through this layer, as predicted of a node with these labels."""
    node = ground_of(a_node("n", **labels), (), NOBODY, Settings()).node
    (site,) = sites(node)
    return layer_cost(layer, site, Workload(prompt_tokens=64, output_tokens=64)).decode_ms


@pytest.mark.parametrize(("speed", "blocks", "head"), MEASURED)
def test_blocks_and_head_are_both_predicted_within_half(speed: Speed, blocks: float, head: float):
    for layer, times, seen in ((BLOCK, 10, blocks), (HEAD, 1, head)):
        predicted = times * step_ms(layer, speed.labels())
        assert abs(seen - predicted) <= 0.5 * predicted, f"{layer.name}: {predicted:.1f} ms were predicted, and {seen} measured"


def test_without_launches_no_bandwidth_fits_both():
    """What the labels said before: one bandwidth for the whole model. The head was overrated two times by that."""
    (speed, blocks, head) = MEASURED[0].values
    assert isinstance(speed, Speed)
    mixed = (30 * BLOCK.weight_bytes + HEAD.weight_bytes) / ((3 * blocks + head) / 1e3) / 1e9
    labels = Speed(speed.gflops, mixed, 0.0).labels()
    assert abs(head - step_ms(HEAD, labels)) > 0.4 * step_ms(HEAD, labels)
