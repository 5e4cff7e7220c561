"""Cutover, draining and retirement of routes, and what the operator is told about them."""

import asyncio
import json
from pathlib import Path

import pytest

from splitinference_gateway.gateway import Gateway
from splitinference_gateway.routing.routes import HOLD_SECONDS, Routes
from splitinference_gateway.settings import Settings
from splitinference_protocol.route import RouteDocument, RouteError
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import ToySegment, at_rest, reference, toy_segments

PROMPT = "on the way"


def document(revision: str, *pipelines: str, drain: float = 30) -> RouteDocument:
    """Pipelines are written as `a-b`: one segment for each letter."""
    hops = [[{"segment": name, "model": f"seg-{name}"} for name in pipeline.split("-")] for pipeline in pipelines]
    return RouteDocument.parse(json.dumps({"v": 1, "revision": revision, "pipelines": hops, "drainSeconds": drain}))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_new_sequences_take_the_new_route_and_old_ones_stay_until_the_drain_time_is_over() -> None:
    clock = Clock()
    routes = Routes(clock)
    routes.apply(document("r1", "a-b"))
    old = routes.lease()
    routes.apply(document("r2", "a-c", drain=30))
    new = routes.lease()
    assert old is not None
    assert new is not None
    assert [hop.segment for hop in new.pipeline] == ["a", "c"]
    clock.now = 29.9
    assert not old.expired
    clock.now = 30.1
    assert old.expired
    assert not new.expired


def test_a_route_is_retired_when_nothing_is_in_flight_on_it() -> None:
    routes = Routes(Clock())
    routes.apply(document("r1", "a"))
    lease = routes.lease()
    assert lease is not None
    routes.apply(document("r2", "b"))
    assert routes.in_flight() == {"r2": 0, "r1": 1}
    lease.give_back()
    assert routes.in_flight() == {"r2": 0}
    assert routes.segments == {"b"}


def test_a_superseded_route_without_sequences_is_gone_at_once() -> None:
    routes = Routes(Clock())
    routes.apply(document("r1", "a"))
    routes.apply(document("r2", "b"))
    assert routes.in_flight() == {"r2": 0}


def test_going_back_to_a_draining_route_lets_its_sequences_stay() -> None:
    clock = Clock()
    routes = Routes(clock)
    routes.apply(document("r1", "a"))
    lease = routes.lease()
    assert lease is not None
    routes.apply(document("r2", "b", drain=10))
    routes.apply(document("r1", "a"))
    clock.now = 100
    assert not lease.expired
    assert routes.in_flight() == {"r1": 1}


def test_the_same_plan_with_other_segments_is_another_route() -> None:
    routes = Routes(Clock())
    routes.apply(document("r1", "a"))
    lease = routes.lease()
    assert routes.apply(document("r1", "b"))
    assert routes.in_flight_by_segment() == {"a": 1, "b": 0}
    assert lease is not None
    lease.give_back()
    assert routes.in_flight_by_segment() == {"b": 0}


def test_new_sequences_go_to_the_least_loaded_pipeline() -> None:
    routes = Routes(Clock())
    routes.apply(document("r1", "a", "b", "c"))
    leases = [routes.lease() for _ in range(5)]
    assert [lease.lane.name for lease in leases if lease] == ["a", "b", "c", "a", "b"]


def test_a_pipeline_with_a_failing_segment_is_the_last_choice() -> None:
    routes = Routes(Clock())
    routes.apply(document("r1", "a", "b"))
    leases = [routes.lease(avoid={"a"}) for _ in range(3)]
    assert [lease.lane.name for lease in leases if lease] == ["b", "b", "b"]
    lease = routes.lease(avoid={"a", "b"})
    assert lease is not None
    assert lease.lane.name == "a"


def test_sequences_of_a_pipeline_that_the_new_route_has_too_stay_and_are_in_nobodys_way() -> None:
    clock = Clock()
    routes = Routes(clock)
    routes.apply(document("r1", "a-b", "c"))
    first, second = routes.lease(), routes.lease()
    assert first is not None
    assert second is not None
    routes.apply(document("r2", "a-b", "d", drain=10))
    assert routes.in_flight() == {"r2": 1, "r1": 1}
    assert routes.in_flight_by_segment() == {"a": 1, "b": 1, "d": 0, "c": 1}
    clock.now = 11
    assert (first.expired, second.expired) == (False, True)
    assert (first.route.revision, second.route.revision) == ("r2", "r1")
    second.give_back()
    assert routes.in_flight() == {"r2": 1}
    first.give_back()
    assert routes.in_flight() == {"r2": 0}


def test_a_pipeline_that_comes_back_while_it_drains_keeps_its_sequences() -> None:
    clock = Clock()
    routes = Routes(clock)
    routes.apply(document("r1", "a", "b"))
    leases = [routes.lease(), routes.lease()]
    routes.apply(document("r2", "a", drain=10))
    routes.apply(document("r3", "c", "b", drain=10))
    clock.now = 100
    assert [lease.expired for lease in leases if lease] == [True, False]
    assert routes.in_flight() == {"r3": 1, "r2": 1}


def test_pipelines_that_fail_or_are_not_trusted_are_no_room_for_others() -> None:
    routes = Routes(Clock())
    assert routes.sound(()) == 1
    routes.apply(document("r1", "a-b", "c", "d"))
    assert (routes.sound(()), routes.sound({"b"}), routes.sound({"b", "c", "d"})) == (3, 2, 1)
    routes.distrust({"d"})
    assert routes.sound({"b"}) == 1
    lease = routes.lease({"b"})
    assert lease is not None
    assert lease.lane.name == "c"
    assert not routes.has_other(lease.lane, {"b"})
    assert routes.has_other(lease.lane, ())


def test_a_route_without_pipelines_withdraws_the_model() -> None:
    routes = Routes(Clock())
    routes.apply(document("r1", "a"))
    routes.apply(document("r2"))
    assert routes.lease() is None


def test_after_a_withdrawal_requests_are_taken_for_a_while_since_the_next_route_is_on_its_way() -> None:
    clock = Clock()
    routes = Routes(clock)
    assert not routes.takes
    routes.apply(document("r1", "a"))
    lease = routes.lease()
    assert lease is not None
    routes.apply(document("stopped", drain=0))
    assert lease.expired, "who is on the old route leaves it at once"
    assert (routes.takes, routes.stopped) == (True, True)
    clock.now = HOLD_SECONDS
    assert (routes.takes, routes.stopped) == (False, True)
    routes.apply(document("r2", "b"))
    assert (routes.takes, routes.stopped) == (True, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting"),
        ("[]", "valid dictionary"),
        ('{"v": 2, "revision": "r", "pipelines": []}', "v: "),
        ('{"v": 1, "revision": "r", "pipelines": [[]]}', "pipeline 0 has no segments"),
        ('{"v": 1, "revision": "r", "pipelines": [[{"segment": "10.0.0.1:80", "model": "m"}]]}', "not a DNS label"),
        ('{"v": 1, "revision": "r", "pipelines": [[{"segment": "a.evil.example", "model": "m"}]]}', "not a DNS label"),
    ],
)
def test_a_document_that_is_no_route_says_why(text: str, said: str) -> None:
    with pytest.raises(RouteError, match=said):
        RouteDocument.parse(text)


async def under_way(world: Serving, route: list[ToySegment], tokens: int) -> "asyncio.Task[str]":
    """A sequence that has begun on this route, of revision r2."""
    world.route(route, revision="r2")
    await world.routed("r2")
    asking = asyncio.create_task(world.complete(PROMPT, tokens))
    while not any(route["inFlight"] for route in (await world.get("/internal/routes"))["routes"].values()):
        await asyncio.sleep(0.01)
    return asking


@pytest.mark.anyio
async def test_a_cutover_acts_at_once_and_the_text_is_the_same(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c")
    a, b, c = segments
    for segment in segments:
        segment.seconds = 0.004
    async with serving(tmp_path, model_path, segments) as world:
        asking = await under_way(world, [a, b], 150)
        world.route([a, c], revision="r3", drain_seconds=0.2)
        await world.routed("r3")
        both = await world.get("/internal/routes")
        assert both["routes"] == {"r3": {"inFlight": 0, "state": "serving"}, "r2": {"inFlight": 1, "state": "draining"}}
        assert both["segments"] == {"a": 1, "b": 1, "c": 0}
        assert await asking == bytes(reference(PROMPT.encode(), 150)).decode(errors="replace")
        assert c.counts["step"] > 50
        assert await world.metric('splitinference_gateway_replays_total{reason="superseded"}') == 1
        await world.idle()
        assert b.counts["release"] == 1


@pytest.mark.anyio
async def test_a_withdrawn_route_gets_no_further_step_and_nobody_sees_more_than_a_pause(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    a, b = segments
    a.seconds = 0.004
    async with serving(tmp_path, model_path, segments) as world:
        asking = await under_way(world, [a], 150)
        world.route(revision="stopped", drain_seconds=0)
        await world.routed(None)
        steps = await at_rest(a)  # after the step that was under way
        late = asyncio.create_task(world.complete(PROMPT, 5))
        await asyncio.sleep(0.3)
        assert a.counts["step"] == steps, "not one more"
        assert not asking.done()
        assert not late.done()
        async with world.http.get(f"{world.url}/readyz") as ready:
            assert ready.status == 200, "clients are to reach who tells them to wait"
        world.route([b], revision="r3")
        assert await asking == bytes(reference(PROMPT.encode(), 150)).decode(errors="replace")
        assert await late == bytes(reference(PROMPT.encode(), 5)).decode(errors="replace")
        assert a.counts["step"] == steps


@pytest.mark.anyio
async def test_a_sequence_that_ends_in_time_stays_on_its_route(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    a, b = segments
    a.seconds = 0.004
    async with serving(tmp_path, model_path, segments) as world:
        asking = await under_way(world, [a], 100)
        world.route([b], revision="r3", drain_seconds=30)
        await world.routed("r3")
        assert await asking == bytes(reference(PROMPT.encode(), 100)).decode(errors="replace")
        assert b.counts["step"] == 0
        assert (await world.get("/internal/routes"))["routes"].keys() == {"r3"}


@pytest.mark.anyio
async def test_before_the_first_route_the_gateway_is_alive_but_not_ready(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        status, body, headers = await world.post("/v1/completions", {"model": MODEL, "prompt": "x"})
        assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "no_route", "2")
        async with world.http.get(f"{world.url}/readyz") as ready, world.http.get(f"{world.url}/healthz") as alive:
            assert (ready.status, alive.status) == (503, 200)
        assert (await world.get("/internal/routes"))["revision"] is None
        world.route(segments, revision="r1")
        await world.routed("r1")
        async with world.http.get(f"{world.url}/readyz") as ready:
            assert ready.status == 200


@pytest.mark.anyio
async def test_outside_a_cluster_and_without_a_file_liveness_fails(model_path: Path) -> None:
    gateway = Gateway.build(Settings(name=MODEL, model_path=model_path, insecure=True))
    async with gateway.running(), asyncio.timeout(20):
        while gateway.healthy:
            await asyncio.sleep(0.01)


@pytest.mark.anyio
async def test_a_broken_route_document_changes_nothing(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        world.route_file.write_text('{"v": 1, "revision": "r2", "pipelines": [[]]}')
        async with asyncio.timeout(20):
            while await world.metric("splitinference_gateway_route_errors_total") == 0:
                await asyncio.sleep(0.05)
        assert (await world.get("/internal/routes"))["revision"] == "r1"
        assert await world.complete("still", 5)


@pytest.mark.anyio
async def test_the_operator_is_told_what_was_observed(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].seconds = 0.02
    async with serving(tmp_path, model_path, segments) as world:
        await world.complete(PROMPT, 20)
        observed = (await world.get("/internal/routes"))["observed"]
    assert observed["windowSeconds"] == 60
    assert (observed["requests"], observed["failed"], observed["replays"]) == (1, 0, 0)
    assert observed["timeToFirstTokenMs"]["p50"] >= 20
    assert 20 <= observed["timePerOutputTokenMs"]["p50"] <= observed["timePerOutputTokenMs"]["p95"] <= observed["longestTokenGapMs"]
    # The toy's stages say 1 ms + 20 ms of compute, 0.1 ms of queue, and 2 ms for the link.
    assert observed["stages"]["a"] == {"computeMs": 1.0, "queueMs": 0.1, "linkMs": 2.0, "steps": 19}
    assert observed["stages"]["b"] == {"computeMs": 21.0, "queueMs": 0.1, "linkMs": 0.0, "steps": 19}


@pytest.mark.anyio
async def test_what_was_not_observed_is_absent(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        observed = (await world.get("/internal/routes"))["observed"]
    assert observed == {"windowSeconds": 60, "requests": 0, "failed": 0, "replays": 0, "kvReserved": 0.0, "arrived": 0, "stages": {}}
