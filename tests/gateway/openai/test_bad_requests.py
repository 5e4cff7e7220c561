"""Requests that are refused, each in OpenAI's error shape and with the status that its clients expect."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.client_requests.requests import ChatRequest, CompletionRequest, parse
from splitinference_gateway.errors import ApiError
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

USER = {"role": "user", "content": "hi"}


def refused(kind: type[ChatRequest] | type[CompletionRequest], body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(kind, json.dumps(body).encode(), refuse_unknown=True)
    return caught.value


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": None}, "messages", "invalid_type"),
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_type"),
        ({"messages": [{"content": "hi"}]}, "messages.0.role", "missing_required_parameter"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages.0.role", "invalid_value"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, None, "invalid_value"),
        ({"model": 3}, "model", "invalid_type"),
        ({"temperature": "warm"}, "temperature", "invalid_type"),
        ({"temperature": 100.1}, "temperature", "invalid_value"),
        ({"top_p": -0.1}, "top_p", "invalid_value"),
        ({"top_p": False}, "top_p", "invalid_type"),
        ({"n": 0}, "n", "invalid_value"),
        ({"n": True}, "n", "invalid_type"),
        ({"max_tokens": -2}, "max_tokens", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"echo": True}, "echo", "unsupported_parameter"),
        ({"stop": ["", 1]}, "stop", "invalid_type"),
        ({"messages": [{"role": "user", "content": [{"type": "refusal", "refusal": 3}]}]}, None, "invalid_value"),
        ({"messages": [{"role": "user", "content": [3]}]}, None, "invalid_type"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", None),
        ({"stop": ["a"] * 65}, "stop", None),
        ({"stop": [str(i) * 512 for i in range(9)]}, "stop", "invalid_value"),
        ({"stop": [1]}, "stop", "invalid_type"),
        ({"seed": "x"}, "seed", "invalid_type"),
        ({"seed": 2**63}, "seed", "invalid_value"),
        ({"stream": "yes"}, "stream", "invalid_type"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None),
        ({"top_logprobs": 2}, "top_logprobs", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"colour": "blue"}, "colour", "unknown_parameter"),
        ({"tools": [{"type": "function"}]}, "tools.0.function", "missing_required_parameter"),
        ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
        ({"frequency_penalty": "high"}, "frequency_penalty", "invalid_type"),
        ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
        ({"top_k": -2}, "top_k", "invalid_value"),
        ({"top_k": 1.5}, "top_k", None),
        ({"min_p": 1.1}, "min_p", "invalid_value"),
        ({"logit_bias": [1]}, "logit_bias", "invalid_type"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {"5": True}}, "logit_bias", "invalid_value"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "invalid_value"),
        ({"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids", None),
        ({"stop_token_ids": 7}, "stop_token_ids", "invalid_type"),
        ({"ignore_eos": 1}, "ignore_eos", "invalid_type"),
        ({"min_tokens": -1}, "min_tokens", "invalid_value"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "invalid_value"),
        ({"chat_template_kwargs": "thinking"}, "chat_template_kwargs", "invalid_type"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"tools": [], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format", "missing_required_parameter"),
        ({"chat_template": "{{ messages }}"}, "chat_template", "unsupported_parameter"),
        ({"best_of": 3, "n": 2}, "best_of", "unsupported_parameter"),
    ],
)
def test_a_wrong_chat_parameter_is_named(change: dict[str, Any], param: str | None, code: str | None) -> None:
    error = refused(ChatRequest, {"model": MODEL, "messages": [USER], **change})
    assert error.status == 400
    assert error.kind == "invalid_request_error"
    if param is not None:
        assert (error.param or "").startswith(param)
    if code is not None:
        assert error.code == code
    assert set(error.body["error"]) == {"message", "type", "param", "code"}  # type: ignore[call-overload]


@pytest.mark.parametrize("prompt", [3, [1, "a"], [[1], "a"], {"text": "a"}, None])
def test_a_prompt_of_a_wrong_type_is_refused(prompt: object) -> None:
    assert (refused(CompletionRequest, {"model": MODEL, "prompt": prompt}).param or "").startswith("prompt")


@pytest.mark.parametrize(
    "extra",
    [
        {"user": "u", "store": False, "metadata": {"a": "b"}, "service_tier": "auto"},
        {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}},
        {"tools": None, "functions": None, "stop": None, "temperature": None, "n": None, "stream": None},
        {"temperature": 1, "top_p": 1},
        {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "logit_bias": None, "stop_token_ids": [], "ignore_eos": False, "min_tokens": 0},
        {"top_k": 0, "chat_template_kwargs": {}, "tools": [], "tool_choice": "none", "top_logprobs": 0, "stop": []},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
        {"stream_options": {}, "best_of": 1, "suffix": "", "functions": [], "function_call": "auto", "guided_json": None},
        {"response_format": {"type": "text", "extra": 1}, "skip_special_tokens": True, "length_penalty": 1.0, "use_beam_search": False},
        {"stop": "", "logit_bias": [], "stream_options": [], "chat_template_kwargs": [], "echo": False, "metadata": []},
        {"stop": ["", ""], "tools": [{"type": "function", "function": {"name": "f", "parameters": []}}], "tool_choice": "none"},
        {"max_tokens": 5.0, "n": 1.0, "seed": 7.0, "top_k": 40.0, "top_logprobs": 2.0, "logprobs": True},
    ],
)
def test_parameters_that_ask_for_nothing_are_accepted(extra: dict[str, Any]) -> None:
    parse(ChatRequest, json.dumps({"model": MODEL, "messages": [USER], **extra}).encode())


def test_content_parts_are_one_text_and_the_developer_speaks_as_system() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    body = {"model": MODEL, "messages": [{"role": "developer", "content": parts}]}
    assert parse(ChatRequest, json.dumps(body).encode()).messages[0].for_template == {"role": "system", "content": "one two"}


def test_parts_of_other_interfaces_are_texts_too() -> None:
    parts = [{"type": "input_text", "text": "one "}, {"type": "output_text", "text": "two "}, {"type": "refusal", "refusal": "no "}, "end"]
    body = {"model": MODEL, "messages": [{"role": "assistant", "content": parts}]}
    assert parse(ChatRequest, json.dumps(body).encode()).messages[0].for_template["content"] == "one two no end"


@pytest.mark.parametrize(
    ("asked", "most"), [({}, None), ({"max_tokens": -1}, None), ({"max_tokens": 7}, 7), ({"max_completion_tokens": -1.0}, None)]
)
def test_minus_one_is_what_the_context_leaves(asked: dict[str, Any], most: int | None) -> None:
    assert parse(ChatRequest, json.dumps({"model": MODEL, "messages": [USER], **asked}).encode()).most_tokens == most


def test_a_share_of_nothing_is_the_likeliest_token_and_empty_stops_stop_nothing() -> None:
    read = parse(ChatRequest, json.dumps({"model": MODEL, "messages": [USER], "top_p": 0, "stop": ["", "end"]}).encode())
    assert (read.top_p, read.stops) == (1e-6, ("end",))


@pytest.mark.parametrize("prompt", [[5.0, 6], [[5.0], [6.0]]])
def test_token_ids_may_be_whole_floats(prompt: list[Any]) -> None:
    read = parse(CompletionRequest, json.dumps({"model": MODEL, "prompt": prompt, "logprobs": True}).encode())
    assert read.prompts in (([5, 6],), ([5], [6]))
    assert read.logprobs == 1


@pytest.mark.parametrize("prompt", [[5.5], [[5.5]], [True], [[True]]])
def test_other_numbers_are_no_token_ids(prompt: list[Any]) -> None:
    assert (refused(CompletionRequest, {"model": MODEL, "prompt": prompt}).param or "").startswith("prompt")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{not json", 400, "could not parse the JSON body"),
        (b"[" * 100_000, 400, "could not parse the JSON body"),
        (b"\xff\xfe", 400, "could not parse the JSON body"),
        (b"[]", 400, "must be a JSON object"),
        (b'{"model": "gpt-17", "prompt": "x"}', 404, "does not exist"),
        (b'{"model": "toy", "prompt": ""}', 400, "at least one token"),
        (b'{"model": "toy", "prompt": []}', 400, "at least one"),
        (b'{"model": "toy", "prompt": [99999]}', 400, "token id 99999 is not in the model's vocabulary"),
        (b'{"model": "toy", "prompt": [-1]}', 400, "token id -1"),
        (b'{"model": "toy", "prompt": "' + b"x" * 4097 + b'"}', 400, "maximum context length is 4096 tokens"),
        (b'{"model": "toy", "prompt": "abc", "max_tokens": 0}', 400, "only allowed with 'echo'"),
        (b'{"model": "toy", "prompt": "abc", "logit_bias": {"258": 1}}', 400, "token id 258 is not in the model's vocabulary of 258"),
        (b'{"model": "toy", "prompt": "abc", "stop_token_ids": [258]}', 400, "token id 258 is not in"),
        (b'{"model": "toy", "prompt": "abc", "min_tokens": 9, "max_tokens": 8}', 400, "more than 'max_tokens', 8"),
    ],
)
async def test_a_bad_body_is_answered_in_openais_shape(tmp_path: Path, model_path: Path, body: bytes, status: int, said: str) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        answered, error, _ = await world.post("/v1/completions", body)
        assert answered == status
        assert said in error["error"]["message"]
        assert error["error"]["type"] == "invalid_request_error"
        assert await world.metric(f'splitinference_gateway_requests_total{{code="{status}"}}') == 1
        assert world.segments[0].counts["step"] == 0


@pytest.mark.anyio
async def test_error_codes_that_clients_look_at(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), max_context_tokens=50) as world:
        _, unknown, _ = await world.post("/v1/chat/completions", {"model": "x", "messages": [USER]})
        assert unknown["error"]["code"] == "model_not_found"
        _, long, _ = await world.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x" * 60}]})
        assert long["error"]["code"] == "context_length_exceeded"
        _, template, _ = await world.post("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "tool", "content": "x"}]})
        assert "no tools here" in template["error"]["message"]


@pytest.mark.anyio
async def test_a_huge_body_is_refused_whether_it_says_so_or_not(tmp_path: Path, model_path: Path) -> None:
    async def pieces() -> Any:
        for _ in range(20):
            yield b"x" * 1000

    async with serving(tmp_path, model_path, await toy_segments("a"), max_body_bytes=10_000) as world:
        for data in (b"x" * 10_001, pieces()):
            async with world.http.post(f"{world.url}/v1/completions", data=data) as response:
                assert response.status == 413
                assert (await response.json())["error"]["code"] == "request_too_large"


@pytest.mark.anyio
async def test_a_body_that_does_not_arrive_is_not_waited_for(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), body_seconds=0.2) as world:
        host, port = world.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert (await reader.readline()).split()[1] == b"408"
        writer.close()
        await writer.wait_closed()


@pytest.mark.anyio
async def test_unknown_paths_and_methods_have_the_same_shape(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        status, body, _ = await world.post("/v1/images/generations", {})
        assert (status, body["error"]["message"]) == (404, "Invalid URL (POST /v1/images/generations)")
        async with world.http.get(f"{world.url}/v1/completions") as response:
            assert response.status == 405
            assert (await response.json())["error"]["type"] == "invalid_request_error"


@pytest.mark.anyio
async def test_api_keys_are_asked_for_and_read_again_when_they_change(tmp_path: Path, model_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# those who may\nsk-one\n")
    async with serving(tmp_path, model_path, await toy_segments("a"), api_keys_file=keys) as world:

        async def ask(headers: dict[str, str]) -> tuple[int, str | None]:
            status, body, _ = await world.post("/v1/completions", {"model": MODEL, "prompt": "x", "max_tokens": 2}, headers=headers)
            return status, body.get("error", {}).get("code")

        assert await ask({}) == (401, None)
        assert await ask({"Authorization": "Bearer sk-two"}) == (401, "invalid_api_key")
        assert await ask({"Authorization": "Bearer sk-one"}) == (200, None)
        replaced = tmp_path / "new"
        replaced.write_text("sk-two\n")
        replaced.rename(keys)
        assert await ask({"Authorization": "Bearer sk-two"}) == (200, None)
        assert await ask({"Authorization": "Bearer sk-one"}) == (401, "invalid_api_key")
        async with world.http.get(f"{world.url}/v1/models") as response:
            assert response.status == 401
