"""The soak's clients: what they count, and that they see a text that changed."""

import asyncio
from pathlib import Path

import pytest

from tests.gateway.serving import MODEL, serving
from tests.gateway.soak.load import Load
from tests.gateway.toy_chain import toy_segments


@pytest.mark.anyio
async def test_clients_ask_leave_and_compare(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        load = Load(world.url, MODEL)
        clients = [asyncio.create_task(load.client(number)) for number in range(3)]
        async with asyncio.timeout(60):
            while load.counts["finished"] < 10 or load.counts["cancelled"] < 3:
                await asyncio.sleep(0.05)
        load.stopping = True
        await asyncio.gather(*clients)
        await world.idle()
    assert (load.wrong, load.failures, load.counts["failed"]) == ([], [], 0)
    assert load.counts["pieces"] > 100
    assert load.longest_gap > 0


@pytest.mark.anyio
async def test_a_request_that_fails_is_counted_and_said(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        load = Load(world.url, "another-model")
        client = asyncio.create_task(load.client(1))
        async with asyncio.timeout(60):
            while not load.counts["failed"]:
                await asyncio.sleep(0.05)
        load.stopping = True
        await client
    assert "NotFoundError" in load.failures[0]


def test_a_text_that_is_no_longer_the_same_is_wrong_and_a_shorter_or_longer_one_is_not() -> None:
    load = Load("http://127.0.0.1:1", MODEL)
    for text in ("one two", "one", "one two three", "one two thr\N{REPLACEMENT CHARACTER}"):
        load._compare("prompt", text)
    assert load.wrong == []
    load._compare("prompt", "one too")
    assert len(load.wrong) == 1
