"""Hidden states in fewer bytes, for thin links: eight bits a value, with a float32 scale for each block of 64 neighbours.

Lossy, so only on request (SI_LINK_ENCODING); docs/reference/data-plane-profile.md says what it costs in exactness.
"""

import torch

from splitinference_segment.protocol import INT8_BLOCK as BLOCK


def encode(hidden: torch.Tensor) -> torch.Tensor:
    """[tokens, hidden] of any float type → uint8: all scales, then all values; each row is filled up to whole blocks with zeros."""
    tokens, width = hidden.shape
    values = torch.nn.functional.pad(hidden.float(), (0, -width % BLOCK)).view(tokens, -1, BLOCK)
    scales = values.abs().amax(dim=-1) / 127.0
    whole = torch.where(scales > 0, scales, torch.ones_like(scales))[..., None]
    steps = (values / whole).round_().nan_to_num_(0.0).to(torch.int8)
    return torch.cat([scales.view(-1).view(torch.uint8), steps.view(-1).view(torch.uint8)])


def decode(data: torch.Tensor, tokens: int, hidden: int, dtype: torch.dtype) -> torch.Tensor:
    """The inverse, [tokens, hidden]. What was not finite makes its block not finite."""
    blocks = -(-hidden // BLOCK)
    scales = data[: tokens * blocks * 4].clone().view(torch.float32).view(tokens, blocks, 1)
    steps = data[tokens * blocks * 4 :].view(torch.int8).view(tokens, blocks, BLOCK)
    return (steps.float() * scales).view(tokens, -1)[:, :hidden].to(dtype)
