"""A profile from what a model's folder says about itself: `config.json` and the headers of its safetensors files.

Pure: the bytes are read elsewhere. Whether the model is served at all is decided by the rules that the segments share
(`splitinference_modelfiles.models`). Of decoders layer 0 is the embedding, 1..N are the blocks, N+1 is the final norm with the head.
"""

from collections.abc import Collection, Mapping
from typing import Any

from splitinference.core.model_files.encoder import encoder_layers
from splitinference.core.model_files.gguf import profile_from_gguf
from splitinference.core.model_files.safetensors import BYTES_PER_ELEMENT, Tensors, content_digest, elements, matrix_elements
from splitinference.core.model_files.sequential import sequential_layers
from splitinference.core.values.profile import Layer, LayerKind, Profile
from splitinference_modelfiles.gguf_files.gguf_models import GGUF_KEY
from splitinference_modelfiles.models import HEAD, Model, served_model
from splitinference_modelfiles.rules.families import CHAIN, DECODERS, ENCODERS, Family
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

DEFAULT_RUNTIME_BYTES = 380 * 2**20
"""Memory of a segment server that holds no layer; measured on the CPU image. Settings may say otherwise."""


def profile_from_model(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    dtype: str,
    *,
    files: Collection[str] | None = None,
    runtime_bytes: int = DEFAULT_RUNTIME_BYTES,
    llama_runtime_bytes: int | None = None,
    model: str = "",
) -> Profile:
    """The profile of a model served in `dtype` (`float32`, `float16`, `bfloat16`). `files`: names in its folder; None: not known.
    `runtime_bytes` and `llama_runtime_bytes` (None: the same): memory of a segment server of either engine that holds no layer.

    FLOPs are two per multiplied weight; attention adds four per head dimension, head and attended position. All experts of a block are
    held; a token multiplies with and reads those that it is routed to. Raises ModelRefusedError where the model is not served.
    """
    if dtype not in BYTES_PER_ELEMENT:
        raise ModelRefusedError(f"dtype {dtype!r} is not supported; supported are {', '.join(sorted(BYTES_PER_ELEMENT))}")
    if GGUF_KEY in config:
        runtime = runtime_bytes if llama_runtime_bytes is None else llama_runtime_bytes
        return profile_from_gguf(config, tensors, dtype, runtime_bytes=runtime, model=model)
    found = served_model(config, tensors, files)
    size = BYTES_PER_ELEMENT[dtype]
    if found.family in ENCODERS:
        layers = encoder_layers(found, tensors, size)
    elif found.family == CHAIN:
        layers = sequential_layers(config, tensors, size)
    else:
        layers = _decoder_layers(found, DECODERS[found.family], tensors, size)
    return Profile(
        model=model or str(config.get("_name_or_path") or found.family),
        digest=content_digest(config, tensors),
        dtype=dtype,
        layers=tuple(layers),
        runtime_bytes=runtime_bytes,
        # Encoders answer requests that are too long themselves, whatever the longest context of the spec.
        positions=found.positions if found.family in DECODERS else None,
    )


def _all(_: str) -> float:
    return 1.0


def _decoder_layers(model: Model, family: Family, tensors: Mapping[str, TensorInfo], size: int) -> list[Layer]:
    assert model.sizes is not None  # noqa: S101 - only chains have none
    sizes = model.sizes
    blocks: list[Tensors] = [{} for _ in range(sizes.blocks)]
    embedding: Tensors = {}
    last: Tensors = {}
    tables = (f"{family.embedding}.weight", f"{family.positions}.weight")
    for name, stored in model.used.items():
        if name.startswith(f"{family.blocks}."):
            blocks[int(name.removeprefix(f"{family.blocks}.").partition(".")[0])][name] = tensors[stored]
        else:
            (embedding if name in tables else last)[name] = tensors[stored]
    boundary = sizes.hidden * size
    share = model.experts.share if model.experts else _all
    layers = [
        Layer(
            index=0,
            name="embedding",
            kind=LayerKind.EMBEDDING,
            weight_bytes=elements(embedding.values()) * size,
            read_bytes_per_token=len(embedding) * boundary,
            flops_per_token=float(sizes.hidden * len(embedding)),
            boundary_bytes_per_token=boundary,
            boundary_values_per_token=sizes.hidden,
        )
    ]
    for number, block in enumerate(blocks):
        layers.append(
            Layer(
                index=number + 1,
                name=f"block {number}",
                weight_bytes=elements(block.values()) * size,
                read_bytes_per_token=round(sum(t.elements * share(name) for name, t in block.items()) * size) if model.experts else None,
                flops_per_token=2.0 * sum(matrix_elements([t]) * share(name) for name, t in block.items() if not name.endswith("bias")),
                flops_per_token_and_context=4.0 * sizes.heads * sizes.head_dim,
                kv_bytes_per_token=2 * sizes.kv_heads * sizes.head_dim * size,
                boundary_bytes_per_token=boundary,
                boundary_values_per_token=sizes.hidden,
            )
        )
    norm = elements(tensor for name, tensor in last.items() if name != HEAD)
    matrix = sizes.vocabulary * sizes.hidden
    layers.append(
        Layer(
            index=len(layers),
            name="norm and head",
            kind=LayerKind.HEAD,
            weight_bytes=(norm + matrix) * size,
            flops_per_token=2.0 * matrix,
            boundary_bytes_per_token=8,
            tied_to=0 if model.tied else None,
            tied_bytes=matrix * size if model.tied else 0,
        )
    )
    return layers
