"""A profile from what a model's folder says about itself: `config.json` and the headers of its safetensors files.

Pure: the bytes are read elsewhere. Of decoders layer 0 is the embedding, 1..N are the blocks, N+1 is the final norm with the head.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference.core.model_files import BYTES_PER_ELEMENT, TensorInfo, Tensors, UnreadableModel, content_digest, elements, whole
from splitinference.core.profile import Layer, LayerKind, Profile
from splitinference.core.profile_encoder import ENCODERS, encoder_layers
from splitinference.core.profile_sequential import SEQUENTIAL, sequential_layers

DEFAULT_RUNTIME_BYTES = 380 * 2**20
"""Memory of a segment server that holds no layer; measured on the CPU image. Settings may say otherwise."""

FAMILIES = frozenset({"llama", "mistral", "qwen2", "qwen3", "gpt2", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3"})

_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "wpe.weight")
_HEAD = "lm_head.weight"
_LAST = ("model.norm.weight", "norm.weight", "norm.bias", "ln_f.weight", "ln_f.bias", _HEAD)


def profile_from_model(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    dtype: str,
    *,
    runtime_bytes: int = DEFAULT_RUNTIME_BYTES,
    model: str = "",
) -> Profile:
    """The profile of a model served in `dtype` (`float32`, `float16`, `bfloat16`).

    FLOPs are two per multiplied weight; attention adds four per head dimension, head and attended position. Raises
    UnreadableModel for families, dtypes or tensor tables that are not understood.
    """
    family = str(config.get("model_type", ""))
    if family not in FAMILIES | ENCODERS | {SEQUENTIAL}:
        known = ", ".join(sorted(FAMILIES | ENCODERS | {SEQUENTIAL}))
        raise UnreadableModel(f"model_type {family!r} is not supported; supported are {known}")
    if dtype not in BYTES_PER_ELEMENT:
        raise UnreadableModel(f"dtype {dtype!r} is not supported; supported are {', '.join(sorted(BYTES_PER_ELEMENT))}")
    if "quantization_config" in config:
        raise UnreadableModel("quantized weights are not supported: the profile would be wrong by the factor of quantization")
    size = BYTES_PER_ELEMENT[dtype]
    if family in ENCODERS:
        layers = encoder_layers(config, tensors, size)
    elif family == SEQUENTIAL:
        layers = sequential_layers(config, tensors, size)
    else:
        layers = _decoder_layers(config, tensors, size)
    name = model or str(config.get("_name_or_path") or family)
    return Profile(model=name, digest=content_digest(config, tensors), dtype=dtype, layers=tuple(layers), runtime_bytes=runtime_bytes)


def _decoder_layers(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], size: int) -> list[Layer]:
    shape = _shape(config)
    embedding, blocks, head = _sort(tensors, shape.blocks)
    tied = not any(name.endswith(_HEAD) for name in head)
    token_table = next((t for name, t in embedding.items() if name.endswith(("embed_tokens.weight", "wte.weight"))), None)
    if token_table is None:
        raise UnreadableModel("no token embedding (embed_tokens.weight or wte.weight) among the tensors")
    if tied and config.get("tie_word_embeddings") is False:
        raise UnreadableModel("tie_word_embeddings is false and lm_head.weight is missing")
    boundary = shape.hidden * size
    layers = [
        Layer(
            index=0,
            name="embedding",
            kind=LayerKind.EMBEDDING,
            weight_bytes=elements(embedding) * size,
            read_bytes_per_token=len(embedding) * shape.hidden * size,
            flops_per_token=float(shape.hidden * len(embedding)),
            boundary_bytes_per_token=boundary,
            boundary_values_per_token=shape.hidden,
        )
    ]
    for number, block in enumerate(blocks):
        matrices = sum(t.elements for t in block.values() if len(t.shape) >= 2)
        layers.append(
            Layer(
                index=number + 1,
                name=f"block {number}",
                weight_bytes=elements(block) * size,
                flops_per_token=2.0 * matrices,
                flops_per_token_and_context=4.0 * shape.heads * shape.head_dim,
                kv_bytes_per_token=2 * shape.kv_heads * shape.head_dim * size,
                boundary_bytes_per_token=boundary,
                boundary_values_per_token=shape.hidden,
            )
        )
    norm = sum(t.elements for name, t in head.items() if not name.endswith(_HEAD))
    matrix = token_table.elements if tied else sum(t.elements for name, t in head.items() if name.endswith(_HEAD))
    layers.append(
        Layer(
            index=len(layers),
            name="norm and head",
            kind=LayerKind.HEAD,
            weight_bytes=(norm + matrix) * size,
            flops_per_token=2.0 * matrix,
            boundary_bytes_per_token=8,
            tied_to=0 if tied else None,
            tied_bytes=matrix * size if tied else 0,
        )
    )
    return layers


@dataclass(frozen=True)
class _Shape:
    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int


def _shape(config: Mapping[str, Any]) -> _Shape:
    hidden = whole(config, "hidden_size", "n_embd")
    heads = whole(config, "num_attention_heads", "n_head")
    kv_heads = whole(config, "num_key_value_heads") if config.get("num_key_value_heads") is not None else heads
    head_dim = whole(config, "head_dim") if config.get("head_dim") is not None else hidden // heads
    return _Shape(hidden, whole(config, "num_hidden_layers", "n_layer"), heads, kv_heads, head_dim)


def _sort(tensors: Mapping[str, TensorInfo], count: int) -> tuple[Tensors, list[Tensors], Tensors]:
    embedding: Tensors = {}
    head: Tensors = {}
    blocks: list[Tensors] = [{} for _ in range(count)]
    for name, tensor in tensors.items():
        block = _BLOCK.search(name)
        if block is None and name.endswith(_EMBEDDINGS):
            embedding[name] = tensor
        elif block is None and name.endswith(_LAST):
            head[name] = tensor
        elif block is None:
            raise UnreadableModel(f"tensor {name} belongs neither to the embedding, nor to a block, nor to norm and head")
        elif int(block.group(1)) >= count:
            raise UnreadableModel(f"tensor {name} belongs to block {block.group(1)}, config.json says {count} blocks")
        elif not name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")):
            blocks[int(block.group(1))][name] = tensor
    for number, tensors_of_block in enumerate(blocks):
        if not tensors_of_block:
            raise UnreadableModel(f"no tensors for block {number} of {count}: a safetensors file is missing")
    return embedding, blocks, head
