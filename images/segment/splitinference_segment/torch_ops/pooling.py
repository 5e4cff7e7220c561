"""From hidden states of tokens to one vector of a text, as sentence-transformers pools and normalizes (Reimers and Gurevych, 2019)."""

from collections.abc import Callable, Mapping

import torch

from splitinference_protocol.wire.pooling import Pooling


def _weighted(hidden: torch.Tensor) -> torch.Tensor:
    """Later tokens count more: the first once, the second twice, and so on (SGPT, Muennighoff, 2022)."""
    weights = torch.arange(1, hidden.shape[1] + 1, dtype=hidden.dtype, device=hidden.device)[None, :, None]
    return (hidden * weights).sum(dim=1) / weights.sum()


_POOLED: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda hidden: hidden[:, 0],
    "max": lambda hidden: hidden.amax(dim=1),
    "mean": lambda hidden: hidden.mean(dim=1),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(dim=1) / hidden.shape[1] ** 0.5,
    "weightedmean": _weighted,
    "lasttoken": lambda hidden: hidden[:, -1],
}


def pooled(hidden: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Hidden states [rows, tokens, hidden] without padding → float32 [rows, hidden times the number of modes]."""
    values = hidden.float()
    vectors = torch.cat([_POOLED[mode](values) for mode in pooling.modes], dim=-1)
    return torch.nn.functional.normalize(vectors, dim=-1) if pooling.normalize else vectors
