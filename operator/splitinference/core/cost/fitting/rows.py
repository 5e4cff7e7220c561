"""Measured times of layers on a processor, and what the cost model says of them."""

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field

from splitinference.core.cost.fitting.catalogue import Nominal
from splitinference.core.cost.site import Site, sites
from splitinference.core.cost.stage import decode_ms, prefill_ms
from splitinference.core.values.cluster import Node
from splitinference.core.values.efficiency import Efficiency
from splitinference.core.values.profile import Layer, LayerKind
from splitinference.core.values.value import Value

Phase = Literal["prefill", "decode"]
Run = tuple[int, Layer]
"""So many layers that are alike."""


class Row(Value):
    """One measured time: all layers of `model`, for `batch` sequences. `tokens`: of each prompt, or attended to by a decode step."""

    source: str = ""
    processor: str = Field(min_length=1)
    engine: str = Field(min_length=1)
    model: str = Field(min_length=1)
    phase: Phase
    batch: int = Field(ge=1, le=1_000_000)
    tokens: int = Field(ge=1, le=100_000_000)
    ms: float = Field(gt=0, le=1e9)


class Shape(Value):
    """A transformer with gated feed-forward layers by its sizes; without a vocabulary its blocks alone. `bits`: of a weight as held."""

    blocks: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    vocabulary: int = Field(default=0, ge=0)
    bits: float = Field(default=16.0, gt=0, le=64)
    head_bits: float = Field(default=16.0, gt=0, le=64)

    def runs(self) -> tuple[Run, ...]:
        """Its blocks, and its head where it has one; KV in 16 bits."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        weights = self.hidden * (2 * queries + 2 * keys + 3 * self.intermediate)
        block = Layer(
            index=0,
            name="block",
            weight_bytes=round(weights * self.bits / 8),
            quantized_weights=weights if self.bits < 16 else 0,
            flops_per_token=2.0 * weights,
            flops_per_token_and_context=4.0 * queries,
            kv_bytes_per_token=4 * keys,
            boundary_bytes_per_token=2 * self.hidden,
        )
        if not self.vocabulary:
            return ((self.blocks, block),)
        matrix = self.hidden * self.vocabulary
        head = Layer(
            index=1,
            name="head",
            kind=LayerKind.HEAD,
            weight_bytes=round(matrix * self.head_bits / 8),
            quantized_weights=matrix if self.head_bits < 16 else 0,
            flops_per_token=2.0 * matrix,
            boundary_bytes_per_token=8,
        )
        return ((self.blocks, block), (1, head))


Models = Mapping[str, tuple[Run, ...]]


def place_of(nominal: Nominal, efficiency: Efficiency) -> Site:
    """An idle place with these figures."""
    node = Node(
        name="measured",
        memory_free_bytes=0,
        flops_per_s=nominal.flops_per_s,
        memory_bandwidth_bytes_per_s=nominal.memory_bandwidth_bytes_per_s,
        efficiency=efficiency,
    )
    return sites(node)[0]


def known(rows: Iterable[Row], models: Models) -> None:
    """Raises ValueError where no model has a row's name."""
    for row in rows:
        if row.model not in models:
            raise ValueError(f"model {row.model!r} is unknown; known are {', '.join(sorted(models))}")


def predicted_ms(row: Row, models: Models, site: Site) -> float:
    """What the cost model says of a row of a known model.

    Of several prompts in one prefill, tokens attend to their own prompt alone. Prefills compute the head for one token of each.
    """
    total = 0.0
    for count, layer in models[row.model]:
        if row.phase == "decode":
            total += count * decode_ms(layer, site, row.batch, float(row.tokens))
        elif layer.kind is LayerKind.HEAD:
            total += count * prefill_ms(layer, site, row.batch)
        else:
            total += count * prefill_ms(_apart(layer, row.batch, row.tokens), site, row.batch * row.tokens)
    return total


def _apart(layer: Layer, prompts: int, tokens: int) -> Layer:
    """The layer as several prompts need it that are computed together: attention reaches back over one prompt, not over all."""
    if prompts == 1:
        return layer
    share = (tokens - 1) / (prompts * tokens - 1)
    return layer.model_copy(update={"flops_per_token_and_context": layer.flops_per_token_and_context * share})
