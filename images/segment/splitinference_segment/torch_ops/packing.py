"""Weights in the layout that oneDNN's kernels read fastest, made once when they are loaded.

Matrix products of decode steps are two to three times as quick on CPUs. The numbers are as exact, but sums are taken in another order, so
that last bits differ from the unsplit model's.
"""

from collections.abc import Iterable

import torch
from torch import nn

_DTYPES = (torch.bfloat16,)


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, which it alone holds."""

    def __init__(self, plain: nn.Linear) -> None:
        """Pack; the plain weight is free once nobody else holds it."""
        super().__init__()
        self.packed_bytes = plain.weight.nbytes
        self._packed = torch.ops.mkldnn._reorder_linear_weight(plain.weight.detach(), 1)
        self.bias = plain.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """What `nn.Linear` gives."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._packed, self.bias, "none", [], "")
        return result


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this machine's torch and processor have kernels for packed weights of this dtype."""
    if device.type != "cpu" or dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(module: nn.Module, shared: Iterable[int] = ()) -> nn.Module:
    """The module with every linear layer in it packed, but those whose weight begins at an address in `shared`: others hold them too."""
    kept = set(shared)
    if isinstance(module, nn.Linear):
        return module if module.weight.data_ptr() in kept else PackedLinear(module)
    for name, child in list(module.named_children()):
        replaced = packed(child, kept)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


def packed_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of packed weights in the modules."""
    return sum(part.packed_bytes for module in modules for part in module.modules() if isinstance(part, PackedLinear))
