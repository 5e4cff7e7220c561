"""Choosing a token with numpy: the arithmetic of sampling.py, which has it in torch. Tests compare the two choice by choice."""

from collections.abc import Sequence

import numpy as np

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.sampling import Sampling, allowed_bits
from splitinference_segment.choices import Choice, uniform


def sample(logits: np.ndarray, sampling: Sampling, position: int) -> Choice:
    """Choose the token that stands at `position`. Logits: float32, [vocabulary]. The sampling is checked (`Sampling.check`).

    Greedy at temperature 0; otherwise by inverting the cumulative distribution of the likeliest tokens: those that min_p and top_k leave,
    and of these the smallest set whose share of their probability reaches top_p.
    """
    scores = adjusted(logits, sampling)
    if sampling.temperature == 0.0 or sampling.top_p == 0.0:
        token = int(scores.argmax())
    else:
        shares = scores.astype(np.float64) / sampling.temperature
        shares = np.exp(shares - shares.max())
        shares /= shares.sum()
        ids = np.argsort(-shares, kind="stable")
        ordered, whole = shares[ids], 1.0
        if sampling.top_k or sampling.min_p:
            left = int((ordered >= sampling.min_p * ordered[0]).sum())
            ordered = ordered[: min(left, sampling.top_k or left)]
            whole = float(ordered.sum())
        cumulative = np.cumsum(ordered)
        # Keep every token before which less than top_p is covered: at least one.
        kept = int((cumulative - ordered < sampling.top_p * whole).sum())
        target = uniform(sampling.seed, position) * float(cumulative[kept - 1])
        token = int(ids[min(int(np.searchsorted(cumulative[:kept], target, side="right")), kept - 1)])
    return chosen(logits, token, sampling.logprobs)


def adjusted(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Logits after bias, allowed and banned tokens, and penalties, in this order (as in vLLM); the given ones where there are none."""
    if not sampling.adjusts:
        return logits
    scores = logits.copy()
    for token, bias in sampling.bias:
        scores[token] += np.float32(bias)
    if sampling.allowed:
        scores = np.where(_mask(sampling.allowed, len(scores)), scores, np.float32(-np.inf))
    if sampling.banned:
        without = scores.copy()
        without[list(sampling.banned)] = -np.inf
        scores = without if bool((without > -np.inf).any()) else scores  # a token must be left
    generated, counts = leb128.counts(sampling.generated)
    if sampling.repetition_penalty != 1.0 and (seen := sorted({*leb128.ids(sampling.prompt), *generated})):
        picked, penalty = scores[seen], np.float32(sampling.repetition_penalty)
        scores[seen] = np.where(picked > 0, picked / penalty, picked * penalty)
    if generated and (sampling.frequency_penalty or sampling.presence_penalty):
        often = np.asarray(counts, np.float32)
        scores[list(generated)] -= np.float32(sampling.frequency_penalty) * often + np.float32(sampling.presence_penalty)
    return scores


def _mask(allowed: str, vocabulary: int) -> np.ndarray:
    """Whether each token may come: bool, [vocabulary]."""
    given = np.unpackbits(np.frombuffer(allowed_bits(allowed)[: -(-vocabulary // 8)], np.uint8), bitorder="little")[:vocabulary]
    mask = np.zeros(vocabulary, bool)
    mask[: len(given)] = given.astype(bool)
    return mask


def chosen(logits: np.ndarray, token: int, logprobs: int) -> Choice:
    """A token with what the model says of it, and of the likeliest."""
    most = logits.max()
    with np.errstate(invalid="ignore"):
        total = most + np.log(np.exp(logits - most).sum(dtype=np.float32))
    top: list[tuple[int, float]] = []
    if logprobs:
        count = min(logprobs, len(logits))
        ids = np.argpartition(-logits, count - 1)[:count]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        top = list(zip(ids.tolist(), (logits[ids] - total).tolist(), strict=True))
    return Choice(token, float(logits[token] - total), top)


def scored(logits: Sequence[np.ndarray], tokens: Sequence[int], logprobs: int) -> list[Choice]:
    """What the model says of tokens that are given. Logits: float32, [tokens, vocabulary], before each of them."""
    return [chosen(line, token, logprobs) for line, token in zip(logits, tokens, strict=True)]
