"""Models that keep nothing between requests: one tensor goes in, tensors come out. What a segment needs to know of them."""

from collections.abc import Mapping
from typing import Protocol

import torch

from splitinference_protocol.wire.errors import BAD_REQUEST, WRONG_SEGMENT, SegmentError
from splitinference_protocol.wire.request import INT8, TensorMeta
from splitinference_segment.torch_ops.encoding import decode
from splitinference_segment.torch_ops.kv_torch import KvShape

NO_KV = KvShape(0, 0, 0, torch.float32)


class Stateless(Protocol):
    """Layers [start, end) of such a model. `run` takes what `values` made, and gives the hidden state for the next segment."""

    start: int
    end: int
    count: int
    hidden: int  # width of the hidden states that it sends on; 0: what it sends is none, and never encoded
    is_first: bool
    is_last: bool
    dtype: torch.dtype
    kv_shape: KvShape

    def weight_bytes(self) -> int:
        """Bytes of weights held."""

    def values(self, tensor: TensorMeta, data: torch.Tensor, most_tokens: int) -> torch.Tensor:
        """The request's tensor, checked. `most_tokens`: the longest context. SegmentError when these layers do not take it."""

    def example(self) -> torch.Tensor:
        """The smallest tensor that these layers take, for a probe."""

    def run(self, values: torch.Tensor) -> torch.Tensor:
        """Run the layers."""

    def outputs(self, hidden: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """What the last segment answers with, by name, in float32."""


def as_tensor(tensor: TensorMeta, data: torch.Tensor) -> torch.Tensor:
    """The bytes as the tensor that they are said to be. SegmentError `bad_request` when there are not so many."""
    if tensor.byte_size != data.numel():
        raise SegmentError(BAD_REQUEST, f"DATA has {data.numel()} bytes, the tensor needs {tensor.byte_size}")
    dtype = getattr(torch, tensor.dtype)
    return decode(data, tensor.shape, dtype) if tensor.encoding == INT8 else data.view(dtype).reshape(tensor.shape)


def not_taken(layers: Stateless, takes: str, tensor: TensorMeta) -> SegmentError:
    """The refusal of a tensor that belongs elsewhere."""
    return SegmentError(WRONG_SEGMENT, f"layers {layers.start}:{layers.end} take {takes}, got {tensor.dtype} {list(tensor.shape)}")
