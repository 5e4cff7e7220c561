"""Fields of requests that change what is sampled, and where an answer ends: from the unchanged client to the last segment."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitinference_protocol.wire import leb128
from tests.gateway.model_folder import END, write_model
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import reference, toy_segments
from tests.gateway.toy_model import toy_score

pytestmark = pytest.mark.anyio
PROMPT = "tokens so far"


def text_of(prompt: str, tokens: int) -> str:
    return bytes(reference(prompt.encode(), tokens)).decode(errors="replace")


async def asked(world: Serving, tokens: int = 6, **more: Any) -> str:
    async with world.client as client:
        answer = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=tokens, temperature=0, extra_body=more)
    return answer.choices[0].text


async def test_every_step_says_what_the_request_asks_for(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        more = {"top_k": 40, "min_p": 0.1, "presence_penalty": 0.5, "logit_bias": {"7": -100, "9": 2.5}}
        await asked(world, **more)
    told = segments[1].samplings
    assert len(told) == 6
    for each in told:
        assert (each["top_k"], each["min_p"], each["presence_penalty"], each["bias"]) == (40, 0.1, 0.5, [[7, -100.0], [9, 2.5]])


async def test_penalties_come_with_the_tokens_so_far_whatever_happens_to_the_segments(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    generated = reference(PROMPT.encode(), 12)
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        stream = await client.completions.create(
            model=MODEL,
            prompt=PROMPT,
            max_tokens=12,
            temperature=0,
            stream=True,
            frequency_penalty=0.5,
            extra_body={"repetition_penalty": 1.2},
        )
        pieces = []
        async for chunk in stream:
            if not pieces:
                segments[0].errors.append("kv_missing")  # the tokens so far are run again
            pieces.append(chunk.choices[0].text)
        assert await world.metric('splitinference_gateway_replays_total{reason="kv_missing"}') == 1
    assert "".join(pieces) == text_of(PROMPT, 12)
    assert befores(segments[1].samplings, generated) == set(range(12))
    assert all(leb128.ids(each["prompt"]) == tuple(sorted(set(PROMPT.encode()))) for each in segments[1].samplings)


def befores(samplings: list[dict[str, Any]], generated: list[int]) -> set[int]:
    """After how many generated tokens each step was; each says exactly those tokens."""
    made = set()
    for each in samplings:
        ids, counts = leb128.counts(each.get("generated", ""))
        before = sum(counts)
        assert dict(zip(ids, counts, strict=True)) == {token: generated[:before].count(token) for token in set(generated[:before])}
        made.add(before)
    return made


async def test_stop_token_ids_end_an_answer(tmp_path: Path, model_path: Path) -> None:
    generated = reference(PROMPT.encode(), 30)
    stop = generated[8]
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        assert await asked(world, 30, stop_token_ids=[stop]) == bytes(generated[: generated.index(stop)]).decode(errors="replace")


async def test_a_special_token_as_a_stop_string_ends_an_answer_though_no_text_shows_it(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].end_after = len(PROMPT) + 5
    async with serving(tmp_path, model_path, segments) as world:
        assert await asked(world, 20, ignore_eos=True, stop=["<|end|>"]) == text_of(PROMPT, 5)


async def test_without_end_tokens_an_answer_goes_on(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].end_after = len(PROMPT) + 5
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        answer = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=9, temperature=0, extra_body={"ignore_eos": True})
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 9)


async def test_min_tokens_keep_the_end_away_and_stop_strings_too(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].end_after = len(PROMPT) + 2
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        answer = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=20, temperature=0, extra_body={"min_tokens": 7})
        assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 8)
        assert [each.get("banned") for each in segments[1].samplings] == [[END]] * 7 + [None]
        segments[1].end_after = None
        stop = text_of(PROMPT, 3)[0]
        later = await client.completions.create(
            model=MODEL, prompt=PROMPT, max_tokens=40, temperature=0, stop=stop, extra_body={"min_tokens": 6}
        )
    assert later.choices[0].text.startswith(stop)
    assert later.usage.completion_tokens > 6


async def test_a_completion_beyond_the_context_is_cut_or_refused_by_setting(tmp_path: Path, model_path: Path) -> None:
    body = {"model": MODEL, "prompt": "x" * 30, "max_tokens": 1000, "temperature": 0}
    async with serving(tmp_path, model_path, await toy_segments("a"), max_context_tokens=40) as world:
        status, answer, _ = await world.post("/v1/completions", body)
        assert (status, answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (200, 10, "length")
        status, answer, _ = await world.post("/v1/completions", {**body, "prompt": "x" * 40})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    (tmp_path / "2").mkdir()
    async with serving(tmp_path / "2", model_path, await toy_segments("a"), max_context_tokens=40, long_answers="refuse") as world:
        status, answer, _ = await world.post("/v1/completions", body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert "requested 1030 tokens (30 in the prompt, 1000 in the completion)" in answer["error"]["message"]


async def test_more_context_than_the_model_has_positions_is_a_400_and_never_reaches_a_segment(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (write_model(folder) / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 64, "vocab_size": 258}))
    async with serving(tmp_path, folder, await toy_segments("a"), max_context_tokens=4096) as world:
        for prompt in ("x" * 64, "x" * 600):
            status, answer, _ = await world.post("/v1/completions", {"model": MODEL, "prompt": prompt})
            assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert world.segments[0].counts["step"] == 0
        status, answer, _ = await world.post("/v1/completions", {"model": MODEL, "prompt": "x" * 60, "max_tokens": 99})
        assert (status, answer["usage"]["total_tokens"]) == (200, 64)
        assert (await world.get("/v1/models"))["data"][0]["max_model_len"] == 64


@pytest.mark.parametrize("setting", ["model", "neutral"])
async def test_the_models_generation_config_gives_what_a_request_does_not_say(tmp_path: Path, setting: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    said = {
        "eos_token_id": END,
        "temperature": 0.6,
        "top_p": 0.9,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "min_p": "much",
        "do_sample": False,
    }
    (folder / "generation_config.json").write_text(json.dumps(said))
    segments = await toy_segments("a")
    async with serving(tmp_path, folder, segments, generation_config=setting) as world, world.client as client:
        await client.completions.create(model=MODEL, prompt="x", max_tokens=1)
        await client.completions.create(model=MODEL, prompt="x", max_tokens=1, temperature=0, top_p=1, extra_body={"top_k": -1})
    first, second = segments[0].samplings
    expected = (0.6, 0.9, 20, 1.05) if setting == "model" else (1.0, 1.0, None, None)
    assert (first["temperature"], first["top_p"], first.get("top_k"), first.get("repetition_penalty")) == expected
    assert (second["temperature"], second["top_p"], second.get("top_k")) == (0.0, 1.0, None)


async def test_unknown_fields_are_named_in_a_header_or_refused_by_setting(tmp_path: Path, model_path: Path) -> None:
    body = {"model": MODEL, "prompt": "x", "max_tokens": 2, "colour": "blue", "häßlich\n": 1, "user": "me"}
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        for stream in (False, True):
            async with world.http.post(f"{world.url}/v1/completions", data=json.dumps({**body, "stream": stream})) as response:
                assert response.status == 200
                assert response.headers["Warning"] == '299 splitinference "ignored fields: colour, 1 more"'
        _, _, headers = await world.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 2})
        assert "Warning" not in headers
    (tmp_path / "2").mkdir()
    async with serving(tmp_path / "2", model_path, await toy_segments("a"), unknown_fields="refuse") as world:
        status, answer, _ = await world.post("/v1/completions", body)
        assert (status, answer["error"]["code"]) == (400, "unknown_parameter")


async def test_echo_gives_the_prompt_back_with_and_without_tokens_after_it(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        answer = await client.completions.create(model=MODEL, prompt=[PROMPT, "two"], max_tokens=5, temperature=0, echo=True)
        assert [choice.text for choice in answer.choices] == [PROMPT + text_of(PROMPT, 5), "two" + text_of("two", 5)]
        stream = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=5, temperature=0, echo=True, stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == PROMPT + text_of(PROMPT, 5)
        steps = segments[0].counts["step"]
        alone = await client.completions.create(model=MODEL, prompt=list(b"ids"), max_tokens=0, echo=True)
        assert (alone.choices[0].text, alone.choices[0].finish_reason, alone.usage.completion_tokens) == ("ids", "length", 0)
        assert segments[0].counts["step"] == steps


@pytest.mark.parametrize("tokens", [0, 3])
async def test_echo_with_logprobs_scores_the_prompt_also_after_a_replay_and_never_from_a_prefix(
    tmp_path: Path, model_path: Path, tokens: int
) -> None:
    prompt = "a prompt in several chunks, asked for twice, so that its beginning is known to the segments " * 2
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        for number in range(2):
            if number:
                segments[1].errors.append("kv_missing")
            answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=tokens, temperature=0, echo=True, logprobs=1)
            told = answer.choices[0].logprobs
            ids = [*prompt.encode(), *reference(prompt.encode(), tokens)]
            assert answer.choices[0].text == prompt + text_of(prompt, tokens)
            assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset) == len(ids)
            assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
            assert told.token_logprobs[1 : len(prompt)] == [toy_score(token) for token in prompt.encode()[1:]]
            assert told.text_offset[: len(prompt)] == list(range(len(prompt)))
            assert answer.usage.completion_tokens == tokens
    assert segments[0].counts["step"] > 2 * len(prompt) // 8


async def test_a_completion_of_minus_one_token_fills_the_context(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), max_context_tokens=60, long_answers="refuse") as world:
        status, answer, _ = await world.post("/v1/completions", {"model": MODEL, "prompt": "x" * 20, "max_tokens": -1, "temperature": 0})
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 40
        status, answer, _ = await world.post("/v1/completions", {"model": MODEL, "prompt": "x" * 60, "max_tokens": -1})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
