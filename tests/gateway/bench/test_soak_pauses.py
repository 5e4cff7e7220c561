"""What the soak tells of pauses: percentiles out of a histogram, by how a sequence came onto another route."""

import math

import pytest
from prometheus_client import generate_latest

from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.chain import HANDOVER, MENDING, REPLAY
from tests.gateway.soak.pauses import Pauses, pauses, quantile


def test_a_quantile_lies_in_its_bucket_in_proportion() -> None:
    buckets = [(0.1, 0), (0.2, 40), (0.4, 100), (math.inf, 100)]
    assert quantile(buckets, 0.2) == pytest.approx(0.15)
    assert quantile(buckets, 0.4) == pytest.approx(0.2)
    assert quantile(buckets, 0.7) == pytest.approx(0.3)
    assert quantile(buckets, 1.0) == pytest.approx(0.4)


def test_values_beyond_the_last_bound_are_told_as_that_bound_and_no_values_as_an_error() -> None:
    assert quantile([(0.1, 1), (0.2, 1), (math.inf, 10)], 0.95) == 0.2
    with pytest.raises(ValueError, match="without values"):
        quantile([(0.1, 0), (math.inf, 0)], 0.5)


def test_pauses_are_told_apart_by_their_kind() -> None:
    metrics = Metrics()
    for milliseconds in range(10, 110):
        metrics.paused(HANDOVER, milliseconds / 1000)
    metrics.paused(MENDING, 11.0)
    found = pauses(generate_latest(metrics.registry).decode())
    assert found[REPLAY] == Pauses()
    assert found[MENDING] == Pauses(1, found[MENDING].p50_s, 11.0, 11.0)
    of_handovers = found[HANDOVER]
    assert of_handovers.count == 100
    assert of_handovers.p50_s == pytest.approx(0.06, rel=0.1)
    assert of_handovers.p95_s == pytest.approx(0.105, rel=0.1)
    assert of_handovers.longest_s == 0.109


def test_a_percentile_is_never_above_the_longest() -> None:
    metrics = Metrics()
    metrics.paused(REPLAY, 8.9)  # the bucket goes up to 11.9
    assert pauses(generate_latest(metrics.registry).decode())[REPLAY].p95_s == 8.9
