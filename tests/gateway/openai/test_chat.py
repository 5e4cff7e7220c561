"""Chat and text completions through one route, as clients see them."""

from pathlib import Path

import pytest

from tests.gateway.model_folder import BEGIN, END
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import reference, toy_segments

pytestmark = pytest.mark.anyio


def text_of(prompt: str, tokens: int, **sampling: object) -> str:
    return bytes(reference(prompt.encode(), tokens, sampling or None)).decode(errors="replace")


def chat_prompt(content: str) -> list[int]:
    return [BEGIN, *f"user: {content}\nassistant:".encode()]


async def test_the_text_is_that_of_the_unsplit_model(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a", "b", "c")) as world:
        # 30 bytes are four prefill chunks of 8
        assert await world.complete("a prompt with thirty bytes, so", 60) == text_of("a prompt with thirty bytes, so", 60)


async def test_a_prompt_is_prefilled_in_chunks_and_only_the_last_is_sampled(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        await world.complete("x" * 20, 3)
        assert segments[0].chunks == segments[1].chunks == [8, 8, 4, 1, 1]


async def test_a_chat_streams_role_text_finish_and_usage(tmp_path: Path, model_path: Path) -> None:
    prompt = chat_prompt("hello")
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as world, world.client as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    *spoken, finish, usage = chunks
    assert spoken[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in spoken) == bytes(reference(prompt, 40)).decode(errors="replace")
    assert finish.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert (usage.usage.prompt_tokens, usage.usage.completion_tokens, usage.usage.total_tokens) == (len(prompt), 40, len(prompt) + 40)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_no_piece_of_a_stream_splits_a_character(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world, world.client as client:
        stream = await client.completions.create(model=MODEL, prompt="characters", max_tokens=200, temperature=0, stream=True)
        pieces = [chunk.choices[0].text async for chunk in stream]
    # A character that the limit cut in two is the last piece.
    assert not any("\ufffd" in piece for piece in pieces[:-1])
    assert "".join(pieces) == bytes(reference(b"characters", 200)).decode(errors="replace")
    assert any(ord(character) > 0xFFFF for character in "".join(pieces))


async def test_the_end_token_ends_the_text_and_is_not_part_of_it(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].end_after = len(b"the end") + 9
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        answer = await client.completions.create(model=MODEL, prompt="the end", max_tokens=50, temperature=0)
    assert answer.choices[0].text == bytes(reference(b"the end", 9)).decode(errors="replace")
    assert answer.choices[0].finish_reason == "stop"
    assert END not in reference(b"the end", 9)


async def test_a_stop_string_ends_the_text_before_it(tmp_path: Path, model_path: Path) -> None:
    whole = bytes(reference(b"stop here", 80)).decode(errors="replace")
    stop = whole[30:34]
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as world, world.client as client:
        stream = await client.completions.create(
            model=MODEL, prompt="stop here", max_tokens=80, temperature=0, stop=["never", stop], stream=True
        )
        chunks = [chunk async for chunk in stream]
        await world.idle()
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


async def test_a_seed_repeats_a_text_and_n_choices_differ(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as world, world.client as client:

        async def ask() -> list[str]:
            answer = await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "dice"}], max_tokens=24, temperature=1, seed=7, n=3
            )
            assert [choice.index for choice in answer.choices] == [0, 1, 2]
            return [choice.message.content or "" for choice in answer.choices]

        first, second = await ask(), await ask()
    assert first == second
    assert len(set(first)) == 3
    assert first[0] == bytes(reference(chat_prompt("dice"), 24, {"temperature": 1, "seed": 7})).decode(errors="replace")


async def test_streamed_choices_are_told_apart_by_their_index(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world, world.client as client:
        stream = await client.completions.create(model=MODEL, prompt=["one", "two"], n=2, seed=1, temperature=1, max_tokens=20, stream=True)
        texts = ["", "", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts[0] == bytes(reference(b"one", 20, {"temperature": 1, "seed": 1})).decode(errors="replace")
    assert texts[2] == bytes(reference(b"two", 20, {"temperature": 1, "seed": 1})).decode(errors="replace")
    assert len(set(texts)) == 4


async def test_chat_logprobs_name_each_token_with_its_bytes(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as world, world.client as client:
        answer = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "p"}], max_tokens=30, temperature=0, logprobs=True, top_logprobs=2
        )
    content = answer.choices[0].logprobs.content
    assert [byte for token in content for byte in token.bytes] == reference(chat_prompt("p"), 30)
    assert all(token.logprob == -0.5 and len(token.top_logprobs) == 2 for token in content)


async def test_text_logprobs_have_offsets_into_the_text(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world, world.client as client:
        answer = await client.completions.create(model=MODEL, prompt="ascii", max_tokens=30, temperature=0, logprobs=1)
    choice = answer.choices[0]
    for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset : offset + len(token)] == token
    assert len(choice.logprobs.tokens) == 30


async def test_a_prompt_may_be_token_ids(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world, world.client as client:
        answer = await client.completions.create(model=MODEL, prompt=list(b"ids"), max_tokens=12, temperature=0)
        assert answer.choices[0].text == bytes(reference(b"ids", 12)).decode(errors="replace")
        assert answer.usage.prompt_tokens == 3


async def test_segments_forget_a_finished_sequence(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c")
    async with serving(tmp_path, model_path, segments) as world:
        await world.complete("forget me", 5)
        await world.idle()
        assert [segment.counts["release"] for segment in segments] == [1, 1, 1]


async def test_the_models_endpoint_lists_the_one_model(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world, world.client as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        assert (await client.models.retrieve(MODEL)).id == MODEL
