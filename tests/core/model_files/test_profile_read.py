"""A profile from config.json and safetensors headers: sizes by hand for each family, and what cannot be read."""

from math import prod
from typing import Any

import pytest

from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.profile import LayerKind
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo
from tests.modelfiles import family_tables, tables

LLAMA: dict[str, Any] = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100,
                         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}  # fmt: skip
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 100}
BLOCK = 64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64


def entries(shapes: tables.Shapes) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F32", shape, 4 * prod(shape)) for name, shape in shapes.items()}


def llama(config: dict[str, Any] = LLAMA, **more: tuple[int, ...]) -> dict[str, TensorInfo]:
    return entries(tables.llama(config) | {name.replace("__", "."): shape for name, shape in more.items()})


def test_a_tied_llama() -> None:
    profile = profile_from_model(LLAMA, llama(), "bfloat16", runtime_bytes=7)
    embedding, block, _, head = profile.layers
    assert [layer.kind for layer in profile.layers] == [LayerKind.EMBEDDING, LayerKind.BLOCK, LayerKind.BLOCK, LayerKind.HEAD]
    assert embedding.weight_bytes == 100 * 64 * 2
    assert block.weight_bytes == (BLOCK + 2 * 64) * 2
    assert block.flops_per_token == 2 * BLOCK
    assert block.kv_bytes_per_token == 2 * 2 * 16 * 2
    assert block.boundary_bytes_per_token == 64 * 2
    assert [layer.boundary_values_per_token for layer in profile.layers] == [64, 64, 64, None]
    assert (head.tied_to, head.tied_bytes, head.weight_bytes) == (0, 100 * 64 * 2, (100 * 64 + 64) * 2)
    assert profile.weight_bytes(0, 4) == sum(t.elements for t in llama().values()) * 2
    assert profile.runtime_bytes == 7
    assert profile.positions == 2048


def test_a_head_that_is_stored_is_the_head_though_it_should_be_tied() -> None:
    head = profile_from_model(LLAMA, llama(lm_head__weight=(100, 64)), "float32").layers[-1]
    assert head.tied_to is None
    assert head.weight_bytes == (100 * 64 + 64) * 4


def test_gpt2_has_positions_in_its_embedding_and_a_mask_that_is_no_weight() -> None:
    profile = profile_from_model(GPT2, entries(tables.gpt2(GPT2)), "float32")
    assert profile.layers[0].weight_bytes == (100 + 32) * 64 * 4
    matrices = 64 * 192 + 64 * 64 + 2 * 64 * 256
    assert profile.layers[1].weight_bytes == (matrices + 192 + 64 + 256 + 64 + 4 * 64) * 4
    assert profile.layers[-1].tied_bytes == 100 * 64 * 4
    assert profile.positions == 32


def test_what_config_json_leaves_out_is_as_transformers_has_it() -> None:
    config = {**LLAMA, "model_type": "gemma", "num_attention_heads": 2}
    del config["tie_word_embeddings"]
    shapes = tables.llama({**config, "head_dim": 256})
    assert profile_from_model(config, entries(shapes), "float16").layers[1].kv_bytes_per_token == 2 * 2 * 256 * 2


def test_the_digest_names_the_content() -> None:
    assert profile_from_model(LLAMA, llama(), "float32").digest == profile_from_model(LLAMA, llama(), "bfloat16").digest
    assert profile_from_model(LLAMA, llama(), "float32").digest != profile_from_model({**LLAMA, "x": 1}, llama(), "float32").digest


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in LLAMA.items() if key not in keys}


@pytest.mark.parametrize(
    ("config", "table", "dtype", "words"),
    [
        ({**LLAMA, "model_type": "mamba"}, llama(), "float32", "model_type 'mamba' is not served"),
        (without("model_type"), llama(), "float32", "model_type is missing"),
        ({**LLAMA, "model_type": ["llama"]}, llama(), "float32", "model_type ['llama'] is not served"),
        (LLAMA, llama(), "int8", "dtype 'int8' is not supported"),
        ({**LLAMA, "quantization_config": {}}, llama(), "float32", "quantized weights are not served"),
        ({**LLAMA, "num_hidden_layers": 3}, llama(), "float32", "no tensors for block 2 of 3"),
        ({**LLAMA, "num_hidden_layers": 1}, llama(), "float32", "belongs to block 1, config.json says 1 blocks"),
        ({**LLAMA, "hidden_size": "64"}, llama(), "float32", "hidden_size is '64', expected a positive whole number"),
        (without("hidden_size"), llama(), "float32", "hidden_size is missing"),
        ({**LLAMA, "tie_word_embeddings": False}, llama(), "float32", "lm_head.weight is missing"),
        (without("tie_word_embeddings"), llama(), "float32", "lm_head.weight is missing"),
        (LLAMA, llama(visual__patch__weight=(8, 8)), "float32", "visual.patch.weight belongs neither to"),
        (LLAMA, llama(model__layers__1__adapter=(8, 8)), "float32", "model.layers.1.adapter has no place in block 1"),
        (LLAMA, {n: t for n, t in llama().items() if "1.mlp.up" not in n}, "float32", "model.layers.1.mlp.up_proj.weight is missing"),
        ({**LLAMA, "vocab_size": 101}, llama(), "float32", "model.embed_tokens.weight has shape [100, 64], config.json says [101, 64]"),
        ({**LLAMA, "num_key_value_heads": 3}, llama(), "float32", "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        (LLAMA, llama(embed_tokens__weight=(100, 64)), "float32", "tensor model.embed_tokens.weight is stored twice"),
        ({**LLAMA, "hidden_act": "prelu"}, llama(), "float32", "hidden_act 'prelu' is not served"),
        ({**GPT2, "add_cross_attention": True}, entries(tables.gpt2(GPT2)), "float32", "add_cross_attention is true"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(config: dict[str, Any], table: dict[str, TensorInfo], dtype: str, words: str) -> None:
    with pytest.raises(ModelRefusedError) as found:
        profile_from_model(config, table, dtype)
    assert words in str(found.value)


@pytest.mark.parametrize(
    "key",
    ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "max_position_embeddings", "hidden_act",
     "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias"],
)  # fmt: skip
def test_an_explicit_null_is_refused_by_name(key: str) -> None:
    with pytest.raises(ModelRefusedError, match=f"config.json: {key} is null"):
        profile_from_model({**LLAMA, key: None}, llama(), "float32")


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters", "head_dim", "quantization_config", "architectures", "sliding_window"])
def test_a_null_that_transformers_takes_is_taken(key: str) -> None:
    assert len(profile_from_model({**LLAMA, key: None}, llama(), "float32").layers) == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", -1e-5),
        ("attention_bias", "yes"),
        ("initializer_range", 2),
        ("eos_token_id", ["a"]),
        ("pad_token_id", 1.5),
        ("use_cache", None),
        ("id2label", []),
        ("rope_parameters", []),
        ("rope_scaling", "linear"),
        ("rope_theta", "big"),
        ("num_key_value_heads", True),
        ("architectures", "LlamaForCausalLM"),
    ],
)
def test_a_value_of_a_kind_that_transformers_does_not_take_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ModelRefusedError, match=f"config.json: {key} is "):
        profile_from_model({**LLAMA, key: value}, llama(), "float32")


def test_a_mixture_of_experts_holds_all_of_them_and_reads_those_that_a_token_is_routed_to() -> None:
    config = {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "tie_word_embeddings": False}
    profile = profile_from_model(config, entries(family_tables.mixtral(config)), "bfloat16")
    block, expert, rest = profile.layers[1], 3 * 128 * 64, 64 * 64 * 2 + 32 * 64 * 2 + 8 * 64
    assert block.weight_bytes == (rest + 8 * expert + 2 * 64) * 2
    assert block.read_bytes_per_token == (rest + 2 * expert + 2 * 64) * 2
    assert block.flops_per_token == 2 * (rest + 2 * expert)


def test_a_block_without_experts_in_a_mixture_is_read_whole() -> None:
    config = {**LLAMA, "model_type": "qwen3_moe", "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 32,
              "mlp_only_layers": [0], "tie_word_embeddings": False}  # fmt: skip
    plain, routed = profile_from_model(config, entries(family_tables.qwen3_moe(config)), "bfloat16").layers[1:3]
    assert plain.read_bytes_per_token == plain.weight_bytes
    assert routed.read_bytes_per_token == routed.weight_bytes - 3 * 3 * 32 * 64 * 2


def test_biases_of_experts_that_are_stored_together_are_no_matrix() -> None:
    config = {
        **LLAMA,
        "model_type": "gpt_oss",
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
    }
    block = profile_from_model(config, entries(family_tables.gpt_oss(config)), "bfloat16").layers[1]
    assert block.flops_per_token == 2 * (64 * 64 * 2 + 32 * 64 * 2 + 4 * 64 + 2 * 3 * 128 * 64)
