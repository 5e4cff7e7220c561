"""A profile from config.json and safetensors headers: sizes by hand for each family, and what cannot be read."""

import json
from typing import Any

import pytest

from splitinference.core.model_files import TensorInfo, UnreadableModel, parse_safetensors_header
from splitinference.core.profile import LayerKind
from splitinference.core.profile_read import profile_from_model

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}


def tensors(**shapes: tuple[int, ...]) -> dict[str, TensorInfo]:
    sizes = {name.replace("__", "."): shape for name, shape in shapes.items()}
    result = {}
    for name, shape in sizes.items():
        count = 1
        for n in shape:
            count *= n
        result[name] = TensorInfo("F32", shape, 4 * count)
    return result


def llama(**more: tuple[int, ...]) -> dict[str, TensorInfo]:
    blocks = {f"model__layers__{i}__{part}": shape for i in range(2)
              for part, shape in {"self_attn__q_proj__weight": (64, 64), "mlp__up_proj__weight": (128, 64),
                                  "input_layernorm__weight": (64,)}.items()}  # fmt: skip
    return tensors(model__embed_tokens__weight=(100, 64), model__norm__weight=(64,), **blocks, **more)


def gpt2() -> dict[str, TensorInfo]:
    parts = {"attn__c_attn__weight": (64, 192), "attn__c_attn__bias": (192,), "attn__bias": (1, 1, 32, 32)}
    blocks = {f"h__{i}__{part}": shape for i in range(2) for part, shape in parts.items()}
    return tensors(wte__weight=(100, 64), wpe__weight=(32, 64), ln_f__weight=(64,), ln_f__bias=(64,), **blocks)


def test_a_tied_llama() -> None:
    profile = profile_from_model(LLAMA, llama(), "bfloat16", runtime_bytes=7)
    embedding, block, _, head = profile.layers
    assert [layer.kind for layer in profile.layers] == [LayerKind.EMBEDDING, LayerKind.BLOCK, LayerKind.BLOCK, LayerKind.HEAD]
    assert embedding.weight_bytes == 100 * 64 * 2
    assert block.weight_bytes == (64 * 64 + 128 * 64 + 64) * 2
    assert block.flops_per_token == 2 * (64 * 64 + 128 * 64)
    assert block.kv_bytes_per_token == 2 * 2 * 16 * 2
    assert block.boundary_bytes_per_token == 64 * 2
    assert [layer.boundary_values_per_token for layer in profile.layers] == [64, 64, 64, None]
    assert (head.tied_to, head.tied_bytes, head.weight_bytes) == (0, 100 * 64 * 2, (100 * 64 + 64) * 2)
    assert profile.weight_bytes(0, 4) == sum(t.elements for t in llama().values()) * 2
    assert profile.runtime_bytes == 7


def test_an_untied_head_has_weights_of_its_own() -> None:
    head = profile_from_model(LLAMA, llama(lm_head__weight=(100, 64)), "float32").layers[-1]
    assert head.tied_to is None
    assert head.weight_bytes == (100 * 64 + 64) * 4


def test_gpt2_has_positions_in_its_embedding_and_a_mask_that_is_no_weight() -> None:
    profile = profile_from_model(GPT2, gpt2(), "float32")
    assert profile.layers[0].weight_bytes == (100 + 32) * 64 * 4
    assert profile.layers[1].weight_bytes == (64 * 192 + 192) * 4
    assert profile.layers[-1].tied_bytes == 100 * 64 * 4


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_other_families_of_the_same_shape(family: str) -> None:
    profile = profile_from_model({**LLAMA, "model_type": family, "head_dim": 32}, llama(), "float16")
    assert profile.layers[1].kv_bytes_per_token == 2 * 2 * 32 * 2


def test_the_digest_names_the_content() -> None:
    assert profile_from_model(LLAMA, llama(), "float32").digest == profile_from_model(LLAMA, llama(), "bfloat16").digest
    assert profile_from_model(LLAMA, llama(), "float32").digest != profile_from_model({**LLAMA, "x": 1}, llama(), "float32").digest


@pytest.mark.parametrize(
    ("config", "table", "dtype", "words"),
    [
        ({**LLAMA, "model_type": "mamba"}, llama(), "float32", "model_type 'mamba' is not supported"),
        (LLAMA, llama(), "int8", "dtype 'int8' is not supported"),
        ({**LLAMA, "quantization_config": {}}, llama(), "float32", "quantized"),
        ({**LLAMA, "num_hidden_layers": 3}, llama(), "float32", "no tensors for block 2 of 3"),
        ({**LLAMA, "num_hidden_layers": 1}, llama(), "float32", "belongs to block 1, config.json says 1 blocks"),
        ({**LLAMA, "hidden_size": "64"}, llama(), "float32", "hidden_size is '64', expected a positive whole number"),
        ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, llama(), "float32", "hidden_size or n_embd is missing"),
        ({**LLAMA, "tie_word_embeddings": False}, llama(), "float32", "lm_head.weight is missing"),
        (LLAMA, llama(visual__patch__weight=(8, 8)), "float32", "visual.patch.weight belongs neither to"),
    ],
)
def test_what_cannot_be_read_is_said(config: dict[str, Any], table: dict[str, TensorInfo], dtype: str, words: str) -> None:
    with pytest.raises(UnreadableModel) as found:
        profile_from_model(config, table, dtype)
    assert words in str(found.value)


def test_a_safetensors_header() -> None:
    table = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    data = json.dumps(table).encode()
    assert parse_safetensors_header(len(data).to_bytes(8, "little") + data + b"rest") == {"a": TensorInfo("F32", (2, 3), 24)}


@pytest.mark.parametrize("data", [b"", b"\x05\0\0\0\0\0\0\0nope!", b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0[]",
                                  b"\x0d\0\0\0\0\0\0\0" + b'{"a": {"x":1}}'[:13]])  # fmt: skip
def test_bytes_that_are_no_header_are_refused(data: bytes) -> None:
    with pytest.raises(UnreadableModel):
        parse_safetensors_header(data)
