"""When requests come and how long they are: the same for every policy, because they depend on trace and seed alone."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from splitinference.simulation.system.places import TOKENS_ROUNDED_TO
from splitinference.simulation.traces.trace import RateEvent, Trace


@dataclass(frozen=True)
class Arrival:
    """One request: when it comes (seconds), the tokens of its prompt, and the tokens that it wants."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def arrivals(trace: Trace, seed: int) -> Iterator[Arrival]:
    """All requests of the trace, in order: a Poisson process whose rate the trace changes."""
    times, lengths = random.Random(f"{seed}/times"), random.Random(f"{seed}/lengths")
    changes = [(0.0, trace.requests_per_s), *((e.at_s, e.value) for e in trace.events if isinstance(e, RateEvent))]
    changes.append((trace.duration_s, 0.0))
    for (start, rate), (end, _) in pairwise(changes):
        now = start
        while rate > 0:
            now += times.expovariate(rate)
            if now >= end:
                break
            workload = trace.problem.workload
            prompt = _length(lengths, workload.prompt_tokens, trace.lengths_spread)
            output = _length(lengths, workload.output_tokens, trace.lengths_spread)
            most = max(1, workload.max_context_tokens - 1)
            prompt = min(prompt, most)
            yield Arrival(now, prompt, max(1, min(output, workload.max_context_tokens - prompt)))


def _length(numbers: random.Random, mean: int, spread: float) -> int:
    if spread == 0:
        return mean
    # Rounded to the nearest, so that the mean stays what it is.
    steps = round(mean * numbers.uniform(1 - spread, 1 + spread) / TOKENS_ROUNDED_TO)
    return max(1, steps) * TOKENS_ROUNDED_TO
