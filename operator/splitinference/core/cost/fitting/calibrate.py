"""From observed stage times: how far the cost model is off, and for each node a factor of prefills and one of decode steps that mend it."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from pydantic import Field

from splitinference.core.cost.evaluate import UnknownPlaceError
from splitinference.core.cost.site import site_of
from splitinference.core.cost.stage import stage_cost
from splitinference.core.values.problem import Problem
from splitinference.core.values.value import Value

TELLING_MS = 1.0
"""Of a stage predicted to compute less (an embedding alone, say) what is observed is what any step costs, not how fast the node is."""


class StageObservation(Value):
    """Mean time of one stage as its segment's metrics have it: compute alone, without waiting, hops and overhead. None: not observed."""

    node: str
    processor: str = ""
    start: int = Field(ge=0)
    end: int = Field(gt=0)
    prefill_ms: float | None = Field(default=None, gt=0)
    decode_ms: float | None = Field(default=None, gt=0)


class Calibration(Value):
    """New factors by place (a node, or a device of one), to be put in the place of the old ones; the error of the model before and after,
    as a share."""

    factors: dict[str, float] = Field(description="of decode steps: `calibration` of a node")
    prefill_factors: dict[str, float] = Field(default_factory=dict, description="of prefills: `prefill_calibration` of a node")
    error_before: float = Field(description="mean absolute error as a share of the observed times")
    error_after: float


def decode_compute_ms(problem: Problem, node: str, processor: str, start: int, end: int) -> float | None:
    """What one decode step of layers [start, end) computes there, in ms, the server's overhead left out; None for a place or layers that
    the problem does not have."""
    site = site_of(problem.snapshot, node, processor)
    if site is None or end > len(problem.profile.layers):
        return None
    return max(stage_cost(problem, site, start, end).decode_ms - site.node.stage_overhead_ms, 1e-6)


def prefill_compute_ms(problem: Problem, place: tuple[str, str], layers: tuple[int, int], tokens: int) -> float | None:
    """What a prompt of `tokens` computes in layers [start, end) at a node's processor, in ms, the server's overhead left out; None as for
    decode."""
    site, (start, end) = site_of(problem.snapshot, *place), layers
    if site is None or end > len(problem.profile.layers):
        return None
    asked = problem.model_copy(update={"workload": problem.workload.model_copy(update={"prompt_tokens": tokens})})
    return max(stage_cost(asked, site, start, end).prefill_ms - site.node.stage_overhead_ms, 1e-6)


def calibrate(problem: Problem, observed: Iterable[StageObservation]) -> Calibration:
    """The factors that fit the observations: per node and phase the median of measured over predicted compute.

    Prefill and decode have factors of their own: one is limited by compute, the other by bandwidth, and they are off differently.

    The server's overhead is no part of either: where it is observed, it is between the stages.

    Raises UnknownPlaceError for a place that the snapshot lacks, ValueError if there is nothing to compare.
    """
    prefills: dict[str, list[tuple[float, float]]] = defaultdict(list)
    decodes: dict[str, list[tuple[float, float]]] = defaultdict(list)
    old: dict[str, tuple[float, float]] = {}
    for stage in observed:
        site = site_of(problem.snapshot, stage.node, stage.processor)
        if site is None:
            raise UnknownPlaceError(f"the snapshot has no place {stage.node}/{stage.processor}")
        if not stage.start < stage.end <= len(problem.profile.layers):
            raise ValueError(f"layers [{stage.start}, {stage.end}) are not a run of the model's {len(problem.profile.layers)} layers")
        predicted, overhead = stage_cost(problem, site, stage.start, stage.end), site.node.stage_overhead_ms
        old[site.label] = (site.prefill_calibration, site.calibration)
        for pairs, measured, expected in (
            (prefills, stage.prefill_ms, predicted.prefill_ms),
            (decodes, stage.decode_ms, predicted.decode_ms),
        ):
            if measured is not None:
                pairs[site.label].append((measured, max(expected - overhead, 1e-9)))
    if not prefills and not decodes:
        raise ValueError("no observed time is given")
    ratios = [{node: median(m / e for m, e in found) for node, found in sorted(pairs.items())} for pairs in (prefills, decodes)]
    return Calibration(
        factors={node: old[node][1] * ratio for node, ratio in ratios[1].items()},
        prefill_factors={node: old[node][0] * ratio for node, ratio in ratios[0].items()},
        error_before=_error(pair for pairs in (prefills, decodes) for found in pairs.values() for pair in found),
        error_after=_error(
            (m, e * ratio[node])
            for pairs, ratio in zip((prefills, decodes), ratios, strict=True)
            for node, found in pairs.items()
            for m, e in found
        ),
    )


def _error(pairs: Iterable[tuple[float, float]]) -> float:
    shares = [abs(expected - measured) / measured for measured, expected in pairs]
    return sum(shares) / len(shares)
