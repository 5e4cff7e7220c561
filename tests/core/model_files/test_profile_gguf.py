"""Profiles from GGUF headers: sizes, KV, experts, tied heads, and what is refused."""

from typing import Any

import pytest

from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.profile import Engine, Profile
from splitinference_modelfiles.gguf_files.gguf import GgufModel, joined_gguf, read_gguf
from splitinference_modelfiles.gguf_files.gguf_folder import described
from splitinference_modelfiles.gguf_files.gguf_models import GGUF_KEY, GGUF_SERVED, layers_of_tensor
from splitinference_modelfiles.stored.headers import ModelRefusedError
from tests.modelfiles.gguf_files import Gguf, llama, reader, u32


def model_of(whole: Gguf) -> GgufModel:
    return joined_gguf([("m.gguf", read_gguf(reader(whole.content()), "m.gguf", None))])


def profile(whole: Gguf, dtype: str = "bfloat16", **more: Any) -> Profile:
    model = model_of(whole)
    return profile_from_model(described(model), model.tensors, dtype, **more)


def q8(rows: int, columns: int) -> int:
    return rows * columns // 32 * 34


def without(whole: Gguf, *names: str) -> Gguf:
    return Gguf({k: v for k, v in whole.metadata.items() if k not in names}, {k: v for k, v in whole.tensors.items() if k not in names})


def test_a_llama_in_eight_bits():
    found = profile(llama(), runtime_bytes=7, llama_runtime_bytes=5, model="tiny")
    assert (found.model, found.engine, found.files, found.runtime_bytes, found.positions) == ("tiny", Engine.LLAMA_CPP, ("m.gguf",), 5, 512)
    embedding, block, _, head = found.layers
    assert embedding.weight_bytes == q8(96, 64)
    assert embedding.read_bytes_per_token == q8(1, 64)
    products = 64 * 64 * 2 + 32 * 64 * 2 + 3 * 128 * 64
    assert block.weight_bytes == q8(1, products) + 2 * 4 * 64
    assert (block.flops_per_token, block.quantized_weights, block.read_bytes_per_token) == (2.0 * products, products, None)
    assert block.flops_per_token_and_context == 4.0 * 4 * 16
    assert block.kv_bytes_per_token == 2 * 2 * 16 * 2
    assert (block.boundary_bytes_per_token, block.boundary_values_per_token) == (128, 64)
    assert (head.tied_to, head.tied_bytes, head.weight_bytes) == (0, q8(96, 64), q8(96, 64) + 4 * 64)
    assert found.weight_bytes(0, 4) == sum(info.bytes for info in model_of(llama()).tensors.values())


def test_weights_keep_their_type_whatever_the_dtype_of_hidden_states():
    wide, narrow = profile(llama(), "float32"), profile(llama(), "bfloat16")
    assert [layer.weight_bytes for layer in wide.layers] == [layer.weight_bytes for layer in narrow.layers]
    assert [layer.kv_bytes_per_token for layer in wide.layers] == [layer.kv_bytes_per_token for layer in narrow.layers]
    assert wide.layers[1].boundary_bytes_per_token == 2 * narrow.layers[1].boundary_bytes_per_token


def test_a_head_of_its_own_is_not_tied():
    head = profile(llama(tied=False)).layers[-1]
    assert (head.tied_to, head.tied_bytes, head.weight_bytes) == (None, 0, q8(96, 64) + 4 * 64)


def test_all_experts_are_held_and_those_routed_to_are_read():
    found = profile(llama(experts=8)).layers[1]
    dense, experts = 64 * 64 * 2 + 32 * 64 * 2, 8 * 3 * 128 * 64
    gate, norms = 8 * 64, 2 * 64
    assert found.weight_bytes == q8(1, dense + experts) + 4 * (gate + norms)
    assert found.read_bytes_per_token == q8(1, dense + experts // 4) + 4 * (gate + norms)
    assert found.flops_per_token == 2.0 * (dense + experts / 4 + gate)


def test_a_list_of_equal_heads_is_one_number():
    assert profile(saying(llama__attention__head_count_kv=[2, 2])).layers == profile(llama()).layers


@pytest.mark.parametrize(
    ("architecture", "blocks", "points"),
    [
        ("llama", 5, (2, 3, 4, 5)),
        ("smollm3", 9, (5, 9)),
        ("gemma2", 46, ()),
        ("gemma3", 62, ()),
        ("gemma3", 4, (2, 3, 4)),
        ("llama", 1, ()),
    ],
)
def test_a_model_is_cut_where_its_engine_can(architecture, blocks, points):
    found = profile(llama(blocks, arch=architecture))
    assert found.split_points == points
    assert all(0 < point < len(found.layers) for point in points)


def test_sizes_of_keys_and_values_may_be_stated():
    whole = llama(arch="gemma3", **{"gemma3.attention.key_length": u32(32), "gemma3.attention.value_length": u32(32)})
    tensors = dict(whole.tensors)
    for number in range(2):
        tensors |= {f"blk.{number}.attn_q.weight": ("Q8_0", (128, 64)), f"blk.{number}.attn_output.weight": ("Q8_0", (64, 128))}
        tensors |= {f"blk.{number}.attn_{name}.weight": ("Q8_0", (64, 64)) for name in "kv"}
        tensors |= {f"blk.{number}.attn_{name}_norm.weight": ("F32", (32,)) for name in "qk"}
    block = profile(Gguf(whole.metadata, tensors)).layers[1]
    assert (block.kv_bytes_per_token, block.flops_per_token_and_context) == (2 * 2 * 64, 2.0 * 4 * 64)


@pytest.mark.parametrize("architecture", list(GGUF_SERVED))
def test_the_tested_architectures_are_served(architecture):
    assert len(profile(llama(arch=architecture)).layers) == 4


def shaped(name: str, kind: str, shape: tuple[int, ...]) -> Gguf:
    whole = llama()
    return Gguf(whole.metadata, {**whole.tensors, name: (kind, shape)})


def saying(**metadata: Any) -> Gguf:
    whole = llama()
    return Gguf({**whole.metadata, **{key.replace("__", "."): value for key, value in metadata.items()}}, whole.tensors)


@pytest.mark.parametrize(
    ("whole", "reason"),
    [
        (llama(arch="nobody-knows-it"), "is not served: the llama.cpp engine is not tested with it. Tested are llama, qwen2"),
        (llama(arch="mamba2"), "keep a state"),
        (llama(arch="t5"), "encoder-decoders"),
        (saying(general__type="adapter"), "an adapter, which needs its base model"),
        (saying(general__type="mmproj"), "a projector for images"),
        (without(llama(), "llama.block_count"), "llama.block_count is missing, expected a positive whole number"),
        (saying(llama__block_count=u32(0)), "llama.block_count is 0"),
        (saying(llama__block_count=u32(3)), "no tensors for block 2 of 3"),
        (saying(llama__block_count=u32(1)), "belongs to block 1, block_count is 1"),
        (saying(llama__block_count=u32(2**31)), "llama.block_count is 2147483648"),
        (saying(llama__block_count=u32(2**31 - 1)), "more than 1024"),
        (saying(llama__attention__head_count="four"), "llama.attention.head_count is 'four'"),
        (saying(llama__attention__head_count_kv=[2]), "has 1 numbers for 2 blocks"),
        (saying(llama__attention__head_count_kv=[2, 1]), "is not the same for all blocks, and the llama.cpp engine could not hand KV over"),
        (saying(llama__attention__head_count=u32(8)), "attn_k.weight has shape [32, 64], the metadata says [16, 64]"),
        (saying(llama__expert_count=u32(4)), "llama.expert_used_count is 0, llama.expert_count is 4"),
        (saying(llama__expert_used_count=u32(4)), "llama.expert_used_count is 4, llama.expert_count is 0"),
        (shaped("blk.0.attn_q.weight", "Q8_0", (32, 64)), "has shape [32, 64], the metadata says [64, 64]"),
        (shaped("token_embd.weight", "Q8_0", (96, 32)), "token_embd.weight is of shape [96, 32], expected [any, 64]"),
        (shaped("token_embd.weight", "Q8_0", (95, 64)), "has 95 rows, the tokenizer has 96 tokens"),
        (shaped("output.weight", "Q8_0", (95, 64)), "output.weight has shape [95, 64]"),
        (shaped("vision.weight", "F32", (4,)), "tensor vision.weight belongs neither"),
        (without(llama(), "token_embd.weight"), "token_embd.weight is missing"),
        (without(llama(), "blk.1.attn_output.weight"), "blk.1.attn_output.weight is missing"),
        (without(llama(), "output_norm.weight"), "output_norm.weight is missing"),
        (saying(tokenizer__ggml__pre="viking"), "the gateway cannot build the model's tokenizer: tokenizer.ggml.pre is 'viking'"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused_with_the_reason(whole, reason):
    with pytest.raises(ModelRefusedError) as refused:
        profile(whole)
    assert reason in str(refused.value)


def test_experts_of_another_number_are_refused():
    whole = llama(experts=8)
    with pytest.raises(ModelRefusedError, match=r"holds 8 experts, llama\.expert_count is 4"):
        profile(Gguf({**whole.metadata, "llama.expert_count": u32(4)}, whole.tensors))


def test_every_tensor_is_needed_by_the_layers_that_hold_it():
    assert layers_of_tensor("blk.3.attn_q.weight", 30, tied=True) == (4,)
    assert layers_of_tensor("token_embd.weight", 30, tied=True) == (0, 31)
    assert layers_of_tensor("token_embd.weight", 30, tied=False) == (0,)
    assert layers_of_tensor("output.weight", 30, tied=False) == (31,)
    assert layers_of_tensor("output_norm.weight", 30, tied=False) == tuple(range(32)), "libllama wants it in every file"
    assert layers_of_tensor("rope_freqs.weight", 30, tied=False) == tuple(range(32))


def test_what_is_kept_has_no_tokens_and_no_long_values():
    whole = saying(general__license="x" * 5000, llama__odd=float("nan"))
    kept = described(model_of(whole))[GGUF_KEY]
    assert kept["tokenizer"] == {"model": "gpt2", "tokens": 96, "refused": ""}
    assert not [key for key in kept["metadata"] if key.startswith("tokenizer.") or key in ("general.license", "llama.odd")]


def test_another_content_has_another_digest():
    assert profile(llama()).digest != profile(llama(kind="F16")).digest
    assert profile(llama()).digest == profile(llama(), "float32").digest
