"""Tools: the template sees them, calls are read from the text as it comes, and a call that must come does come."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.client_requests.tools import FORMS, Call, ToolText, form_of
from tests.gateway.model_folder import write_model
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bern", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CHAT: dict[str, Any] = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "weather?"}],
    "tools": [WEATHER, CLOCK],
    "max_tokens": 600,
    "temperature": 0,
}
HERMES = (
    "{% if tools %}You may call: {{ tools | tojson }} as <tool_call>…</tool_call>{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% if message['tool_calls'] %}"
    "{% for call in message['tool_calls'] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}{% endif %}\n"
    "{% endfor %}assistant:"
)
MISTRAL = "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }} [TOOL_CALLS]{% endif %}{{ messages[0]['content'] }}"
LLAMA = '{% if tools %}<|python_tag|> {"name": "", "parameters": {}} {{ tools | tojson }}{% endif %}{{ messages[0]["content"] }}'
ONE = '{"name": "get_weather", "%s": {"city": "Rome", "days": 2}}'


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, template in {"hermes": HERMES, "mistral": MISTRAL, "llama": LLAMA}.items():
        folder = write_model(tmp_path_factory.mktemp(name))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        made[name] = folder
    return made


def read(form: str, text: str, step: int = 1) -> tuple[str, list[Call]]:
    reader, said, calls = ToolText(FORMS[form]), "", []
    for start in range(0, len(text), step):
        more, found = reader.add(text[start : start + step])
        said, calls = said + more, calls + found
    more, found = reader.flush()
    return said + more, calls + found


@pytest.mark.parametrize("step", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text", "said", "calls"),
    [
        ("hermes", "no call <b> at all", "no call <b> at all", 0),
        ("hermes", "wait\n<tool_call>\n" + ONE % "arguments" + "\n</tool_call>", "wait", 1),
        ("hermes", f"<tool_call>{ONE % 'arguments'}</tool_call>\n<tool_call>{ONE % 'arguments'}</tool_call> done", "done", 2),
        ("hermes", f"<tool_call>{ONE % 'arguments'}", "", 1),  # the end is missing
        ("hermes", "<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", 0),
        ("hermes", '<tool_call>{"name": 5}</tool_call>x', '<tool_call>{"name": 5}</tool_call>x', 0),
        ("hermes", '<tool_call>{"name": "f"', '<tool_call>{"name": "f"', 0),
        ("hermes", "a <tool", "a <tool", 0),
        ("mistral", f"[TOOL_CALLS] [{ONE % 'arguments'}, {ONE % 'arguments'}]", "", 2),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome", "days": 2}', "", 1),
        ("mistral", "[TOOL", "[TOOL", 0),
        ("llama", ONE % "parameters", "", 1),
        ("llama", "<|python_tag|>" + ONE % "parameters", "", 1),
        ("llama", ONE % "parameters" + "; " + ONE % "parameters", "", 2),
        ("llama", "plain {text}", "plain {text}", 0),
        ("llama", "{not a call", "{not a call", 0),
        ("llama", '{"answer": 3}', '{"answer": 3}', 0),
    ],
)
def test_calls_are_read_wherever_the_text_is_cut(form: str, text: str, said: str, calls: int, step: int) -> None:
    left, found = read(form, text, step)
    assert (left, len(found)) == (said, calls)
    for call in found:
        assert call.name == "get_weather"
        assert json.loads(call.arguments) == {"city": "Rome", "days": 2}


def test_text_without_a_call_does_not_wait() -> None:
    reader = ToolText(FORMS["hermes"])
    assert reader.add("hello there ") == ("hello there", [])
    assert reader.add("you") == (" you", [])
    assert ToolText(FORMS["llama"]).add("hello ") == ("hello ", [])


def test_the_form_is_that_of_the_template() -> None:
    assert [form_of(template) for template in (HERMES, MISTRAL, LLAMA)] == [FORMS["hermes"], FORMS["mistral"], FORMS["llama"]]
    assert form_of("{{ messages }}") is None
    assert form_of("{{ tools }} in a form of its own") is None
    assert form_of(None) is None


async def test_a_call_becomes_openais_and_the_history_goes_back(tmp_path: Path, folders: dict[str, Path]) -> None:
    segments = await toy_segments("a", "b")
    for segment in segments:
        segment.script = f"<tool_call>\n{ONE % 'arguments'}\n</tool_call>".encode()
    async with serving(tmp_path, folders["hermes"], segments) as served, served.client as client:
        answer = await client.chat.completions.create(**CHAT)
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert call.function.name == "get_weather"  # type: ignore[union-attr]
        assert json.loads(call.function.arguments) == {"city": "Rome", "days": 2}  # type: ignore[union-attr]
        assert call.id.startswith("call_")
        stream = await client.chat.completions.create(**CHAT, stream=True)
        events = [event.choices[0] async for event in stream]
        streamed = [call for event in events for call in event.delta.tool_calls or ()]
        assert [(call.index, call.function.name) for call in streamed if call.function] == [(0, "get_weather")]
        assert "".join(event.delta.content or "" for event in events) == ""
        assert events[-1].finish_reason == "tool_calls"
        back = [
            *CHAT["messages"],
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        assert (await client.chat.completions.create(**{**CHAT, "messages": back})).choices


async def test_the_template_sees_tools_unless_none_may_be_called(tmp_path: Path, folders: dict[str, Path]) -> None:
    async with serving(tmp_path, folders["hermes"], await toy_segments("a")) as served:
        counts = []
        for more in ({}, {"tool_choice": "auto"}, {"tool_choice": "none"}, {"tools": []}):
            _, answer, _ = await served.post("/v1/chat/completions", {**CHAT, "max_tokens": 1, **more})
            counts.append(answer["usage"]["prompt_tokens"])
    assert counts[0] == counts[1] > counts[2] == counts[3]


@pytest.mark.parametrize("form", ["hermes", "mistral", "llama"])
async def test_a_call_that_must_come_comes(tmp_path: Path, folders: dict[str, Path], form: str) -> None:
    async with serving(tmp_path, folders[form], await toy_segments("a", "b")) as served:
        named = {"type": "function", "function": {"name": "get_weather"}}
        for choice, names, finish in ((named, {"get_weather"}, "stop"), ("required", {"get_weather", "clock"}, "tool_calls")):
            body = {**CHAT, "tool_choice": choice, "parallel_tool_calls": False}
            status, answer, _ = await served.post("/v1/chat/completions", body)
            assert status == 200, answer
            message = answer["choices"][0]["message"]
            if answer["choices"][0]["finish_reason"] == "length":  # the toy model may write an object without end for `clock`
                continue
            (call,) = message["tool_calls"]
            assert call["function"]["name"] in names
            arguments = json.loads(call["function"]["arguments"])
            if call["function"]["name"] == "get_weather":
                assert arguments["city"] in ("Bern", "Rome")
                assert 1 <= arguments["days"] <= 9
            assert answer["choices"][0]["finish_reason"] == finish


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": "x"}, "invalid_type"),
    ({"tools": [{"type": "function"}]}, "missing_required_parameter"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "invalid_value"),
    ({"tools": [WEATHER, WEATHER]}, "invalid_value"),
    ({"tools": [WEATHER] * 129}, "invalid_value"),
    ({"tools": [{"type": "code_interpreter"}]}, "invalid_value"),
    ({"tools": [], "tool_choice": "required"}, "invalid_value"),
    ({"tool_choice": "sometimes"}, "invalid_value"),
    ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "invalid_value"),
    ({"tool_choice": "required", "guided_regex": "a"}, "invalid_value"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "nothing"}}}], "tool_choice": "required"},
        "invalid_value",
    ),
]


async def test_tools_that_cannot_be_called_are_refused(tmp_path: Path, folders: dict[str, Path], model_path: Path) -> None:
    async with serving(tmp_path, folders["hermes"], await toy_segments("a")) as served:
        for asks, code in REFUSED:
            status, answer, _ = await served.post("/v1/chat/completions", {**CHAT, **asks})
            assert status == 400, (asks, answer)
            assert answer["error"]["code"] == code, (asks, answer)
    (tmp_path / "other").mkdir()
    async with serving(tmp_path / "other", model_path, await toy_segments("b")) as served:
        status, answer, _ = await served.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (400, "unsupported_parameter")
        assert "takes no tools" in answer["error"]["message"]
        assert (await served.post("/v1/chat/completions", {**CHAT, "tool_choice": "none", "max_tokens": 2}))[0] == 200
