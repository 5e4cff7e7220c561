"""A profile from what a GGUF file says about itself. Weights keep the types in which they are stored."""

from collections.abc import Mapping
from typing import Any

from splitinference.core.model_files.safetensors import BYTES_PER_ELEMENT, content_digest
from splitinference.core.values.profile import Engine, Layer, LayerKind, Profile
from splitinference_modelfiles.gguf_files.gguf import QUANTIZED
from splitinference_modelfiles.gguf_files.gguf_models import GGUF_KEY, GgufSizes, gguf_sizes, layer_of_tensor
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo


def profile_from_gguf(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], dtype: str, *, runtime_bytes: int, model: str = ""
) -> Profile:
    """The profile of a model that the llama.cpp engine serves. `dtype`: of hidden states between segments.

    FLOPs are two per multiplied weight and four per head dimension, head and attended position. All experts of a block are held; a token
    multiplies with and reads those that it is routed to. ModelRefusedError where the model is not served.
    """
    if dtype not in BYTES_PER_ELEMENT:
        raise ModelRefusedError(f"dtype {dtype!r} is not supported; supported are {', '.join(sorted(BYTES_PER_ELEMENT))}")
    sizes = gguf_sizes(config, tensors)
    parts: list[dict[str, TensorInfo]] = [{} for _ in range(sizes.blocks + 2)]
    for name, info in tensors.items():
        parts[layer_of_tensor(name, sizes.blocks)][name] = info
    return Profile(
        model=model or sizes.architecture,
        digest=content_digest(config, tensors),
        dtype=dtype,
        engine=Engine.LLAMA_CPP,
        files=tuple(config[GGUF_KEY]["files"]),
        layers=tuple(_layer(sizes, index, part, tensors, BYTES_PER_ELEMENT[dtype]) for index, part in enumerate(parts)),
        runtime_bytes=runtime_bytes,
        positions=sizes.positions,
        split_points=sizes.split_points,
    )


def _layer(sizes: GgufSizes, index: int, own: Mapping[str, TensorInfo], every: Mapping[str, TensorInfo], size: int) -> Layer:
    boundary = sizes.hidden * size
    held = sum(info.bytes for info in own.values())
    if index == 0:
        embedding = every["token_embd.weight"]
        return Layer(
            index=0,
            name="embedding",
            kind=LayerKind.EMBEDDING,
            weight_bytes=held,
            read_bytes_per_token=embedding.bytes // embedding.shape[0],
            flops_per_token=float(sizes.hidden),
            boundary_bytes_per_token=boundary,
            boundary_values_per_token=sizes.hidden,
        )
    if index <= sizes.blocks:
        read = sum(info.bytes * sizes.share(name) for name, info in own.items())
        return Layer(
            index=index,
            name=f"block {index - 1}",
            weight_bytes=held,
            read_bytes_per_token=round(read) if sizes.experts else None,
            quantized_weights=_quantized(own),
            flops_per_token=2.0 * _multiplied(sizes, own),
            flops_per_token_and_context=2.0 * sizes.heads * (sizes.key + sizes.value),
            kv_bytes_per_token=sizes.kv_bytes_per_token,
            boundary_bytes_per_token=boundary,
            boundary_values_per_token=sizes.hidden,
        )
    tied = {"token_embd.weight": every["token_embd.weight"]} if sizes.tied else {}
    extra = sum(info.bytes for info in tied.values())
    return Layer(
        index=index,
        name="norm and head",
        kind=LayerKind.HEAD,
        weight_bytes=held + extra,
        quantized_weights=_quantized({**own, **tied}),
        flops_per_token=2.0 * sizes.vocabulary * sizes.hidden,
        boundary_bytes_per_token=8,
        tied_to=0 if sizes.tied else None,
        tied_bytes=extra,
    )


def _multiplied(sizes: GgufSizes, own: Mapping[str, TensorInfo]) -> float:
    """Weights that one token is multiplied with: matrices, of experts those that it is routed to. A list of biases is no matrix."""
    matrices = ((name, info) for name, info in own.items() if len(info.shape) >= 2 and name.endswith(".weight"))
    return sum(info.elements * sizes.share(name) for name, info in matrices)


def _quantized(own: Mapping[str, TensorInfo]) -> int:
    return sum(info.elements for info in own.values() if info.dtype in QUANTIZED)
