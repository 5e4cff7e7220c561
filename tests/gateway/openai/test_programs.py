"""Requests in the shapes that programs send them, and the endpoints beside completions that they look for."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.settings import Settings, SettingsError
from tests.gateway.model_folder import BEGIN, END, write_model
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
USER = {"role": "user", "content": "hi"}

CHATS: dict[str, dict[str, Any]] = {
    "LangChain": {
        "messages": [
            {"content": "Be short.", "role": "system"},
            {"content": "hi", "role": "user"},
            {"content": "hello", "role": "assistant", "tool_calls": [], "name": None},
            {"content": "again", "role": "user"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "temperature": 0.7,
        "max_completion_tokens": 8,
        "logprobs": False,
        "parallel_tool_calls": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.2,
        "seed": 3,
        "stop": None,
    },
    "LiteLLM": {
        "messages": [
            USER,
            {"role": "assistant", "content": "a", "tool_calls": None, "function_call": None, "provider_specific_fields": {}},
            USER,
        ],
        "max_tokens": 8,
        "temperature": 1,
        "top_p": 1,
        "n": 1,
        "stream": False,
        "presence_penalty": 0,
        "logit_bias": {},
        "user": "someone",
        "extra_body": {},
        "tools": [],
        "tool_choice": "none",
        "top_k": 40,
        "drop_params": True,
    },
    "Open WebUI": {
        "stream": True,
        "messages": [USER],
        "max_tokens": 8,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "frequency_penalty": 1.1,
        "presence_penalty": 0,
        "repeat_penalty": 1.1,
        "seed": 0,
        "stop": ["<|end|>", "</s>", "User:", "###", "Assistant:", "\n\n\n"],
        "logit_bias": {"5": -100},
        "chat_template_kwargs": {"enable_thinking": False},
        "stream_options": {"include_usage": True},
        "session_id": "x",
        "chat_id": "y",
        "background_tasks": {"title_generation": True},
    },
    "Continue": {
        "messages": [{"role": "system", "content": "You edit code."}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 8.0,
        "temperature": 0.01,
        "stream": True,
        "presence_penalty": None,
        "frequency_penalty": None,
        "top_p": None,
        "stop": [f"<stop {number}>" for number in range(20)],
        "prediction": None,
        "tools": [],
    },
    "an evaluation": {
        "messages": [USER],
        "max_tokens": 8,
        "temperature": 0,
        "stop": ["\n\n", "Question:"],
        "seed": 1234,
        "ignore_eos": True,
        "min_tokens": 2,
        "response_format": {"type": "text"},
        "logprobs": True,
        "top_logprobs": 2,
    },
}


@pytest.mark.parametrize("program", sorted(CHATS))
async def test_a_chat_as_programs_send_it_is_answered(tmp_path: Path, model_path: Path, program: str) -> None:
    body = {"model": MODEL, **CHATS[program]}
    async with (
        serving(tmp_path, model_path, await toy_segments("a", "b")) as world,
        world.http.post(f"{world.url}/v1/chat/completions", data=json.dumps(body)) as response,
    ):
        text = await response.text()
        assert response.status == 200, text
        if body.get("stream"):
            assert text.rstrip().endswith("data: [DONE]")
        else:
            assert json.loads(text)["choices"][0]["finish_reason"] in ("length", "stop")


COMPLETIONS: dict[str, dict[str, Any]] = {
    "log-likelihoods of an evaluation": {
        "prompt": [list(b"a question"), list(b"other")],
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": 1,
        "echo": True,
        "seed": 1,
    },
    "code completion, as Continue": {
        "prompt": "def f(",
        "max_tokens": 16,
        "temperature": 0.01,
        "stop": ["\n\n", "<|end|>", "/src/"],
        "suffix": None,
        "stream": True,
    },
    "a load generator": {
        "prompt": "x" * 20,
        "max_tokens": 10,
        "ignore_eos": True,
        "stream": True,
        "best_of": 1,
        "temperature": 0.0,
        "logprobs": None,
    },
    "LangChain": {
        "prompt": ["x"],
        "max_tokens": 8,
        "n": 1,
        "best_of": 1,
        "logit_bias": {},
        "logprobs": False,
        "frequency_penalty": 0,
        "presence_penalty": 0,
    },
}


@pytest.mark.parametrize("program", sorted(COMPLETIONS))
async def test_a_completion_as_programs_send_it_is_answered(tmp_path: Path, model_path: Path, program: str) -> None:
    async with (
        serving(tmp_path, model_path, await toy_segments("a", "b")) as world,
        world.http.post(f"{world.url}/v1/completions", data=json.dumps({"model": MODEL, **COMPLETIONS[program]})) as response,
    ):
        assert response.status == 200, await response.text()
        assert "Warning" not in response.headers


async def test_the_history_of_tool_calls_reaches_the_template_as_it_expects_it(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder)
    template = (
        "{% for m in messages %}{{ m.role }}:{% if 'tool_calls' in m %}{% for c in m.tool_calls %}"
        "{{ c.function.name }}={{ c.function.arguments.city }}{% endfor %}{% endif %}{{ m.content }};{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}no thoughts{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": "<|end|>"}))
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages = [
        {"role": "user", "content": "?", "tool_calls": []},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sun", "tool_call_id": "1", "tool_calls": None},
    ]
    async with serving(tmp_path, folder, await toy_segments("a")) as world:
        more = {"chat_template_kwargs": {"enable_thinking": False}}
        status, answer, _ = await world.post("/tokenize", {"messages": messages, **more})
        assert (status, bytes(answer["tokens"]).decode()) == (200, "user:?;assistant:weather=Ulm;tool:sun;no thoughts")
        for wrong in (3, [3], [{**call, "function": {"name": "f", "arguments": "{"}}]):
            body = {"model": MODEL, "messages": [{"role": "assistant", "content": "", "tool_calls": wrong}]}
            status, answer, _ = await world.post("/v1/chat/completions", body)
            assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


async def test_texts_become_tokens_and_tokens_texts(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        status, answer, _ = await world.post("/tokenize", {"model": MODEL, "prompt": "héj", "return_token_strs": True})
        assert (status, answer["tokens"], answer["count"], answer["max_model_len"]) == (200, list("héj".encode()), 4, 4096)
        assert answer["token_strs"][0] == "h"
        _, answer, _ = await world.post("/tokenize", {"messages": [USER]})
        assert answer["tokens"] == [BEGIN, *b"user: hi\nassistant:"]
        _, answer, _ = await world.post("/tokenize", {"messages": [USER], "add_generation_prompt": False})
        assert answer["tokens"] == [BEGIN, *b"user: hi\n"]
        _, answer, _ = await world.post("/detokenize", {"tokens": [*b"hi", END]})
        assert answer == {"prompt": "hi<|end|>"}
        for path, body, code in (
            ("/tokenize", {}, "missing_required_parameter"),
            ("/tokenize", {"prompt": "x", "messages": [USER]}, "missing_required_parameter"),
            ("/tokenize", {"prompt": "x" * 100_000}, "context_length_exceeded"),
            ("/tokenize", {"prompt": "x", "model": "other"}, "model_not_found"),
            ("/detokenize", {"tokens": [258]}, "invalid_value"),
            ("/detokenize", {"tokens": ["x"]}, "invalid_type"),
            ("/detokenize", {}, "missing_required_parameter"),
        ):
            status, answer, _ = await world.post(path, body)
            assert 400 <= status < 500
            assert answer["error"]["code"] == code


async def test_models_are_listed_with_a_slash_behind_too(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        assert (await world.get("/v1/models/"))["data"][0]["id"] == MODEL


@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_a_models_name_may_have_slashes_for_kserve_too(tmp_path: Path, model_path: Path, version: str) -> None:
    name = "org/family/model"
    async with serving(tmp_path, model_path, await toy_segments("a"), model_id=name) as world:
        path = f"/v2/models/{name}{version}"
        assert (await world.get(path))["name"] == name
        assert (await world.get(path + "/config"))["name"] == name
        async with world.http.get(world.url + path + "/ready") as response:
            assert response.status == 200
        body = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}]}
        status, answer, _ = await world.post(path + "/infer", body)
        assert (status, answer["outputs"][0]["shape"]) == (200, [1, 3])
        assert (await world.get(f"/v1/models/{name}"))["id"] == name
        async with world.http.get(f"{world.url}/v2/models/org/other") as response:
            assert response.status == 404


@pytest.mark.parametrize(("origins", "allowed"), [("", None), ("https://a.example, http://b:3000", "http://b:3000"), ("*", "*")])
async def test_pages_of_the_set_origins_may_ask(tmp_path: Path, model_path: Path, origins: str, allowed: str | None) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), cors_origins=origins) as world:
        asked = {"Origin": "http://b:3000"}
        preflight = {**asked, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
        async with world.http.options(f"{world.url}/v1/chat/completions", headers=preflight) as response:
            assert response.headers.get("Access-Control-Allow-Origin") == allowed
            assert (response.status == 200) is (allowed is not None)
        body = {"model": MODEL, "messages": [USER], "max_tokens": 2, "stream": True}
        async with world.http.post(f"{world.url}/v1/chat/completions", data=json.dumps(body), headers=asked) as response:
            assert (response.status, response.headers.get("Access-Control-Allow-Origin")) == (200, allowed)
        async with world.http.get(f"{world.url}/v1/models", headers={"Origin": "https://evil.example"}) as response:
            assert response.headers.get("Access-Control-Allow-Origin") == ("*" if allowed == "*" else None)


@pytest.mark.parametrize("origin", ["example.com", "https://a/b", "https://*.a", "null"])
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(SettingsError, match="SI_CORS_ORIGINS"):
        Settings.from_environment({"SI_NAME": "a", "SI_MODEL_PATH": "/m", "SI_INSECURE": "true", "SI_CORS_ORIGINS": origin})
