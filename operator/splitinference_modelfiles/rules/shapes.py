"""Sizes of models, and the tensors of encoders with their shapes: names as transformers has them, with the base model's prefix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.rules.families import EncoderFamily
from splitinference_modelfiles.rules.settings import whole, yes

Shapes = dict[str, tuple[int | None, ...]]
"""Name → shape; None stands for a size that config.json need not say."""


@dataclass(frozen=True)
class Sizes:
    """The sizes that shapes and costs are made of."""

    hidden: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    positions: int


def encoder_shapes(config: Mapping[str, Any], family: EncoderFamily, head: str, sizes: Sizes) -> tuple[Shapes, dict[str, str]]:
    """All tensors with the head's, and which of them need not be stored, as they are tied to another."""
    hidden, prefix = sizes.hidden, family.base
    shapes: Shapes = {
        f"{prefix}.embeddings.word_embeddings.weight": (sizes.vocabulary, hidden),
        f"{prefix}.embeddings.position_embeddings.weight": (sizes.positions, hidden),
        f"{prefix}.embeddings.token_type_embeddings.weight": (whole(config, "type_vocab_size", default=2), hidden),
        **_norm(f"{prefix}.embeddings.LayerNorm", hidden),
    }
    for number in range(sizes.blocks):
        block = f"{prefix}.encoder.layer.{number}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= _linear(f"{block}.{name}", hidden, hidden)
        shapes |= _linear(f"{block}.intermediate.dense", sizes.inner, hidden) | _linear(f"{block}.output.dense", hidden, sizes.inner)
        shapes |= _norm(f"{block}.attention.output.LayerNorm", hidden) | _norm(f"{block}.output.LayerNorm", hidden)
    if head == "Model" and prefix == "bert":
        return shapes | _linear("bert.pooler.dense", hidden, hidden), {}
    if head == "Model":
        return shapes, {}
    if head == "ForTokenClassification":
        return shapes | _linear("classifier", None, hidden), {}
    if head == "ForSequenceClassification" and prefix == "bert":
        return shapes | _linear("bert.pooler.dense", hidden, hidden) | _linear("classifier", None, hidden), {}
    if head == "ForSequenceClassification":
        return shapes | _linear("classifier.dense", hidden, hidden) | _linear("classifier.out_proj", None, hidden), {}
    top = "cls.predictions" if prefix == "bert" else "lm_head"
    dense, norm = ("transform.dense", "transform.LayerNorm") if prefix == "bert" else ("dense", "layer_norm")
    shapes |= _linear(f"{top}.{dense}", hidden, hidden) | _norm(f"{top}.{norm}", hidden) | {f"{top}.bias": (sizes.vocabulary,)}
    shapes |= _linear(f"{top}.decoder", sizes.vocabulary, hidden)
    tied = {f"{top}.decoder.weight": f"{prefix}.embeddings.word_embeddings.weight", f"{top}.decoder.bias": f"{top}.bias"}
    return shapes, tied if yes(config, "tie_word_embeddings", True) else {}


def _linear(path: str, rows: int | None, columns: int) -> Shapes:
    return {f"{path}.weight": (rows, columns), f"{path}.bias": (rows,)}


def _norm(path: str, size: int) -> Shapes:
    return {f"{path}.weight": (size,), f"{path}.bias": (size,)}
