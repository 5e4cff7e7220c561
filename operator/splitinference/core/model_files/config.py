"""A profile from what a model's folder says about itself: `config.json` and the headers of its safetensors files.

Pure: the bytes are read elsewhere. Whether the model is served at all is decided by the rules that the segments share
(`splitinference_modelfiles.models`). Of decoders layer 0 is the embedding, 1..N are the blocks, N+1 is the final norm with the head.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from splitinference.core.model_files.encoder import encoder_layers
from splitinference.core.model_files.gguf import profile_from_gguf
from splitinference.core.model_files.safetensors import BYTES_PER_ELEMENT, Tensors, content_digest, held_digest, matrix_elements
from splitinference.core.model_files.sequential import sequential_layers
from splitinference.core.values.profile import Layer, LayerKind, Profile
from splitinference_modelfiles.gguf_files.gguf_models import GGUF_KEY
from splitinference_modelfiles.held import AS_STORED
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
    weights: str = AS_STORED,
) -> Profile:
    """The profile of a model served in `dtype` (`float32`, `float16`, `bfloat16`). `files`: names in its folder; None: not known.
    `runtime_bytes` and `llama_runtime_bytes` (None: the same): memory of a segment server of either engine that holds no layer.

    `weights`: `spec.model.weights`, how segments hold matrices; of a GGUF model they stay as the file has them.

    FLOPs are two per multiplied weight; attention adds four per head dimension, head and attended position. All experts of a block are
    held; a token multiplies with and reads those that it is routed to. Raises ModelRefusedError where the model is not served.
    """
    if dtype not in BYTES_PER_ELEMENT:
        raise ModelRefusedError(f"dtype {dtype!r} is not supported; supported are {', '.join(sorted(BYTES_PER_ELEMENT))}")
    if GGUF_KEY in config:
        runtime = runtime_bytes if llama_runtime_bytes is None else llama_runtime_bytes
        return profile_from_gguf(config, tensors, dtype, runtime_bytes=runtime, model=model)
    found = served_model(config, tensors, files, weights=weights)
    size = BYTES_PER_ELEMENT[dtype]
    if found.family in ENCODERS:
        layers = encoder_layers(found, tensors, size)
    elif found.family == CHAIN:
        layers = sequential_layers(config, tensors, size)
    else:
        layers = _decoder_layers(found, DECODERS[found.family], size)
    return Profile(
        model=model or str(config.get("_name_or_path") or found.family),
        digest=held_digest(content_digest(config, tensors), weights),
        dtype=dtype,
        layers=tuple(layers),
        runtime_bytes=runtime_bytes,
        # Encoders answer requests that are too long themselves, whatever the longest context of the spec.
        positions=found.positions if found.family in DECODERS else None,
    )


def _all(_: str) -> float:
    return 1.0


def _decoder_layers(model: Model, family: Family, size: int) -> list[Layer]:
    assert model.sizes is not None  # noqa: S101 - only chains have none
    sizes = model.sizes
    blocks: list[Tensors] = [{} for _ in range(sizes.blocks)]
    embedding: Tensors = {}
    last: Tensors = {}

    def held(names: Iterable[str]) -> int:
        return sum(model.held_bytes(name, size) for name in names)

    def codes(names: Iterable[str]) -> int:
        return sum(model.tensor(name).elements for name in names if name in model.held)

    tables = (f"{family.embedding}.weight", f"{family.positions}.weight")
    for name in model.used:
        if name.startswith(f"{family.blocks}."):
            blocks[int(name.removeprefix(f"{family.blocks}.").partition(".")[0])][name] = model.tensor(name)
        else:
            (embedding if name in tables else last)[name] = model.tensor(name)
    boundary = sizes.hidden * size
    share = model.experts.share if model.experts else _all
    layers = [
        Layer(
            index=0,
            name="embedding",
            kind=LayerKind.EMBEDDING,
            weight_bytes=held(embedding),
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
                weight_bytes=held(block),
                read_bytes_per_token=round(sum(model.held_bytes(name, size) * share(name) for name in block)) if model.experts else None,
                quantized_weights=codes(block),
                flops_per_token=2.0 * sum(matrix_elements([t]) * share(name) for name, t in block.items() if not name.endswith("bias")),
                flops_per_token_and_context=4.0 * sizes.heads * sizes.head_dim,
                kv_bytes_per_token=2 * sizes.kv_heads * sizes.head_dim * size,
                boundary_bytes_per_token=boundary,
                boundary_values_per_token=sizes.hidden,
            )
        )
    matrix = sizes.vocabulary * sizes.hidden
    head = f"{family.embedding}.weight" if model.tied else HEAD
    layers.append(
        Layer(
            index=len(layers),
            name="norm and head",
            kind=LayerKind.HEAD,
            weight_bytes=held(name for name in last if name != HEAD) + held([head]),
            quantized_weights=codes([head]),
            flops_per_token=2.0 * matrix,
            boundary_bytes_per_token=8,
            tied_to=0 if model.tied else None,
            tied_bytes=held([head]) if model.tied else 0,
        )
    )
    return layers
