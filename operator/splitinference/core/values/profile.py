"""What a model costs, layer by layer: the part of a problem that does not depend on nodes."""

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from splitinference.core.values.value import Value


class LayerKind(StrEnum):
    """What a layer is. The embedding and the head are layers of their own."""

    EMBEDDING = "embedding"
    BLOCK = "block"
    HEAD = "head"
    GENERIC = "generic"


class Engine(StrEnum):
    """What computes the layers in a segment."""

    TORCH = "torch"
    """transformers' own modules, from safetensors."""
    LLAMA_CPP = "llamacpp"
    """libllama, from GGUF."""


class LinkEncoding(StrEnum):
    """How hidden states travel from one segment to the next."""

    PLAIN = "plain"
    """As they are computed, in the serving dtype."""
    INT8 = "int8"
    """A byte for each value and a float32 scale for each block of 64; each token's last block is filled up. With a loss."""
    AUTO = "auto"
    """Of a problem: INT8 on the links where a plan gains by it, PLAIN on the others. No tensor is encoded so."""


INT8_BLOCK = 64
INT8_SCALE_BYTES = 4


class Layer(Value):
    """The smallest indivisible unit of a model.

    FLOPs per token are for one token of one sequence at context length zero; the attention's share, which grows with
    the context, is `flops_per_token_and_context`: the FLOPs per token for each position attended to.
    """

    index: int = Field(ge=0)
    name: str
    kind: LayerKind = LayerKind.BLOCK
    weight_bytes: int = Field(ge=0, description="bytes held in memory where this layer runs, in the serving dtype")
    read_bytes_per_token: int | None = Field(
        default=None, ge=0, description="weight bytes read for one decoded token; None: all of weight_bytes"
    )
    quantized_weights: int = Field(
        default=0, ge=0, description="weights held in fewer bits than they are multiplied in: prefill dequantizes them first"
    )
    flops_per_token: float = Field(ge=0)
    flops_per_token_and_context: float = Field(default=0.0, ge=0)
    kv_bytes_per_token: int = Field(default=0, ge=0)
    boundary_bytes_per_token: int = Field(ge=0, description="activation bytes after this layer, for one token")
    boundary_values_per_token: int | None = Field(
        default=None, ge=1, description="width of the hidden state after this layer; None: what leaves it is no hidden state, never encoded"
    )
    tied_to: int | None = Field(
        default=None, ge=0, description="index of the layer that has the same weights: together in one segment, held once"
    )
    tied_bytes: int = Field(default=0, ge=0, description="how many of weight_bytes are those of `tied_to`")

    def sent_bytes_per_token(self, encoding: LinkEncoding) -> int:
        """Bytes of one token's tensor after this layer, on the way to the next segment."""
        if encoding is not LinkEncoding.INT8 or self.boundary_values_per_token is None:
            return self.boundary_bytes_per_token
        return -(-self.boundary_values_per_token // INT8_BLOCK) * (INT8_BLOCK + INT8_SCALE_BYTES)


class Profile(Value):
    """The layers of one model in one dtype."""

    model: str
    digest: str = Field(description="content hash of the configuration and the tensor table: names the model's content")
    dtype: str
    engine: Engine = Field(default=Engine.TORCH, description="what computes the layers; `dtype` is that of hidden states between segments")
    files: tuple[str, ...] = Field(default=(), description="names of the GGUF files that hold the layers, the first part first")
    content: str = Field(default="", description="digest of the tensors' bytes, `sha256:…`; empty: not known")
    commit: str = Field(default="", description="commit of the hub's repository that it was read from; empty: it is from no hub")
    layers: tuple[Layer, ...] = Field(min_length=1)
    runtime_bytes: int = Field(default=0, ge=0, description="memory of an empty segment server: server, stub, libraries")
    positions: int | None = Field(
        default=None, ge=1, description="the longest context that the model has positions for; None: no limit here"
    )
    split_points: tuple[int, ...] | None = Field(
        default=None, description="boundaries at which the engine can cut the model; None: at each of them"
    )

    @model_validator(mode="after")
    def _indices_count_up(self) -> Self:
        for expected, layer in enumerate(self.layers):
            if layer.index != expected:
                raise ValueError(f"layers[{expected}].index is {layer.index}, expected {expected}")
            if layer.tied_to is not None and layer.tied_to >= len(self.layers):
                raise ValueError(f"layers[{expected}].tied_to is {layer.tied_to}, there are {len(self.layers)} layers")
            if layer.tied_to is None:
                continue
            most = min(layer.weight_bytes, self.layers[layer.tied_to].weight_bytes)
            if layer.tied_bytes > most:
                raise ValueError(
                    f"layers[{expected}].tied_bytes is {layer.tied_bytes}, expected at most {most}: "
                    f"the smaller weight_bytes of layers {layer.tied_to} and {expected}"
                )
        return self

    def weight_bytes(self, start: int, end: int) -> int:
        """Bytes of weights that a segment [start, end) holds; a tied copy inside the segment counts once."""
        total = 0
        for layer in self.layers[start:end]:
            total += layer.weight_bytes
            if layer.tied_to is not None and start <= layer.tied_to < end:
                total -= layer.tied_bytes
        return total

    def kv_bytes_per_token(self, start: int, end: int) -> int:
        """Bytes of KV cache that a segment [start, end) keeps for each token of each sequence."""
        return sum(layer.kv_bytes_per_token for layer in self.layers[start:end])
