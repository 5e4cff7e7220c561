"""Who runs, who waits, who is refused."""

import asyncio
from pathlib import Path

import pytest

from splitinference_gateway.admission import Admission, Ticket
from splitinference_gateway.errors import ApiError
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio


def granted(*tickets: Ticket) -> list[bool]:
    return [ticket.granted.is_set() for ticket in tickets]


async def test_the_limit_runs_and_the_rest_waits_in_order() -> None:
    admission = Admission(2, 8)
    a, b, c, d = (admission.enter("x", 1)[0] for _ in range(4))
    assert granted(a, b, c, d) == [True, True, False, False]
    b.close()
    assert granted(c, d) == [True, False]
    assert (admission.running, admission.waiting) == (2, 1)


async def test_clients_take_turns() -> None:
    admission = Admission(1, 8)
    running = admission.enter("greedy", 1)[0]
    greedy = admission.enter("greedy", 3)
    modest = admission.enter("modest", 1)
    running.close()
    assert granted(*greedy, *modest) == [True, False, False, False]
    greedy[0].close()
    assert granted(*greedy[1:], *modest) == [False, False, True]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    admission = Admission(1, 2)
    admission.enter("x", 3)
    with pytest.raises(ApiError) as caught:
        admission.enter("y", 1)
    assert (caught.value.status, caught.value.code, caught.value.headers) == (429, "queue_full", {"Retry-After": "1"})


async def test_a_request_gets_places_for_all_its_sequences_or_none() -> None:
    admission = Admission(1, 2)
    admission.enter("x", 2)
    with pytest.raises(ApiError):
        admission.enter("y", 2)
    assert (admission.running, admission.waiting) == (1, 1)


async def test_a_request_that_never_fits_is_the_clients_error() -> None:
    with pytest.raises(ApiError) as caught:
        Admission(1, 2).enter("x", 4)
    assert caught.value.status == 400


async def test_a_place_is_given_back_once_however_often_it_is_closed() -> None:
    admission = Admission(1, 2)
    running, waiting = admission.enter("x", 2)
    waiting.close()
    waiting.close()
    running.close()
    running.close()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_more_requests_than_fit_get_429_and_all_others_their_answer(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[0].seconds = 0.005
    async with serving(tmp_path, model_path, segments, max_concurrent_sequences=2, max_queue=3) as world:
        body = {"model": MODEL, "prompt": "busy", "max_tokens": 10, "temperature": 0}
        answers = await asyncio.gather(*(world.post("/v1/completions", body) for _ in range(9)))
        assert sorted(status for status, _, _ in answers) == [200] * 5 + [429] * 4
        assert all(headers["Retry-After"] == "1" for status, _, headers in answers if status == 429)
        assert len({body["choices"][0]["text"] for status, body, _ in answers if status == 200}) == 1
        assert await world.metric("splitinference_gateway_queue_depth") == 0
        assert await world.metric("splitinference_gateway_running_sequences") == 0


async def test_a_client_that_leaves_the_queue_makes_room(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].seconds = 0.01
    async with serving(tmp_path, model_path, segments, max_concurrent_sequences=1, max_queue=1) as world:
        running = asyncio.create_task(world.complete("runs", 60))
        while not segments[0].counts["step"]:
            await asyncio.sleep(0.01)
        waiting = asyncio.create_task(world.complete("waits", 2))
        while not await world.metric("splitinference_gateway_queue_depth"):
            await asyncio.sleep(0.01)
        waiting.cancel()
        while await world.metric("splitinference_gateway_queue_depth"):
            await asyncio.sleep(0.01)
        assert await world.complete("comes", 2)
        await running
        await asyncio.gather(waiting, return_exceptions=True)
