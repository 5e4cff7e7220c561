"""Layers that take the same input are one product, and give the bits that each gives by itself: in every family, for any number of rows."""

from pathlib import Path

import pytest
import torch
from random_models import CONFIGS, write_model
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.joining import Joined, Part, can_join, join
from splitinference_segment.torch_ops.spans import Span

pytestmark = pytest.mark.skipif(not can_join(torch.bfloat16, torch.device("cpu")), reason="this processor has no bfloat16 kernels")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_family_gives_the_unsplit_models_bits(name: str, prompt: list[int], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = write_model(CONFIGS[name], tmp_path, torch.bfloat16)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    layers = Layers(folder, 0, CONFIGS[name].num_hidden_layers + 2, torch.bfloat16)
    assert any(isinstance(part, Joined) for block in layers.blocks for part in block.modules()) == (name != "gpt2")
    window = getattr(CONFIGS[name], "sliding_window", None)
    tokens = prompt[: window // 4] if window else list(prompt)  # beyond its window a model's attention is rounded differently
    cache, entry, held = DynamicCache(config=model.config), KvEntry("s", layers.kv_shape.allocate(64)), 0
    with torch.inference_mode():
        for _ in range(12):
            fresh = torch.tensor(tokens[held:])
            expected = model(fresh[None], past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float()
            found = layers.logits(layers.run(fresh, [Span(entry, 0, len(fresh), held)])[-1:])[0]
            assert torch.equal(found, expected), f"after {held} tokens"
            held = len(tokens)
            tokens.append(int(expected.argmax()))


@pytest.mark.parametrize("sizes", [(576, 192, 192), (1536, 1536), (896, 128, 128), (2048, 512, 512), (24, 8, 8)])
@pytest.mark.parametrize("bias", [False, True])
def test_parts_have_the_bits_of_the_layers_they_replace(sizes: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(3)
    apart = [nn.Linear(sizes[0], size, bias=bias).bfloat16().requires_grad_(False) for size in sizes]
    joined = Joined(apart)
    with torch.inference_mode():
        for rows in (1, 2, 3, 5, 8, 13, 64, 250):
            hidden = torch.randn(1, rows, sizes[0]).bfloat16()
            for index, layer in enumerate(apart):
                assert torch.equal(Part(joined, index)(hidden), layer(hidden)), rows


def test_a_part_is_of_the_input_it_was_asked_for() -> None:
    torch.manual_seed(3)
    apart = [nn.Linear(8, 8).bfloat16().requires_grad_(False) for _ in range(2)]
    joined = Joined(apart)
    one, other = Part(joined, 0), Part(joined, 1)
    first, second = (torch.randn(1, 8).bfloat16() for _ in range(2))
    with torch.inference_mode():
        assert torch.equal(one(first), apart[0](first))
        assert torch.equal(one(second), apart[0](second)), "the second part of the first input was never asked for"
        assert torch.equal(other(second), apart[1](second))
        assert torch.equal(one(second), apart[0](second)), "the same input again"
        assert torch.equal(other(first), apart[1](first))


def test_nothing_is_held_twice(tmp_path: Path) -> None:
    folder = write_model(CONFIGS["qwen2"], tmp_path, torch.bfloat16)
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert Layers(folder, 0, 7, torch.bfloat16).weight_bytes() == sum(p.nbytes for p in stored.parameters())


def test_layers_of_unlike_inputs_or_kinds_stay_apart() -> None:
    class Unlike(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(4, 8), nn.Linear(8, 8)
            self.gate_proj, self.up_proj = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    block = Unlike()
    join(block)
    assert not any(isinstance(part, Joined) for part in block.modules())
