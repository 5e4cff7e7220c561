"""Layers of an encoder (BERT, RoBERTa): embeddings, blocks in which every token sees every other, a head; and no KV."""

import re
from collections.abc import Mapping
from typing import Any

from splitinference.core.model_files import TensorInfo, Tensors, UnreadableModel, elements, whole
from splitinference.core.profile import Layer, LayerKind

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})

_BLOCK = re.compile(r"(?:^|\.)encoder\.layer\.(\d+)\.")
_EMBEDDINGS = re.compile(r"(?:^|\.)embeddings\.")
_WORDS = "word_embeddings.weight"
_UNUSED = re.compile(r"position_ids$|(?:^|\.)cls\.seq_relationship\.")


def encoder_layers(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], size: int) -> list[Layer]:
    """Embedding, blocks and head in order; `size` is bytes per element. Raises UnreadableModel.

    The cost model takes the mean of a causal prefill, half the prompt, as the positions that a token attends to; here it is all of them, so
    the attention's FLOPs per token and position, four for each element of the hidden state, count twice.
    """
    hidden, count = whole(config, "hidden_size"), whole(config, "num_hidden_layers")
    embedding, blocks, head = _sort(tensors, count, str((config.get("architectures") or [""])[0]))
    words = next((tensor for name, tensor in embedding.items() if name.endswith(_WORDS)), None)
    if words is None:
        raise UnreadableModel(f"no token embedding ({_WORDS}) among the tensors")
    boundary = hidden * size
    rows = sum(1 for name in embedding if name.endswith("_embeddings.weight"))
    layers = [
        Layer(
            index=0,
            name="embeddings",
            kind=LayerKind.EMBEDDING,
            weight_bytes=elements(embedding) * size,
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
                weight_bytes=elements(block) * size,
                flops_per_token=2.0 * _matrices(block),
                flops_per_token_and_context=2.0 * 4.0 * hidden,
                boundary_bytes_per_token=boundary,
                boundary_values_per_token=hidden,
            )
        )
    masked = any(name.startswith(("cls.predictions.", "lm_head.")) for name in head)
    tied = masked and not any(name.endswith("decoder.weight") for name in head)
    matrices = _matrices(head) + (words.elements if tied else 0)
    layers.append(
        Layer(
            index=count + 1,
            name="head",
            kind=LayerKind.HEAD,
            weight_bytes=(elements(head) + (words.elements if tied else 0)) * size,
            flops_per_token=2.0 * matrices,
            boundary_bytes_per_token=4 * (words.shape[0] if masked else hidden),
            tied_to=0 if tied else None,
            tied_bytes=words.elements * size if tied else 0,
        )
    )
    return layers


def _sort(tensors: Mapping[str, TensorInfo], count: int, architecture: str) -> tuple[Tensors, list[Tensors], Tensors]:
    embedding: Tensors = {}
    head: Tensors = {}
    blocks: list[Tensors] = [{} for _ in range(count)]
    without_pooler = architecture.endswith(("ForMaskedLM", "ForTokenClassification"))
    for name, tensor in tensors.items():
        block = _BLOCK.search(name)
        if block is not None:
            if int(block.group(1)) >= count:
                raise UnreadableModel(f"tensor {name} belongs to block {block.group(1)}, config.json says {count} blocks")
            blocks[int(block.group(1))][name] = tensor
        elif _UNUSED.search(name) or (without_pooler and "pooler." in name):
            continue
        elif _EMBEDDINGS.search(name):
            embedding[name] = tensor
        else:
            head[name] = tensor
    for number, found in enumerate(blocks):
        if not found:
            raise UnreadableModel(f"no tensors for block {number} of {count}: a safetensors file is missing")
    return embedding, blocks, head


def _matrices(tensors: Mapping[str, TensorInfo]) -> int:
    return sum(tensor.elements for tensor in tensors.values() if len(tensor.shape) >= 2)
