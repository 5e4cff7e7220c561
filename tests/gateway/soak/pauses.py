"""How long readers waited for a token while their sequence was brought onto another route, out of the gateway's metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

from splitinference_gateway.pipeline.chain import RESUMED

_HISTOGRAM = "splitinference_gateway_pause_seconds"
_LONGEST = "splitinference_gateway_longest_pause_seconds"


@dataclass(frozen=True)
class Pauses:
    """Of one way onto another route. Percentiles are read off a histogram whose bounds are a third apart; the longest is exact."""

    count: int = 0
    p50_s: float | None = None
    p95_s: float | None = None
    longest_s: float | None = None


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """Seconds that `share` of all values do not exceed, taken to be spread evenly in a bucket, as PromQL's histogram_quantile.

    `buckets`: (upper bound, values up to it), upwards, the last bound infinite; of values beyond the last finite bound that bound is told.
    """
    wanted = share * buckets[-1][1]
    for (low, below), (high, upto) in pairwise([(0.0, 0.0), *buckets]):
        if upto >= wanted and upto > below:
            return low if high == float("inf") else low + (high - low) * (wanted - below) / (upto - below)
    raise ValueError("a histogram without values has no quantile")


def pauses(exposition: str) -> Mapping[str, Pauses]:
    """By the way onto the other route; `exposition` is what the gateway answers to /metrics."""
    found = dict.fromkeys(RESUMED, Pauses())
    families = {family.name: family.samples for family in text_string_to_metric_families(exposition)}
    longest = {sample.labels["by"]: sample.value for sample in families.get(_LONGEST, ())}
    for by, seconds in longest.items():
        buckets = [
            (float(sample.labels["le"]), sample.value)
            for sample in families[_HISTOGRAM]
            if sample.name.endswith("_bucket") and sample.labels["by"] == by
        ]
        p50, p95 = (round(min(seconds, quantile(buckets, share)), 3) for share in (0.5, 0.95))
        found[by] = Pauses(int(buckets[-1][1]), p50, p95, round(seconds, 3))
    return found
