"""Adapters on weights in codes: the logits are those of the numbers that the codes stand for, with the adapter added."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import ALL, ATTENTION, BUDGET, PIECES, Split, unsplit
from adapter_folders import merge, write_adapter
from family_models import FAMILIES, write_random
from quantized_checkpoints import quantized
from quantized_models import replaced
from random_models import CONFIGS
from transformers import AutoModelForCausalLM, LlamaConfig

from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.torch_engine import TorchEngine

TARGETS = {
    "llama": ALL,
    "llama-tied": ALL,
    "gpt2": ("c_attn", "c_fc", "c_proj"),
    "qwen2": ATTENTION,
    "gemma2": ALL,
    "phi3 with longrope": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
    "starcoder2": ("q_proj", "c_fc", "c_proj"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, configs = tmp_path_factory.mktemp("adapted"), {**CONFIGS, **FAMILIES}
    return {name: write_random(configs[name], root / name.replace(" ", "-")) for name in TARGETS}


def held(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("name", "weights"), [*((name, "Int4") for name in TARGETS), ("llama-tied", "Int8"), ("gpt2", "Int8")])
def test_an_adapter_is_added_to_weights_that_are_quantized_when_they_are_loaded(
    name: str, weights: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    adapter = write_adapter(folders[name], tmp_path / "adapter", TARGETS[name])
    model: Any = replaced(folders[name], weights)
    plain = unsplit(model)
    expected = unsplit(merge(model, adapter, 2.0))
    assert (expected - plain).abs().max() > 0.1, "an adapter that changes nothing tells nothing"
    last = Layers(folders[name], 0, 1, torch.float32).count
    for cuts in ([0, last], [0, 1, 3, last]):
        split = Split(folders[name], cuts, weights=weights)
        digest = split.load(adapter)
        torch.testing.assert_close(split.logits([digest], PIECES)[0], expected, atol=5e-4, rtol=5e-4, msg=f"{name} {cuts}")
        torch.testing.assert_close(split.logits([""], PIECES)[0], plain, atol=5e-4, rtol=5e-4, msg=f"{name} {cuts} without")


@pytest.mark.parametrize("name", ["GPTQ", "GPTQ with act-order", "AWQ", "W4A16", "W8A8", "FP8 by rows"])
def test_an_adapter_is_added_to_the_weights_that_a_quantized_checkpoint_means(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = quantized(folders["llama"], tmp_path / "checkpoint", name)
    adapter = write_adapter(folders["llama"], tmp_path / "adapter", ALL)
    expected = unsplit(merge(held(folder / "meant"), adapter, 2.0))
    split = Split(folder, [0, 3, 7])
    torch.testing.assert_close(split.logits([split.load(adapter)], PIECES)[0], expected, atol=5e-4, rtol=5e-4)


@pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")
@pytest.mark.parametrize("form", ["Int8", "Int4", "GPTQ with act-order", "AWQ", "W8A8"])
@pytest.mark.parametrize("rslora", [False, True])
def test_logits_equal_those_of_peft_on_the_dequantized_weights(form: str, rslora: bool, folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    config = LoraConfig(r=4, lora_alpha=12, target_modules=list(ALL), use_rslora=rslora, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(3)
    get_peft_model(held(folders["llama"]), config).save_pretrained(tmp_path / "adapter")
    folder = folders["llama"] if form.startswith("Int") else quantized(folders["llama"], tmp_path / "checkpoint", form)
    weights = form if form.startswith("Int") else "AsStored"
    base: Any = replaced(folder, form) if form.startswith("Int") else held(folder / "meant")
    expected = unsplit(PeftModel.from_pretrained(base, tmp_path / "adapter").eval())
    split = Split(folder, [0, 2, 4, 7], weights=weights)
    found = split.logits([split.load(tmp_path / "adapter")], PIECES)[0]
    assert (found - expected).norm() / expected.norm() < 1e-4


def test_sequences_with_different_adapters_share_a_pass_over_joined_codes(tmp_path: Path) -> None:
    """Of 64 heads' numbers queries, keys and values are whole blocks of codes, so they are one product, as in served models."""
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "hidden_size": 128, "num_key_value_heads": 4, "intermediate_size": 192})
    folder = write_random(config, tmp_path / "wide")
    layers = Layers(folder, 0, 7, torch.bfloat16, weights="Int4")
    assert any(type(module).__name__ == "Joined" for module in layers.blocks[0].modules())
    layers.pack()
    split = Split.__new__(Split)
    split.engines = [TorchEngine(layers, packed=True, adapter_bytes=BUDGET)]
    one = split.load(write_adapter(folder, tmp_path / "one", ALL, seed=1))
    two = split.load(write_adapter(folder, tmp_path / "two", ATTENTION, rank=7, seed=2))
    rows = [one, "", two, one]
    together = split.logits(rows, PIECES)
    for digest, row in zip(rows, together, strict=True):
        alone = split.logits([digest], PIECES)[0]
        # Codes of 4 bits have other kernels for few rows than for many, and which they are depends on the processor.
        assert (row - alone).norm() / alone.norm() < 0.15
    assert (together[0] - together[1]).norm() / together[1].norm() > 0.2
    assert (together[0] - together[2]).norm() / together[2].norm() > 0.2
