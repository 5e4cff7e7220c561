"""Who runs, who waits, who is refused."""

import asyncio
from pathlib import Path

import pytest

from splitinference_gateway.access.admission import Admission, KvBudget, Ticket
from splitinference_gateway.errors import ApiError
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio


def granted(*tickets: Ticket) -> list[bool]:
    return [ticket.granted.is_set() for ticket in tickets]


async def test_the_limit_runs_and_the_rest_waits_in_order() -> None:
    admission = Admission(2, 8)
    a, b, c, d = (admission.enter("x", [16])[0] for _ in range(4))
    assert granted(a, b, c, d) == [True, True, False, False]
    b.close()
    assert granted(c, d) == [True, False]
    assert (admission.running, admission.waiting) == (2, 1)


async def test_clients_take_turns() -> None:
    admission = Admission(1, 8)
    running = admission.enter("greedy", [16])[0]
    greedy = admission.enter("greedy", [16] * 3)
    modest = admission.enter("modest", [16])
    running.close()
    assert granted(*greedy, *modest) == [True, False, False, False]
    greedy[0].close()
    assert granted(*greedy[1:], *modest) == [False, False, True]


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    admission = Admission(1, 2)
    admission.enter("x", [16] * 2)
    admission.enter("z", [16])
    with pytest.raises(ApiError) as caught:
        admission.enter("y", [16])
    assert (caught.value.status, caught.value.code, caught.value.headers) == (429, "queue_full", {"Retry-After": "1"})


async def test_ninety_requests_of_one_client_leave_room_for_another() -> None:
    admission = Admission(4, 64)

    for _ in range(4 + 32):
        admission.enter("greedy", [16])
    for _ in range(54):
        with pytest.raises(ApiError) as caught:
            admission.enter("greedy", [16])
        assert (caught.value.status, caught.value.code) == (429, "client_queue_full")
    for client in ("modest", "third") * 5:
        admission.enter(client, [16])
    assert admission.waiting == 32 + 10


@pytest.mark.parametrize("queue", [1, 2, 3, 4, 5, 64])
async def test_a_request_with_the_most_sequences_fits_an_idle_gateway_and_one_more_never(queue: int) -> None:
    admission = Admission(2, queue)
    assert len(admission.enter("x", [16] * admission.most)) == 2 + (queue + 1) // 2
    with pytest.raises(ApiError) as caught:
        Admission(2, queue).enter("x", [16] * (admission.most + 1))
    assert caught.value.status == 400


async def test_a_request_whose_kv_never_fits_is_not_told_to_come_again() -> None:
    with pytest.raises(ApiError) as caught:
        Admission(4, 2, budget=KvBudget(128, longest=128)).enter("x", [100] * 4)
    assert caught.value.status == 400


async def test_one_client_does_not_run_all_where_each_has_a_limit() -> None:
    admission = Admission(2, 8, running_per_client=1)
    first, second = admission.enter("greedy", [0])[0], admission.enter("greedy", [0])[0]
    (modest,) = admission.enter("modest", [0])
    assert granted(first, second, modest) == [True, False, True]
    modest.close()
    assert granted(second) == [False]
    first.close()
    assert granted(second) == [True]
    second.close()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_request_gets_places_for_all_its_sequences_or_none() -> None:
    admission = Admission(1, 2)
    admission.enter("x", [16] * 2)
    with pytest.raises(ApiError):
        admission.enter("y", [16] * 2)
    assert (admission.running, admission.waiting) == (1, 1)


async def test_a_request_that_never_fits_is_the_clients_error() -> None:
    with pytest.raises(ApiError) as caught:
        Admission(1, 2).enter("x", [16] * 4)
    assert caught.value.status == 400


async def test_a_place_is_given_back_once_however_often_it_is_closed() -> None:
    admission = Admission(1, 2)
    running, waiting = admission.enter("x", [16] * 2)
    waiting.close()
    waiting.close()
    running.close()
    running.close()
    assert (admission.running, admission.waiting) == (0, 0)


async def test_short_sequences_run_together_within_the_kv_of_one_long_one() -> None:
    admission = Admission(8, 8, budget=KvBudget(1024, longest=1024))
    short = admission.enter("x", [100, 128, 200, 256])
    assert admission.reserved_tokens == 128 + 128 + 256 + 256
    (long,) = admission.enter("y", [700])
    assert granted(*short, long) == [True] * 4 + [False]
    for ticket in short:
        ticket.close()
    assert granted(long) == [True]
    assert admission.reserved_tokens == 1024
    long.close()
    assert admission.reserved_tokens == 0


async def test_nobody_overtakes_a_long_sequence_that_waits_for_kv() -> None:
    admission = Admission(8, 8, budget=KvBudget(1024, longest=1024))
    first, second = admission.enter("x", [500]), admission.enter("x", [100])
    (long,) = admission.enter("y", [1000])
    (short,) = admission.enter("z", [10])
    assert granted(*first, *second, long, short) == [True, True, False, False]
    first[0].close()
    assert granted(long, short) == [False, False]
    second[0].close()
    assert granted(long, short) == [True, False]
    long.close()
    assert granted(short) == [True]


async def test_as_many_of_the_longest_context_run_as_were_planned_for() -> None:
    budget = KvBudget(4 * 1000, longest=1000)
    tickets = Admission(16, 8, budget=budget).enter("x", [1000, 900, 513, 1000, 10])
    assert granted(*tickets) == [True, True, True, True, False]


async def test_kv_that_is_taken_refuses_when_the_queue_is_full_and_says_how_much() -> None:
    admission = Admission(8, 1, budget=KvBudget(1024, longest=1024))
    admission.enter("x", [1000, 10])
    with pytest.raises(ApiError, match=r"up to 1024 of 1024 tokens of KV") as caught:
        admission.enter("y", [1])
    assert caught.value.status == 429


async def test_what_holds_no_kv_counts_by_number_alone() -> None:
    admission = Admission(2, 8, budget=KvBudget(128, longest=128))
    assert granted(*(admission.enter("x", [cost])[0] for cost in (128, 0, 0))) == [True, True, False]


async def test_kv_of_the_chain_bounds_what_runs_however_many_may(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[0].seconds = 0.01
    limits = {"max_concurrent_sequences": 1, "max_running_sequences": 8, "max_context_tokens": 256, "max_queue": 8}
    async with serving(tmp_path, model_path, segments, **limits) as world:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(segments[0].sequences))
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(world.complete("x", 20) for _ in range(6)))
        watching.cancel()
        assert most == 2  # 128 tokens each


async def test_two_replicas_share_what_the_segments_have(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), max_concurrent_sequences=4, max_queue=0, replicas=2) as world:
        body = {"model": MODEL, "prompt": "x", "max_tokens": 4000, "n": 3}
        status, answer, _ = await world.post("/v1/completions", body)
        assert (status, answer["error"]["code"]) == (400, "invalid_value")
        assert world.gateway.settings.kv_budget_tokens == 2 * 4096


async def test_more_requests_than_fit_get_429_and_all_others_their_answer(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[0].seconds = 0.005
    async with serving(tmp_path, model_path, segments, max_concurrent_sequences=2, max_queue=3) as world:
        body = {"model": MODEL, "prompt": "busy", "max_tokens": 10, "temperature": 0}
        answers = await asyncio.gather(*(world.post("/v1/completions", body) for _ in range(9)))
        assert sorted(status for status, _, _ in answers) == [200] * 4 + [429] * 5
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
