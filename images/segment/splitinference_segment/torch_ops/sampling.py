"""Choosing a token. With a seed the choice depends on the request, seed, position, tokens so far and logits alone.

So it is the same for every split, after a replay and after a hand-over: nothing is kept here from one token to the next.
"""

from collections.abc import Sequence

import torch

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.sampling import Sampling, allowed_bits
from splitinference_segment.choices import Choice, uniform


def sample(logits: torch.Tensor, sampling: Sampling, position: int) -> Choice:
    """Choose the token that stands at `position`. Logits: float32, [vocabulary]. The sampling is checked (`Sampling.check`).

    Greedy at temperature 0; otherwise by inverting the cumulative distribution of the likeliest tokens: those that min_p and top_k leave,
    and of these the smallest set whose share of their probability reaches top_p.
    """
    scores = adjusted(logits, sampling)
    if sampling.temperature == 0.0 or sampling.top_p == 0.0:
        token = int(scores.argmax())
    else:
        ordered, ids = torch.sort(torch.softmax(scores.double() / sampling.temperature, dim=-1), descending=True, stable=True)
        whole = 1.0
        if sampling.top_k or sampling.min_p:
            left = int((ordered >= sampling.min_p * ordered[0]).sum())
            ordered = ordered[: min(left, sampling.top_k or left)]
            whole = float(ordered.sum())
        cumulative = ordered.cumsum(-1)
        # Keep every token before which less than top_p is covered: at least one.
        kept = int((cumulative - ordered < sampling.top_p * whole).sum())
        target = uniform(sampling.seed, position) * float(cumulative[kept - 1])
        token = int(ids[min(int(torch.searchsorted(cumulative[:kept], target, right=True)), kept - 1)])
    return _chosen(logits, token, sampling.logprobs)


def adjusted(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Logits after bias, allowed and banned tokens, and penalties, in this order (as in vLLM); the given ones where there are none."""
    if not sampling.adjusts:
        return logits
    scores = logits.clone()

    def at(ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=scores.device)

    for token, bias in sampling.bias:
        scores[token] += bias
    if sampling.allowed:
        scores = torch.where(_mask(sampling.allowed, len(scores)).to(scores.device), scores, -torch.inf)
    if sampling.banned:
        without = scores.index_fill(0, at(sampling.banned), -torch.inf)
        scores = without if bool((without > -torch.inf).any()) else scores  # a token must be left
    generated, counts = leb128.counts(sampling.generated)
    if sampling.repetition_penalty != 1.0 and (seen := sorted({*leb128.ids(sampling.prompt), *generated})):
        places = at(seen)
        picked = scores[places]
        scores[places] = torch.where(picked > 0, picked / sampling.repetition_penalty, picked * sampling.repetition_penalty)
    if generated and (sampling.frequency_penalty or sampling.presence_penalty):
        often = torch.tensor(counts, dtype=scores.dtype, device=scores.device)
        scores[at(generated)] -= sampling.frequency_penalty * often + sampling.presence_penalty
    return scores


def _mask(allowed: str, vocabulary: int) -> torch.Tensor:
    """Whether each token may come: bool, [vocabulary]."""
    data = bytearray(allowed_bits(allowed)[: -(-vocabulary // 8)])
    bits = (torch.frombuffer(data, dtype=torch.uint8).unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8)) & 1
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    given = bits.reshape(-1)[:vocabulary].bool()
    mask[: len(given)] = given
    return mask


def scored(logits: torch.Tensor, tokens: Sequence[int], logprobs: int) -> list[Choice]:
    """What the model says of tokens that are given. Logits: float32, [tokens, vocabulary], before each of them."""
    return [_chosen(line, token, logprobs) for line, token in zip(logits, tokens, strict=True)]


def _chosen(logits: torch.Tensor, token: int, logprobs: int) -> Choice:
    total = torch.logsumexp(logits, dim=-1)
    top: list[tuple[int, float]] = []
    if logprobs:
        best, ids = torch.topk(logits, min(logprobs, logits.shape[-1]))
        top = list(zip(ids.tolist(), (best - total).tolist(), strict=True))
    return Choice(token, float(logits[token] - total), top)
