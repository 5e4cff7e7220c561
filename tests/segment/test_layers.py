"""Layers built from a part of the model give exactly what the whole gives, wherever it is cut."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import CONFIGS, unsplit_greedy, write_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.families import UnsupportedModelError, family_of
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.loading import load_layers
from splitinference_segment.torch_models.weights import MissingWeightsError
from splitinference_segment.torch_ops import attention
from splitinference_segment.torch_ops.spans import Span

COUNT = 24


class InProcess:
    """A chain of layers in this process, with KV buffers of its own."""

    def __init__(self, folder: Path, cuts: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.parts = [Layers(folder, start, end, dtype) for start, end in itertools.pairwise(cuts)]

    def entries(self) -> list[KvEntry]:
        return [KvEntry("s", part.kv_shape.allocate(128)) for part in self.parts]

    def logits(self, ids: Sequence[int], position: int, entries: Sequence[KvEntry]) -> torch.Tensor:
        values = torch.tensor(list(ids))
        with torch.inference_mode():
            for part, entry in zip(self.parts, entries, strict=True):
                values = part.run(values, [Span(entry, 0, len(ids), position)])
            return self.parts[-1].logits(values[-1:])[0]

    def greedy(self, prompt: Sequence[int], count: int, chunk: int = 0) -> list[int]:
        entries, position, out = self.entries(), 0, list[int]()
        pieces = [prompt[i : i + chunk] for i in range(0, len(prompt), chunk)] if chunk else [prompt]
        for piece in pieces:
            logits = self.logits(piece, position, entries)
            position += len(piece)
        out.append(int(logits.argmax()))
        while len(out) < count:
            out.append(int(self.logits(out[-1:], position, entries).argmax()))
            position += 1
        return out


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_split_point_gives_the_unsplit_models_tokens(name: str, models: dict[str, Path], prompt: list[int]) -> None:
    last = CONFIGS[name].num_hidden_layers + 2
    expected = unsplit_greedy(models[name], prompt, COUNT)
    assert len(set(expected)) > 3, "the random model repeats itself too much to tell anything"
    assert InProcess(models[name], [0, last]).greedy(prompt, COUNT) == expected
    for cut in range(1, last):
        assert InProcess(models[name], [0, cut, last]).greedy(prompt, COUNT) == expected, f"cut at {cut}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_bit_for_bit_those_of_the_unsplit_model(dtype: torch.dtype, models: dict[str, Path], prompt: list[int]) -> None:
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=dtype).eval()
    cache, expected, tokens = DynamicCache(config=model.config), [], list(prompt)
    with torch.inference_mode():
        for _ in range(12):
            fresh = torch.tensor([tokens[cache.get_seq_length() :]])
            expected.append(model(fresh, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1].float())
            tokens.append(int(expected[-1].argmax()))
    for cut in (1, 4, 6):
        chain = InProcess(models["llama"], [0, cut, 7], dtype)
        entries = chain.entries()
        logits = [chain.logits(tokens[: len(prompt)], 0, entries)]
        logits += [chain.logits([token], len(prompt) + i, entries) for i, token in enumerate(tokens[len(prompt) : -1])]
        assert torch.equal(torch.stack(logits), torch.stack(expected)), f"cut at {cut}"


def test_a_context_longer_than_the_unsplit_arithmetic_goes_on_with_the_same_numbers(
    tmp_path: Path,
) -> None:
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "max_position_embeddings": 4096})
    write_model(config, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = [(i * 31) % 211 for i in range(attention.SAME_AS_UNSPLIT + 40)]
    layers = Layers(tmp_path, 0, 7, torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([tokens])).logits[0, -1]
        for chunk in (len(tokens) - 1, 300):
            entry, position = KvEntry("s", layers.kv_shape.allocate(len(tokens))), 0
            while position < len(tokens) - 1:
                piece = tokens[position : min(position + chunk, len(tokens) - 1)]
                layers.run(torch.tensor(piece), [Span(entry, 0, len(piece), position)])
                position += len(piece)
            last = layers.run(torch.tensor(tokens[-1:]), [Span(entry, 0, 1, position)])
            torch.testing.assert_close(layers.logits(last)[0], expected, atol=1e-3, rtol=1e-3)


def test_a_segment_for_every_layer_gives_the_same_tokens(models: dict[str, Path], prompt: list[int]) -> None:
    expected = unsplit_greedy(models["llama"], prompt, COUNT)
    assert InProcess(models["llama"], range(8)).greedy(prompt, COUNT) == expected


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 19])
def test_a_prefill_in_chunks_gives_the_same_tokens_as_a_whole_one(
    name: str, chunk: int, models: dict[str, Path], prompt: list[int]
) -> None:
    chain = InProcess(models[name], [0, 3, 7])
    assert chain.greedy(prompt, COUNT, chunk=chunk) == chain.greedy(prompt, COUNT)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral-window"])
def test_sequences_of_unequal_length_in_one_row_give_what_each_gives_alone(name: str, models: dict[str, Path], prompt: list[int]) -> None:
    chain = InProcess(models[name], [0, 3, 7])
    prompts = [prompt, prompt[:7], prompt[3:4]]
    entries = [chain.entries() for _ in prompts]
    for tokens, own in zip(prompts, entries, strict=True):
        chain.logits(tokens, 0, own)
    alone = [chain.entries() for _ in prompts]
    for tokens, own in zip(prompts, alone, strict=True):
        chain.logits(tokens, 0, own)
    expected = [chain.logits([11 + i], len(tokens), own) for i, (tokens, own) in enumerate(zip(prompts, alone, strict=True))]
    values = torch.tensor([11, 12, 13])
    with torch.inference_mode():
        for stage, part in enumerate(chain.parts):
            spans = [Span(own[stage], i, 1, len(tokens)) for i, (tokens, own) in enumerate(zip(prompts, entries, strict=True))]
            values = part.run(values, spans)
        together = chain.parts[-1].logits(values)
    torch.testing.assert_close(together, torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_a_segment_reads_and_holds_only_its_own_layers(models: dict[str, Path]) -> None:
    whole = Layers(models["llama"], 0, 7, torch.float32).weight_bytes()
    parts = [Layers(models["llama"], start, end, torch.float32) for start, end in ((0, 1), (1, 3), (3, 7))]
    assert sum(part.weight_bytes() for part in parts) == whole
    assert parts[0].weight_bytes() == 211 * 64 * 4
    assert [part.kv_shape.blocks for part in parts] == [0, 2, 3]
    assert parts[1].kv_shape.bytes_per_token == 2 * 2 * 2 * 16 * 4


def test_tied_weights_are_held_once_in_one_segment_and_twice_in_two(models: dict[str, Path]) -> None:
    table = 211 * 64 * 4
    whole = Layers(models["llama-tied"], 0, 7, torch.float32).weight_bytes()
    apart = [Layers(models["llama-tied"], start, end, torch.float32).weight_bytes() for start, end in ((0, 3), (3, 7))]
    assert sum(apart) == whole + table


def test_weights_are_cast_to_the_serving_dtype(models: dict[str, Path]) -> None:
    layers = Layers(models["llama"], 0, 3, torch.bfloat16)
    assert {p.dtype for block in layers.blocks for p in block.parameters()} == {torch.bfloat16}


def test_layers_outside_the_model_are_refused_with_what_there_is(models: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"layers 3:9 are not in this model, which has 0:7"):
        Layers(models["llama"], 3, 9, torch.float32)


def test_an_unknown_family_is_refused_with_those_that_are_served() -> None:
    with pytest.raises(UnsupportedModelError, match="'bert' is not served; these are: gemma, gemma2"):
        family_of("bert")


def test_a_folder_of_another_family_is_refused_whether_transformers_knows_it_or_not(tmp_path: Path) -> None:
    for kind in ("mamba", "nobody-knows"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UnsupportedModelError, match=f"'{kind}' is not served.*Served are gemma, gemma2"):
            load_layers(tmp_path, 0, 2, torch.float32)


def test_a_rope_that_depends_on_other_sequences_is_refused(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    )
    write_model(config, tmp_path)
    with pytest.raises(UnsupportedModelError, match="'dynamic'"):
        Layers(tmp_path, 0, 3, torch.float32)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_a_rope_of_fixed_frequencies_gives_the_unsplit_models_tokens(rope: dict[str, Any], tmp_path: Path, prompt: list[int]) -> None:
    config = LlamaConfig(**{**CONFIGS["llama"].to_dict(), "rope_parameters": {**rope, "rope_theta": 10000.0}})
    write_model(config, tmp_path)
    expected = unsplit_greedy(tmp_path, prompt, COUNT)
    for cut in (1, 3, 6):
        assert InProcess(tmp_path, [0, cut, 7]).greedy(prompt, COUNT) == expected, f"cut at {cut}"
    assert accepted(tmp_path)[1].rope == rope["rope_type"]


@pytest.mark.parametrize("same", [True, False], ids=["same", "different"])
def test_a_head_that_is_stored_though_tied_is_the_head_as_in_transformers(same: bool, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((models["llama-tied"] / "config.json").read_text())
    tensors = load_file(models["llama-tied"] / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone() if same else torch.randn(211, 64)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = [5, 99, 17, 3, 150]
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -1]
    for cuts in ([0, 7], [0, 3, 7]):
        chain = InProcess(tmp_path, cuts)
        torch.testing.assert_close(chain.logits(ids, 0, chain.entries()), expected)


def test_the_index_decides_whatever_lies_beside_its_files(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((models["llama"] / "config.json").read_text())
    tensors = load_file(models["llama"] / "model.safetensors")
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    save_file({name: torch.zeros_like(tensor) for name, tensor in tensors.items()}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (loaded, expected) = (load_layers(folder, 1, 3, torch.float32) for folder in (tmp_path, models["llama"]))
    assert isinstance(loaded, Layers)
    assert isinstance(expected, Layers)
    for ours, theirs in zip(loaded.blocks, expected.blocks, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_the_shared_rules_accept_what_transformers_writes(name: str, models: dict[str, Path]) -> None:
    assert accepted(models[name])[1].family == CONFIGS[name].model_type


def test_a_missing_tensor_is_named(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((models["llama"] / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((models["gpt2"] / "model.safetensors").read_bytes())
    with pytest.raises(MissingWeightsError, match=r"model\.embed_tokens\.weight"):
        Layers(tmp_path, 0, 2, torch.float32)
