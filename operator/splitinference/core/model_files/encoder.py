"""Layers of an encoder (BERT, RoBERTa): embeddings, blocks in which every token sees every other, a head; and no KV."""

from collections.abc import Mapping

from splitinference.core.model_files.safetensors import Tensors, elements, matrix_elements
from splitinference.core.values.profile import Layer, LayerKind
from splitinference_modelfiles.models import Model
from splitinference_modelfiles.rules.families import ENCODERS
from splitinference_modelfiles.stored.headers import TensorInfo


def encoder_layers(model: Model, tensors: Mapping[str, TensorInfo], size: int) -> list[Layer]:
    """Embedding, blocks and head in order; `size` is bytes per element.

    The cost model takes the mean of a causal prefill, half the prompt, as the positions that a token attends to; here it is all of them, so
    the attention's FLOPs per token and position, four for each element of the hidden state, count twice.
    """
    assert model.sizes is not None  # noqa: S101 - only chains have none
    hidden, count, base = model.sizes.hidden, model.sizes.blocks, ENCODERS[model.family].base
    embedding: Tensors = {}
    head: Tensors = {}
    blocks: list[Tensors] = [{} for _ in range(count)]
    for name, stored in model.used.items():
        if name.startswith(f"{base}.encoder.layer."):
            blocks[int(name.removeprefix(f"{base}.encoder.layer.").partition(".")[0])][name] = tensors[stored]
        else:
            (embedding if name.startswith(f"{base}.embeddings.") else head)[name] = tensors[stored]
    boundary = hidden * size
    rows = sum(1 for name in embedding if name.endswith("_embeddings.weight"))
    layers = [
        Layer(
            index=0,
            name="embeddings",
            kind=LayerKind.EMBEDDING,
            weight_bytes=elements(embedding.values()) * size,
            read_bytes_per_token=rows * boundary,
            flops_per_token=float(hidden * rows),
            boundary_bytes_per_token=boundary,
            boundary_values_per_token=hidden,
        )
    ]
    for number, block in enumerate(blocks):
        layers.append(
            Layer(
                index=number + 1,
                name=f"block {number}",
                weight_bytes=elements(block.values()) * size,
                flops_per_token=2.0 * matrix_elements(block.values()),
                flops_per_token_and_context=2.0 * 4.0 * hidden,
                boundary_bytes_per_token=boundary,
                boundary_values_per_token=hidden,
            )
        )
    words = model.sizes.vocabulary * hidden if model.tied else 0
    layers.append(
        Layer(
            index=count + 1,
            name="head",
            kind=LayerKind.HEAD,
            weight_bytes=(elements(head.values()) + words) * size,
            flops_per_token=2.0 * (matrix_elements(head.values()) + words),
            boundary_bytes_per_token=4 * (model.sizes.vocabulary if model.head == "ForMaskedLM" else hidden),
            tied_to=0 if model.tied else None,
            tied_bytes=words * size,
        )
    )
    return layers
