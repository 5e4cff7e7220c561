"""Two gateways in front of the same segments: each keeps its own sequences, and the operator hears of all."""

import asyncio
import json
from pathlib import Path

import pytest

from splitinference.adapters.peers.gateway import merged
from splitinference_protocol.report import GatewayReport
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import reference, toy_segments

pytestmark = pytest.mark.anyio


async def report(world: Serving) -> GatewayReport:
    return GatewayReport.model_validate(await world.get("/internal/routes"))


async def test_together_they_never_ask_more_of_a_segment_than_is_planned_for(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[0].seconds = 0.005
    shares = {"max_concurrent_sequences": 4, "replicas": 2, "max_queue": 64}
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with serving(folders[0], model_path, segments, **shares) as one, serving(folders[1], model_path, segments, **shares) as two:
        most, seen = 0, []

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(segments[0].sequences))
                await asyncio.sleep(0.002)

        async def look() -> None:
            while True:
                both = merged([await report(one), await report(two)])
                assert both is not None
                seen.append(both.routes["r1"].in_flight)
                await asyncio.sleep(0.05)

        tasks = [asyncio.create_task(watch()), asyncio.create_task(look())]
        texts = await asyncio.gather(*(world.complete("x", 40) for world in (one, two) for _ in range(6)))
        for task in tasks:
            task.cancel()
        assert set(texts) == {bytes(reference(b"x", 40)).decode(errors="replace")}
        assert most == 4
        assert max(seen) > 2  # more than one of them alone may run


async def test_a_route_drains_until_no_gateway_has_anything_on_it(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c", "d")
    before, after = segments[:2], segments[2:]
    before[0].seconds = 0.02
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with serving(folders[0], model_path, segments) as one, serving(folders[1], model_path, segments) as two:
        for world in (one, two):
            world.route(before, revision="r2")
            await world.routed("r2")
        running = asyncio.create_task(two.complete("x", 40))
        while not (await report(two)).routes["r2"].in_flight:
            await asyncio.sleep(0.01)
        one.route(after, revision="r3")
        await one.routed("r3")
        both = merged([await report(one), await report(two)])
        assert both is not None
        assert both.revision is None  # not everywhere yet
        two.route(after, revision="r3")
        await two.routed("r3")
        both = merged([await report(one), await report(two)])
        assert both is not None
        assert (both.revision, both.routes["r2"].in_flight, both.routes["r2"].state) == ("r3", 1, "draining")
        await running
        both = merged([await report(one), await report(two)])
        assert both is not None
        assert json.dumps(sorted(both.routes)) == '["r3"]'
