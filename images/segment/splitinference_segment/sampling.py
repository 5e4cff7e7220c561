"""Choosing a token. With a seed the choice depends on seed, position and logits alone: the same for every split and after a replay."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitinference_segment.protocol import Sampling

_SYSTEM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Choice:
    """The token, its log-probability under the model (before temperature and top-p), and the likeliest alternatives."""

    token: int
    logprob: float
    top_logprobs: Sequence[tuple[int, float]] = ()


def uniform(seed: int | None, position: int) -> float:
    """A number in [0, 1): of seed and position alone, or random without a seed."""
    if seed is None:
        return _SYSTEM.random()
    digest = hashlib.blake2b(f"{seed}:{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2.0**64


def sample(logits: torch.Tensor, sampling: Sampling, position: int) -> Choice:
    """Choose the token that stands at `position`. Logits: float32, [vocabulary].

    Greedy at temperature 0; otherwise by inverting the cumulative distribution of the smallest set of likeliest tokens whose
    probability reaches top_p.
    """
    if sampling.temperature == 0.0 or sampling.top_p == 0.0:
        token = int(logits.argmax())
    else:
        ordered, ids = torch.sort(torch.softmax(logits.double() / sampling.temperature, dim=-1), descending=True, stable=True)
        cumulative = ordered.cumsum(-1)
        # Keep every token before which less than top_p is covered: at least one.
        kept = int((cumulative - ordered < sampling.top_p).sum())
        target = uniform(sampling.seed, position) * float(cumulative[kept - 1])
        token = int(ids[min(int(torch.searchsorted(cumulative[:kept], target, right=True)), kept - 1)])
    total = torch.logsumexp(logits, dim=-1)
    top: list[tuple[int, float]] = []
    if sampling.logprobs:
        best, ids = torch.topk(logits, min(sampling.logprobs, logits.shape[-1]))
        top = list(zip(ids.tolist(), (best - total).tolist(), strict=True))
    return Choice(token, float(logits[token] - total), top)
