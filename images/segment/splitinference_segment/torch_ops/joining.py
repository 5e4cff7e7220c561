"""Linear layers of one block that take the same input become one product: queries, keys and values; gate and up.

A decode step's matrices are small, so that what a product costs besides reading its weights counts. In bfloat16 on CPUs each output is the
same sum in the same order whether its matrix stands alone or among others (tests hold every family to that), so the numbers stay bit for
bit those of the unsplit model. In float32 they would not, and the layers stay apart.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from splitinference_segment.torch_ops.packing import can_pack
from splitinference_segment.torch_ops.quantized import Matrix, QuantizedLinear

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # as transformers names them


class Joined(nn.Module):
    """The product of several layers; each of them takes its part of it."""

    def __init__(self, layers: Sequence[Any]) -> None:
        """Their weights, one below the other: the layers' own tensors are free afterwards."""
        super().__init__()
        first = layers[0]
        self._sizes = [layer.out_features for layer in layers]
        self._of: torch.Tensor | None = None
        self._made: dict[int, torch.Tensor] = {}
        self.whole: nn.Module
        if isinstance(first, QuantizedLinear):
            bias = None if first.bias is None else torch.cat([layer.bias for layer in layers])
            self.whole = QuantizedLinear(Matrix.joined([layer.matrix for layer in layers]), bias)
            return
        self.whole = nn.Linear(first.in_features, sum(self._sizes), bias=first.bias is not None, device="meta")
        self.whole.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        if first.bias is not None:
            self.whole.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)

    def part(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """What layer `index` gives. Whoever asks first for this input has all parts made; each is given out once."""
        if hidden is not self._of or index not in self._made:
            self._of, self._made = hidden, dict(enumerate(self.whole(hidden).split(self._sizes, -1)))
        found = self._made.pop(index)
        if not self._made:
            self._of = None
        return found


class Part(nn.Module):
    """Stands where one of the layers stood."""

    def __init__(self, joined: Joined, index: int) -> None:
        super().__init__()
        self.joined, self._index = joined, index

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the layer gave."""
        return self.joined.part(self._index, hidden)


def can_join(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether joined layers give the same bits here: bfloat16, where the processor has kernels for it."""
    return can_pack(dtype, device)


def join(block: nn.Module, *, plain: bool = True) -> None:
    """Join what can be joined in a block. `plain`: also layers that are not quantized; those that are give the same bits joined or not."""
    for module in list(block.modules()):
        for names in TOGETHER:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            found = [layer for layer in layers if type(layer) in (nn.Linear, QuantizedLinear)]
            if len(found) < len(names) or len({(type(layer), layer.in_features, layer.bias is None) for layer in found}) > 1:
                continue
            if not (Matrix.can_join([layer.matrix for layer in found]) if isinstance(found[0], QuantizedLinear) else plain):
                continue
            joined = Joined(found)
            for index, name in enumerate(names):
                setattr(module, name, Part(joined, index))
