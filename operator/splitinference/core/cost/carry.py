"""What rate of requests a pipeline carries within the SLO, by the cost model.

Each stage and link is a queue that requests share (M/G/1 processor sharing): work that takes t alone takes t / (1 - u) at the share u of
time for which it is taken (Kleinrock, Queueing Systems II, 1976, section 4.4). Little's law gives the sequences in flight, which the KV
planned for limits.
"""

import math
from dataclasses import dataclass

from splitinference.core.cost.evaluate import EvaluatedChain, Evaluation, evaluate
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Problem

MOST_BUSY = 0.85
"""Share of its time for which a stage or a link is taken at most: beyond, waits grow faster than a forecast is good."""
_HALVINGS = 40


@dataclass(frozen=True)
class Carried:
    """Requests per second that a pipeline carries, and what sets the limit, in words."""

    requests_per_s: float
    limit: str


def carried(pipeline: Pipeline, problem: Problem) -> Carried:
    """What one pipeline carries of the problem's workload within its SLO.

    A pipeline that breaks the SLO without any load carries what it could without the SLO: another pipeline would not mend that.
    Raises UnknownPlaceError if the snapshot lacks one of its places.
    """
    alone = Pipeline(segments=pipeline.segments)
    laid = evaluate(Plan(model_digest=problem.profile.digest, pipelines=(alone,)), problem)
    chain, load = laid.chains[0], problem.workload
    busy = _busy_seconds(laid, problem)
    first, each = problem.slo.time_to_first_token_ms, problem.slo.time_per_output_token_ms
    if _times(chain, busy, 0.0)[0] > (first or math.inf):
        first = None
    if _times(chain, busy, 0.0)[1] > (each or math.inf):
        each = None

    def broken(rate: float) -> str:
        used = rate * max(busy.values())
        if used > MOST_BUSY:
            place = max(busy, key=lambda name: busy[name])
            return f"{place} is busy for {MOST_BUSY:.0%} of its time"
        prompt, step = _times(chain, busy, rate)
        if first is not None and prompt > first:
            return f"the first token takes {first:.0f} ms"
        if each is not None and step > each:
            return f"an output token takes {each:.0f} ms"
        if rate * (prompt + (load.output_tokens - 1) * step) / 1e3 > load.max_concurrent_sequences:
            return f"{load.max_concurrent_sequences} sequences are in flight"
        return ""

    low, high = 0.0, MOST_BUSY / max(busy.values()) * 1.001
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        low, high = (low, middle) if broken(middle) else (middle, high)
    return Carried(low, broken(high))


def _busy_seconds(laid: Evaluation, problem: Problem) -> dict[str, float]:
    """Seconds for which one request takes each place and each link."""
    work, load = laid.load, problem.workload
    steps = load.output_tokens / load.batch
    places: dict[str, float] = {}
    for stage in laid.chains[0].stages:
        for site, cost in zip(stage.sites, stage.costs, strict=True):
            places[site.label] = places.get(site.label, 0.0) + cost.busy_ms_per_request / len(stage.sites) / 1e3
    links = {f"the link {source} → {target}": ms * steps / 1e3 for (source, target), ms in work.link_ms.items()}
    return {**links, **places}


def _times(chain: EvaluatedChain, busy: dict[str, float], rate: float) -> tuple[float, float]:
    """Milliseconds to the first token and for each further one, at this rate."""
    first, each = chain.time_to_first_token_ms, chain.time_per_output_token_ms
    for stage in chain.stages:
        used = max(min(rate * busy[site.label], 0.999) for site in stage.sites)
        stretched = used / (1.0 - used)
        first += stage.prefill_ms * stretched
        each += stage.decode_ms * stretched
    return first, each
