"""How far a segment's output is from the same layers' output elsewhere: relative errors for each token, and when they are too large.

Rounding makes honest outputs differ: other kernels, packed weights, other batches. A few channels of hidden states are a hundred times
larger than the others. They would hide every error in the rest, so the error is taken without them. They could be changed unseen if they
were left out, so their own error is taken too. The larger of the two counts.
"""

import torch

from splitinference_segment.verdicts import LARGEST, LEAST, WRONG, Verdict


def errors(expected: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
    """Relative error of each token, float32 [tokens], of hidden states [tokens, hidden] of any float dtype.

    The norm of the difference over the norm of what was expected, without the LARGEST channels of `expected` and of them alone; the larger
    one. WRONG where a value is no finite number.
    """
    wanted, found = expected.float(), received.float()
    count = min(LARGEST, wanted.shape[1] // 2)
    large = torch.zeros_like(wanted, dtype=torch.bool)
    if count:
        large.scatter_(1, wanted.abs().topk(count, dim=1).indices, True)
    difference = found - wanted
    rest = _norm(difference.masked_fill(large, 0.0)) / _norm(wanted.masked_fill(large, 0.0)).clamp(min=LEAST)
    massive = _norm(difference.masked_fill(~large, 0.0)) / _norm(wanted.masked_fill(~large, 0.0)).clamp(min=LEAST)
    found_errors = torch.maximum(rest, massive)
    return torch.where(found_errors.isfinite() & found.isfinite().all(dim=1), found_errors, WRONG).clamp(max=WRONG)


def verdict(expected: torch.Tensor, received: torch.Tensor, position: int) -> Verdict:
    """The errors of tokens from `position` of their sequence on, summed up."""
    found = errors(expected, received)
    at = int(found.argmax())
    return Verdict(len(found), float(found.mean()), float(found[at]), position + at)


def _norm(values: torch.Tensor) -> torch.Tensor:
    return values.norm(dim=1)
