"""A prompt that begins as an earlier one of the same client starts behind what is known; the text is the same."""

from pathlib import Path

import pytest

from splitinference_gateway.pipeline.prefixes import BLOCK, Prefixes, block_names
from splitinference_protocol.wire.request import Hop
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import reference, toy_segments

SYSTEM = "You are a helpful assistant that answers in one sentence. " * 3  # two whole blocks and a part
KEY = b"k" * 32
PIPELINE = (Hop(segment="a", model="m"), Hop(segment="b", model="m"))


def test_a_blocks_name_says_all_before_it_and_who_asks() -> None:
    tokens = list(range(3 * BLOCK))
    names = block_names(tokens, "me", KEY)
    assert len(names) == 3
    assert block_names(tokens[: 3 * BLOCK - 1], "me", KEY) == names[:2]
    assert block_names([7, *tokens[1:]], "me", KEY)[2] != names[2]
    assert not set(block_names(tokens, "you", KEY)) & set(names)


def test_a_name_stands_for_every_token_up_to_its_end() -> None:
    tokens = list(range(3 * BLOCK))
    names = block_names(tokens, "me", KEY)
    for changed in range(3 * BLOCK):
        other = block_names([*tokens[:changed], 99_999, *tokens[changed + 1 :]], "me", KEY)
        same = changed // BLOCK
        assert other[:same] == names[:same]
        assert not set(other[same:]) & set(names)


def test_without_the_key_nobody_names_a_block() -> None:
    tokens = list(range(BLOCK))
    assert block_names(tokens, "me", KEY) != block_names(tokens, "me", bytes(32))
    assert Prefixes().names(tokens, "me") != Prefixes().names(tokens, "me"), "gateways without a key of the operator do not share"
    assert Prefixes("all", lambda: KEY).names(tokens, "me") != Prefixes("client", lambda: KEY).names(tokens, "")


def test_the_longest_known_beginning_is_used_but_never_the_whole_prompt() -> None:
    prefixes, tokens = Prefixes(), list(range(200))
    names = prefixes.names(tokens, "me")
    assert prefixes.held(PIPELINE, names, 200) == 0
    prefixes.learned(PIPELINE, names, 150)
    assert prefixes.held(PIPELINE, names, 200) == 128
    assert prefixes.held(PIPELINE, names[:2], 128) == 64
    assert prefixes.held(PIPELINE[:1], names, 200) == 0
    prefixes.missed(PIPELINE, names)
    assert prefixes.held(PIPELINE, names, 200) == 0


def test_what_is_remembered_is_bounded() -> None:
    prefixes = Prefixes()
    for number in range(10_000):
        prefixes.learned(PIPELINE, [f"name-{number}"], BLOCK)
    assert len(prefixes._known) == 8192
    assert prefixes.held(PIPELINE, ["name-9999"], BLOCK + 1) == BLOCK
    assert prefixes.held(PIPELINE, ["name-0"], BLOCK + 1) == 0


@pytest.mark.parametrize(("reuse", "same"), [("client", False), ("all", True)])
def test_clients_share_only_when_that_is_switched_on(reuse: str, same: bool) -> None:
    prefixes = Prefixes(reuse)  # type: ignore[arg-type]
    tokens = list(range(BLOCK))
    assert (prefixes.names(tokens, "me") == prefixes.names(tokens, "you")) == same


async def reused(world: Serving) -> float:
    return await world.metric("splitinference_gateway_prefix_reused_tokens_total")


def text(prompt: str, tokens: int) -> str:
    return bytes(reference(prompt.encode(), tokens)).decode(errors="replace")


@pytest.mark.anyio
async def test_a_second_question_after_the_same_system_prompt_runs_only_what_is_new(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments, prefill_chunk_tokens=512) as world:
        assert await world.complete(SYSTEM + "First?", 10) == text(SYSTEM + "First?", 10)
        assert await reused(world) == 0
        await world.idle()
        assert await world.complete(SYSTEM + "Second?", 10) == text(SYSTEM + "Second?", 10)
        assert await reused(world) == 128
        assert [chunk for chunk in segments[1].chunks if chunk > 1] == [len(SYSTEM + "First?"), len(SYSTEM + "Second?") - 128]


@pytest.mark.anyio
async def test_the_next_turn_of_a_conversation_begins_with_the_answer_too(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        prompt = [ord(c) for c in "How?" * 10]
        async with world.client as client:
            first = await client.completions.create(model="toy", prompt=prompt, max_tokens=100, temperature=0)
        await world.idle()
        turn = [*prompt, *reference(prompt, 100), *b" And then?"]
        async with world.client as client:
            second = await client.completions.create(model="toy", prompt=turn, max_tokens=10, temperature=0)
        assert await reused(world) == 128  # 40 tokens of the question, 99 of the answer
        assert first.choices[0].text
        assert second.choices[0].text == bytes(reference(turn, 10)).decode(errors="replace")


@pytest.mark.anyio
@pytest.mark.parametrize("stage", [0, 1])
async def test_a_stage_that_forgot_is_answered_with_the_whole_prompt(stage: int, tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        await world.complete(SYSTEM, 5)
        await world.idle()
        segments[stage].kept.clear()
        assert await world.complete(SYSTEM + "Again?", 10) == text(SYSTEM + "Again?", 10)
        assert await reused(world) == 0
        assert await world.metric('splitinference_gateway_replays_total{reason="prefix_missing"}') == 1
        await world.idle()
        assert await world.complete(SYSTEM + "Once more?", 10) == text(SYSTEM + "Once more?", 10)
        assert await reused(world) == 128


@pytest.mark.anyio
async def test_switched_off_nothing_is_named_and_nothing_kept(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments, prefix_reuse="off") as world:
        for _ in range(2):
            assert await world.complete(SYSTEM, 5) == text(SYSTEM, 5)
            await world.idle()
        assert await reused(world) == 0
        assert segments[0].kept == {}
