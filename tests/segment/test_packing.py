"""Packed weights: the same numbers but for last bits, the same bytes, and a weight that two layers share is kept once."""

from pathlib import Path

import pytest
import torch
from random_models import CONFIGS, write_model
from torch import nn

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.packing import PackedLinear, can_pack
from splitinference_segment.torch_ops.spans import Span

pytestmark = pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="this processor has no bfloat16 kernels for packed weights"
)


def logits(layers: Layers, ids: list[int]) -> torch.Tensor:
    entry = KvEntry("s", layers.kv_shape.allocate(64))
    with torch.inference_mode():
        return layers.logits(layers.run(torch.tensor(ids), [Span(entry, 0, len(ids), 0)]))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_packed_model_gives_the_plain_ones_numbers_but_for_last_bits(name: str, prompt: list[int], tmp_path: Path) -> None:
    folder = write_model(CONFIGS[name], tmp_path, torch.bfloat16)
    last = CONFIGS[name].num_hidden_layers + 2
    plain, packed = (Layers(folder, 0, last, torch.bfloat16) for _ in range(2))
    assert packed.pack()
    expected, found = logits(plain, prompt), logits(packed, prompt)
    # a bfloat16 has eight bits: a last bit that differs in one block is carried on by the others
    assert float((found - expected).norm() / expected.norm()) < 0.03
    assert packed.weight_bytes() == plain.weight_bytes()


def test_linear_layers_are_packed_and_a_head_that_is_the_embedding_is_not(tmp_path: Path) -> None:
    folder = write_model(CONFIGS["llama-tied"], tmp_path, torch.bfloat16)
    whole, end = Layers(folder, 0, 7, torch.bfloat16), Layers(folder, 3, 7, torch.bfloat16)
    assert whole.pack()
    assert end.pack()
    assert isinstance(whole.head, nn.Linear)
    assert isinstance(end.head, PackedLinear)
    assert {type(part) for part in whole.blocks[0].modules() if hasattr(part, "bias")} == {PackedLinear}


def test_other_dtypes_stay_as_they_are(models: dict[str, Path], prompt: list[int]) -> None:
    plain, asked = (Layers(models["llama"], 0, 7, torch.float32) for _ in range(2))
    assert not asked.pack()
    assert torch.equal(logits(plain, prompt), logits(asked, prompt))
