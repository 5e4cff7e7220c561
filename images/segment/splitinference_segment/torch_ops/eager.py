"""Attention with soft caps on its scores (Gemma 2), or with sinks (gpt-oss): operation for operation transformers' own `eager` attention,
which those families use, as torch's fused attention has neither."""

import torch
from torch.nn.functional import softmax

from splitinference_segment.cache.kv import KvEntry


def attend_eagerly(
    entry: KvEntry,
    block: int,
    query: torch.Tensor,
    mask: torch.Tensor,
    *,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attend to what the buffer holds. query [1, heads, tokens, width], mask [tokens, past with them] → [1, tokens, heads, width]."""
    heads, total = query.shape[1], mask.shape[1]
    keys, values = (part[None, :, :total].repeat_interleave(heads // part.shape[0], 1) for part in entry.buffer[:, block])
    scores = torch.matmul(query, keys.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    unseen = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min)
    scores = scores + unseen
    if sinks is None:
        weights = softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    else:
        scores = torch.cat([scores, sinks.reshape(1, -1, 1, 1).expand(1, -1, scores.shape[-2], -1)], dim=-1)
        scores = scores - scores.max(dim=-1, keepdim=True).values
        weights = softmax(scores, dim=-1, dtype=scores.dtype)[..., :-1].to(values.dtype)
    return torch.matmul(weights, values).transpose(1, 2)
