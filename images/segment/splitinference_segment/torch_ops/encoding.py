"""Hidden states in fewer bytes, for thin links: eight bits a value, with a float32 scale for each block of 64 neighbours.

Lossy, so only on request (SI_LINK_ENCODING); docs/reference/data-plane-profile.md says what it costs in exactness.
"""

import math
from collections.abc import Sequence

import torch

from splitinference_protocol.wire.request import INT8_BLOCK as BLOCK


def encode(hidden: torch.Tensor) -> torch.Tensor:
    """[…, hidden] of any float type → uint8: all scales, then all values; each row is filled up to whole blocks with zeros."""
    width = hidden.shape[-1]
    rows = hidden.float().reshape(-1, width)
    values = torch.nn.functional.pad(rows, (0, -width % BLOCK)).view(len(rows), -1, BLOCK)
    scales = values.abs().amax(dim=-1) / 127.0
    whole = torch.where(scales > 0, scales, torch.ones_like(scales))[..., None]
    steps = (values / whole).round_().nan_to_num_(0.0).to(torch.int8)
    return torch.cat([scales.view(-1).view(torch.uint8), steps.view(-1).view(torch.uint8)])


def decode(data: torch.Tensor, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """The inverse, of this shape. What was not finite makes its block not finite."""
    rows, hidden = math.prod(shape[:-1]), shape[-1]
    blocks = -(-hidden // BLOCK)
    scales = data[: rows * blocks * 4].clone().view(torch.float32).view(rows, blocks, 1)
    steps = data[rows * blocks * 4 :].view(torch.int8).view(rows, blocks, BLOCK)
    return (steps.float() * scales).view(rows, -1)[:, :hidden].to(dtype).reshape(tuple(shape))
