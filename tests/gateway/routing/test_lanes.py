"""Where a sequence goes when there are several pipelines, and what becomes of it when one breaks or goes away."""

import asyncio
import random
import time
from pathlib import Path

import pytest

from splitinference_gateway.access.admission import Admission, KvBudget
from splitinference_gateway.errors import ApiError
from splitinference_gateway.pipeline.recovery.mending import Mending
from splitinference_gateway.pipeline.step_answers import StepError
from splitinference_gateway.routing.lanes import Chooser, Lane, Pace, Wish
from splitinference_protocol.wire.request import Hop
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import ToySegment, reference, toy_segments

PROMPT = "two ways"


def lane(name: str, in_flight: int = 0, token_seconds: float | None = None, **more: float) -> Lane:
    made = Lane((Hop(name, f"seg-{name}"),), in_flight, int(more.get("reserved", 0)))
    made.pace = Pace(token_seconds, more.get("prompt_seconds"), more.get("busy", 1.0))
    return made


def text(tokens: int) -> str:
    return bytes(reference(PROMPT.encode(), tokens)).decode(errors="replace")


def test_nothing_measured_the_lane_with_the_fewest_sequences_is_taken() -> None:
    assert Chooser().best([lane("a", 2), lane("b", 1), lane("c", 3)], Wish(10)).name == "b"


def test_a_quick_lane_is_taken_until_its_queue_makes_it_the_later_one() -> None:
    quick, slow = lane("quick", token_seconds=0.02), lane("slow", token_seconds=0.07)
    taken = []
    for _ in range(8):
        found = Chooser().best([slow, quick], Wish(10))
        found.in_flight += 1
        taken.append(found.name)
    assert taken.count("quick") == 6
    assert taken[:3] == ["quick"] * 3


def test_a_lane_that_was_slow_because_it_was_busy_is_tried_again_once_it_is_idle() -> None:
    was_busy, steady = lane("was-busy", token_seconds=0.1, busy=8.0), lane("steady", token_seconds=0.06, busy=1.0)
    assert Chooser().best([steady, was_busy], Wish(10)).name == "was-busy"


def test_of_a_lane_that_was_not_measured_the_usual_pace_is_expected() -> None:
    new, slow, quick = lane("new"), lane("slow", token_seconds=0.2), lane("quick", token_seconds=0.02)
    assert Chooser().best([new, slow, quick], Wish(10)).name == "quick"
    assert Chooser().best([new, slow], Wish(10)).name == "new", "of two with the same expectation the first"


def test_what_a_pipeline_holds_of_a_long_prompt_counts() -> None:
    lanes = [lane("a", 0, 0.05, prompt_seconds=0.01), lane("b", 1, 0.05, prompt_seconds=0.01)]
    assert Chooser().best(lanes, Wish(4000)).name == "a"
    assert Chooser().best(lanes, Wish(4000, held=lambda pipeline: 3968 if pipeline[0].segment == "b" else 0)).name == "b"
    assert Chooser().best(lanes, Wish(4000, held=lambda pipeline: 64 if pipeline[0].segment == "b" else 0)).name == "a"


def test_a_lane_without_room_for_the_kv_is_the_later_choice_and_a_failing_one_the_last() -> None:
    full, slow, failing = lane("full", 0, 0.01, reserved=900), lane("slow", 3, 1.0), lane("failing", 0, 0.01)
    chooser = Chooser(kv_tokens=1000)
    assert chooser.best([full, slow, failing], Wish(10, most=128), {"failing"}).name == "slow"
    assert chooser.best([full, failing], Wish(10, most=128), {"failing"}).name == "full"
    assert chooser.best([failing], Wish(10, most=128), {"failing"}).name == "failing"
    assert chooser.best([full, slow], Wish(10, most=64)).name == "full"


def test_the_lane_where_it_failed_is_left_even_before_anybody_knows_why() -> None:
    broken, other = lane("broken", 0, 0.01), lane("other", 9, 1.0)
    assert Chooser().best([broken, other], Wish(10, left=broken)).name == "other"
    assert Chooser().best([broken], Wish(10, left=broken)).name == "broken"


def test_requests_that_come_at_random_end_sooner_than_with_equal_shares() -> None:
    """Two lanes that serve one token after the other, one three times as quick: mean time of 400 requests, in the model's own time."""

    def mean(chosen: str) -> float:
        dice, seconds, free = random.Random(7), {"quick": 0.01, "slow": 0.03}, {"quick": 0.0, "slow": 0.0}
        lanes, leaving, now, total = [lane("quick"), lane("slow")], [], 0.0, 0.0
        for number in range(400):
            now += dice.expovariate(1.0)
            for end, done in [found for found in leaving if found[0] <= now]:
                done.in_flight -= 1
                leaving.remove((end, done))
            best = lanes[number % 2] if chosen == "shares" else Chooser(answer_tokens=64).best(lanes, Wish(8))
            best.in_flight += 1
            end = free[best.name] = max(now, free[best.name]) + 64 * seconds[best.name]
            best.pace.decoded((end - now) / 64, best.in_flight)
            leaving.append((end, best))
            total += end - now
        return total / 400

    assert mean("expected") < 0.6 * mean("shares")


@pytest.mark.anyio
async def test_room_grows_and_shrinks_with_the_pipelines() -> None:
    number = 1
    admission = Admission(2, 8, budget=KvBudget(512, longest=512), pipelines=lambda: number)
    tickets = [admission.enter("x", [100])[0] for _ in range(5)]
    assert [ticket.granted.is_set() for ticket in tickets] == [True, True, False, False, False]
    number = 2
    admission.grant()
    assert [ticket.granted.is_set() for ticket in tickets] == [True, True, True, True, False]
    number = 1
    assert admission.reserved == 1.0
    tickets[0].close()
    tickets[1].close()
    assert not tickets[4].granted.is_set(), "those that run take all of the room that is left"
    tickets[2].close()
    assert tickets[4].granted.is_set()


def test_the_first_failure_is_mended_at_once_where_there_is_another_pipeline() -> None:
    failure = StepError("transport", "gone", "a")
    assert Mending(60).pause_after(failure, elsewhere=True) == 0.0
    assert Mending(60).pause_after(failure) > 0.0
    again = Mending(60)
    again.pause_after(failure, elsewhere=True)
    assert again.pause_after(failure, elsewhere=True) > 0.0, "not without end between two that both fail"


def test_a_sequence_that_has_begun_waits_longer_for_room() -> None:
    full = StepError("kv_full", "no room", "a")
    with pytest.raises(ApiError, match="capacity is taken"):
        _an_hour_late(60.0).pause_after(full)
    with pytest.raises(ApiError, match="capacity is taken"):
        _an_hour_late(60.0).pause_after(full, begun=True)
    assert _an_hour_late(900.0).pause_after(full, begun=True) > 0.0
    with pytest.raises(ApiError):
        _an_hour_late(900.0).pause_after(StepError("transport", "gone", "a"), begun=True)


def _an_hour_late(limit: float) -> Mending:
    made = Mending(limit)
    made._since = time.monotonic() - 3600.0
    return made


async def two(tmp_path: Path, model_path: Path) -> list[ToySegment]:
    segments = await toy_segments("a", "b", "c")
    for segment in segments:
        segment.seconds = 0.004
    return segments


async def begun(world: Serving, number: int, tokens: int) -> list["asyncio.Task[str]"]:
    asking = [asyncio.create_task(world.complete(PROMPT, tokens)) for _ in range(number)]
    async with asyncio.timeout(20):
        while sum(route["inFlight"] for route in (await world.get("/internal/routes"))["routes"].values()) < number:
            await asyncio.sleep(0.01)
    return asking


@pytest.mark.anyio
async def test_a_pipeline_that_dies_under_load_costs_no_request_and_no_pause(tmp_path: Path, model_path: Path) -> None:
    segments = await two(tmp_path, model_path)
    a, b, _ = segments
    async with serving(tmp_path, model_path, segments, replay_seconds=5.0, max_concurrent_sequences=8) as world:
        world.route([a], [b], revision="r2")
        await world.routed("r2")
        asking = await begun(world, 6, 120)
        await a.die()
        assert await asyncio.gather(*asking) == [text(120)] * 6
        assert await world.metric('splitinference_gateway_requests_total{code="200"}') == 6
        assert await world.metric('splitinference_gateway_pipeline_in_flight{pipeline="b"}') == 0
        assert await world.metric('splitinference_gateway_pipeline_token_seconds{pipeline="b"}') > 0
        assert (await world.get("/internal/routes"))["failing"].keys() == {"a"}
        assert await asyncio.gather(*await begun(world, 4, 20)) == [text(20)] * 4


@pytest.mark.anyio
async def test_a_pipeline_comes_and_another_goes_and_those_on_the_third_notice_nothing(tmp_path: Path, model_path: Path) -> None:
    segments = await two(tmp_path, model_path)
    a, b, c = segments
    async with serving(tmp_path, model_path, segments, max_concurrent_sequences=8) as world:
        world.route([a], revision="r2")
        await world.routed("r2")
        asking = await begun(world, 2, 200)
        world.route([a], [b], revision="r3", drain_seconds=0.1)
        await world.routed("r3")
        more = await begun(world, 4, 150)
        world.route([a], [c], revision="r4", drain_seconds=0.1)
        await world.routed("r4")
        assert await asyncio.gather(*asking) == [text(200)] * 2
        assert await asyncio.gather(*more) == [text(150)] * 4
        moved = await world.metric("splitinference_gateway_handovers_total")
        moved += await world.metric('splitinference_gateway_replays_total{reason="superseded"}')
        assert moved == b.counts["release"], "only those on the pipeline that went moved"
        assert 0 < moved <= 4
        await world.idle()
