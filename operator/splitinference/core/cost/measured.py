"""Times of one layer that were measured on a place, at points of batch and context; between the points they are interpolated."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from splitinference.core.values.cluster import LayerTime


def measured_ms(times: Sequence[LayerTime], tokens: int, batch: int, context: float) -> tuple[float, float]:
    """Milliseconds of a prompt of `tokens` and of a decode step of `batch` sequences at `context`, from measured `times` of one layer on
    one place.

    Steps are linear between measured batches and between measured contexts. Below the smallest of several batches a step takes as long
    as with that one, for it reads the weights all the same. Above the largest one, and where only one was measured, a step takes as long
    per sequence as there. Outside of the measured contexts the nearest one counts. Per token a prefill is linear between measured
    prompts. Raises ValueError where `times` is empty.
    """
    if not times:
        raise ValueError("no measured time is given")
    prompts = sorted({(_context(t), t.prefill_ms_per_token) for t in times if t.batch == _first_batch(times, t.context)})
    per_context = []
    for known in sorted({_context(t) for t in times}):
        per_context.append((known, _step_ms(sorted((t.batch, t.decode_ms_per_token) for t in times if _context(t) == known), batch)))
    return tokens * _between(prompts, tokens), _between(per_context, context)


def _context(time: LayerTime) -> float:
    return float(time.context or 0)


def _first_batch(times: Iterable[LayerTime], context: int | None) -> int:
    """Of several batches at one context, the smallest one's prefill time counts."""
    return min(t.batch for t in times if t.context == context)


def _step_ms(points: Sequence[tuple[int, float]], batch: int) -> float:
    """A decode step from (batch, ms per token and sequence), in the order of batches."""
    smallest, largest = points[0], points[-1]
    if batch >= largest[0] or len(points) == 1:
        return batch * largest[1]
    return _between([(float(b), b * each) for b, each in points], max(batch, smallest[0]))


def _between(points: Sequence[tuple[float, float]], at: float) -> float:
    """Linear between points in order; outside, the nearest point's value."""
    if at <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return points[-1][1]
