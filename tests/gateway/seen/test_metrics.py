"""What Prometheus sees: times by plan revision, what runs and waits, and no series of revisions that are long gone."""

from pathlib import Path

import pytest

from splitinference_gateway.metrics import Metrics
from tests.gateway.serving import serving
from tests.gateway.toy_chain import toy_segments

PREFIX = "splitinference_gateway_"


@pytest.mark.anyio
async def test_times_tokens_and_replays_are_told_by_the_revision_that_served(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        await world.complete("one", 5)
        world.route(segments, revision="r2")
        await world.routed("r2")
        segments[1].errors.append("internal")
        await world.complete("two", 3)
        counts = {
            revision: (
                await world.metric(f'{PREFIX}time_to_first_token_seconds_count{{revision="{revision}"}}'),
                await world.metric(f'{PREFIX}time_per_output_token_seconds_count{{revision="{revision}"}}'),
                await world.metric(f'{PREFIX}route_replays_total{{revision="{revision}"}}'),
            )
            for revision in ("r1", "r2")
        }
        assert counts == {"r1": (1, 4, 0), "r2": (1, 2, 1)}
        assert await world.metric(f'{PREFIX}in_flight{{revision="r2"}}') == 0
        assert await world.metric(f'{PREFIX}tokens_total{{kind="completion"}}') == 8


def test_series_of_revisions_that_are_long_gone_are_dropped() -> None:
    metrics = Metrics()
    for number in range(20):
        metrics.first_token.labels(f"r{number}").observe(1)
        metrics.keep_revisions({f"r{number}", "r0"})
    samples = next(iter(metrics.first_token.collect())).samples
    kept = {sample.labels["revision"] for sample in samples}
    assert kept == {"r0", *(f"r{number}" for number in range(13, 20))}
