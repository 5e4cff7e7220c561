"""Profiles of encoders and generic chains: sizes by hand, and what cannot be read."""

from math import prod
from typing import Any

import pytest

from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.profile import LayerKind
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo
from tests.modelfiles import tables

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "architectures": ["BertModel"],
    "vocab_size": 100,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}
ROBERTA: dict[str, Any] = {**BERT, "model_type": "roberta", "architectures": ["RobertaModel"], "pad_token_id": 1}
BLOCK = 4 * 64 * 64 + 2 * 64 * 128
BIASES = 4 * 64 + 128 + 64 + 4 * 64
CHAIN: dict[str, Any] = {
    "model_type": "sequential",
    "input": {"shape": [1, 8, 8]},
    "layers": [
        {"type": "Conv2d", "in_channels": 1, "out_channels": 4, "kernel_size": 3, "padding": 1},
        {"type": "ReLU"},
        {"type": "MaxPool2d", "kernel_size": 2},
        {"type": "Flatten"},
        {"type": "Linear", "in_features": 64, "out_features": 10},
    ],
}


def table(shapes: dict[str, tuple[int, ...]]) -> dict[str, TensorInfo]:
    return {name: TensorInfo("F32", shape, 4 * prod(shape)) for name, shape in shapes.items()}


def bert(head: str = "Model", config: dict[str, Any] | None = None) -> dict[str, TensorInfo]:
    return table(tables.bert(config or BERT, head))


def chain() -> dict[str, TensorInfo]:
    return table({"0.weight": (4, 1, 3, 3), "0.bias": (4,), "4.weight": (10, 64), "4.bias": (10,)})


def test_an_encoder_has_no_kv_and_a_head_of_its_own() -> None:
    profile = profile_from_model(BERT, bert(), "bfloat16", runtime_bytes=7)
    embedding, block, _, head = profile.layers
    assert [layer.kind for layer in profile.layers] == [LayerKind.EMBEDDING, LayerKind.BLOCK, LayerKind.BLOCK, LayerKind.HEAD]
    assert embedding.weight_bytes == (100 + 32 + 2 + 2) * 64 * 2
    assert embedding.read_bytes_per_token == 3 * 64 * 2
    assert block.weight_bytes == (BLOCK + BIASES) * 2
    assert block.flops_per_token == 2 * BLOCK
    assert block.flops_per_token_and_context == 8 * 64  # every position, where the cost model takes half of them
    assert profile.kv_bytes_per_token(0, 4) == 0
    assert (head.weight_bytes, head.boundary_bytes_per_token) == ((64 * 64 + 64) * 2, 64 * 4)
    assert [layer.boundary_values_per_token for layer in profile.layers] == [64, 64, 64, None]
    assert profile.runtime_bytes == 7


def test_a_masked_language_model_is_tied_to_its_embedding_and_needs_no_pooler() -> None:
    config = {**BERT, "architectures": ["BertForMaskedLM"]}
    tensors = {**bert("ForMaskedLM"), **table({"pooler.dense.weight": (64, 64), "cls.seq_relationship.weight": (2, 64)})}
    head = profile_from_model(config, tensors, "float32").layers[-1]
    own = 64 * 64 + 3 * 64 + 100
    assert (head.tied_to, head.tied_bytes, head.weight_bytes) == (0, 100 * 64 * 4, (100 * 64 + own) * 4)
    assert head.boundary_bytes_per_token == 4 * 100
    stored = tensors | table({"cls.predictions.decoder.weight": (100, 64)})
    assert profile_from_model(config, stored, "float32").layers[-1].tied_to is None
    with pytest.raises(ModelRefusedError, match=r"cls\.predictions\.decoder\.bias is missing"):
        profile_from_model({**config, "tie_word_embeddings": False}, stored, "float32")


def test_a_model_without_a_head_has_a_last_layer_of_no_weight() -> None:
    profile = profile_from_model(ROBERTA, bert(config=ROBERTA), "float32")
    assert profile.layers[-1].weight_bytes == 0
    assert len(profile.layers) == 4


def test_a_chain_costs_what_its_layers_do_to_one_row() -> None:
    profile = profile_from_model(CHAIN, chain(), "float16")
    convolution, relu, pool, flat, linear = profile.layers
    assert {layer.kind for layer in profile.layers} == {LayerKind.GENERIC}
    assert (convolution.weight_bytes, convolution.flops_per_token) == ((36 + 4) * 2, 2 * 36 * 64)
    assert [layer.boundary_bytes_per_token for layer in profile.layers] == [512, 512, 128, 128, 40]
    assert (relu.flops_per_token, pool.weight_bytes, flat.weight_bytes) == (256, 0, 0)
    assert (linear.weight_bytes, linear.flops_per_token) == (650 * 2, 2 * 640)
    assert {layer.boundary_values_per_token for layer in profile.layers} == {None}


@pytest.mark.parametrize(
    ("config", "tensors", "words"),
    [
        (BERT | {"num_hidden_layers": 3}, bert(), "no tensors for block 2 of 3"),
        (BERT | {"num_hidden_layers": 1}, bert(), "belongs to block 1, config.json says 1 blocks"),
        (BERT, {name: t for name, t in bert().items() if "word" not in name}, "embeddings.word_embeddings.weight is missing"),
        ({k: v for k, v in BERT.items() if k != "hidden_size"}, bert(), "hidden_size is missing"),
        (CHAIN | {"layers": []}, {}, "layers is empty"),
        ({k: v for k, v in CHAIN.items() if k != "input"}, chain(), "input.shape"),
        (CHAIN, chain() | table({"5.weight": (1,)}), "tensor 5.weight belongs to none of the 5 layers"),
        (CHAIN | {"layers": [{"type": "LSTM"}]}, {}, "layers[0] (LSTM) on rows of shape [1, 8, 8]: this type of layer is not served"),
        (CHAIN | {"layers": [{"type": "MaxPool2d", "kernel_size": 9}]}, {}, "nothing is left"),
        (CHAIN | {"layers": [{"type": "Linear"}]}, {}, "in_features"),
        (CHAIN | {"layers": [{"type": "Linear", "in_features": 7, "out_features": 1}]}, {}, "in_features is 7, the row has 8"),
        (CHAIN | {"layers": [{"type": "MaxPool2d", "kernel_size": 2, "ceil_mode": True}]}, {}, "the argument 'ceil_mode' is not served"),
        (CHAIN | {"layers": [{"type": "GELU", "approximate": "erf"}]}, {}, "approximate"),
        (CHAIN | {"layers": [{"type": "Conv1d", "in_channels": 1, "out_channels": 1, "kernel_size": 1}]}, {}, "number of dimensions"),
        (CHAIN, {**chain(), **table({"4.weight": (10, 63)})}, "tensor 4.weight has shape [10, 63], config.json says [10, 64]"),
        (CHAIN, {name: t for name, t in chain().items() if name != "0.bias"}, "tensor 0.bias is missing"),
        (BERT, {n: t for n, t in bert().items() if "pooler" not in n}, "bert.pooler.dense.weight and 1 more is missing"),
        (ROBERTA | {"pad_token_id": None}, bert(config=ROBERTA), "pad_token_id is null"),
        (ROBERTA | {"pad_token_id": 40}, bert(config=ROBERTA), "leaves no position"),
        (BERT | {"type_vocab_size": None}, bert(), "type_vocab_size is null"),
    ],
)
def test_what_cannot_be_read_is_said(config: dict[str, Any], tensors: dict[str, TensorInfo], words: str) -> None:
    with pytest.raises(ModelRefusedError) as found:
        profile_from_model(config, tensors, "float32")
    assert words in str(found.value)


def test_a_bert_as_first_published_is_the_same_model() -> None:
    former = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in bert().items()}
    assert sum(name.endswith(".gamma") for name in former) > 1
    assert profile_from_model(BERT, former, "bfloat16").layers == profile_from_model(BERT, bert(), "bfloat16").layers


def test_a_norm_under_both_names_is_refused() -> None:
    twice = bert() | {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in bert().items() if n.endswith("LayerNorm.weight")}
    with pytest.raises(ModelRefusedError, match="is stored twice, as"):
        profile_from_model(BERT, twice, "bfloat16")
