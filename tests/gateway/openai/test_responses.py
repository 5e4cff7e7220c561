"""OpenAI's Responses API, the part that needs no memory: as the openai client sends and reads it, whole and as a stream."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.model_folder import write_model
from tests.gateway.openai.test_tools import HERMES, ONE, WEATHER
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
FUNCTION = {"type": "function", **WEATHER["function"]}
CALL = f"<tool_call>\n{ONE % 'arguments'}\n</tool_call>"


@pytest.fixture(scope="module")
def with_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("hermes"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": HERMES}))
    return folder


async def test_a_response_says_what_the_same_chat_says(tmp_path: Path, model_path: Path) -> None:
    messages: Any = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}]
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as world, world.client as client:
        chat = await client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=12, temperature=0)
        forms: list[Any] = [
            "hi",
            [{"role": "user", "content": "hi"}],
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
        ]
        for given in forms:
            made = await client.responses.create(
                model=MODEL, instructions="Be short.", input=given, max_output_tokens=12, temperature=0, store=False, metadata={"a": "b"}
            )
            assert made.output_text == chat.choices[0].message.content
            assert (made.status, made.incomplete_details and made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
            assert made.usage is not None
            assert chat.usage is not None
            assert (made.usage.input_tokens, made.usage.output_tokens) == (chat.usage.prompt_tokens, 12)
            assert (made.instructions, made.metadata, made.model_dump()["store"]) == ("Be short.", {"a": "b"}, False)


@pytest.mark.parametrize("end_after", [None, 45])
async def test_the_events_of_a_stream_add_up_to_the_whole(tmp_path: Path, model_path: Path, end_after: int | None) -> None:
    segments = await toy_segments("a")
    segments[0].end_after = end_after
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        whole = await client.responses.create(model=MODEL, input="tell me more", max_output_tokens=30, temperature=0)
        stream = await client.responses.create(model=MODEL, input="tell me more", max_output_tokens=30, temperature=0, stream=True)
        events = [event async for event in stream]
        assert whole.status == ("incomplete" if end_after is None else "completed")
        kinds = [event.type for event in events]
        assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
        last = ["response.output_text.done", "response.content_part.done", "response.output_item.done", f"response.{whole.status}"]
        assert kinds[-4:] == last
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
        final: Any = events[-1]
        assert final.response.output_text == whole.output_text
        assert final.response.usage == whole.usage
        async with client.responses.stream(model=MODEL, input="tell me more", max_output_tokens=30, temperature=0) as helper:
            assert "".join([event.delta async for event in helper if event.type == "response.output_text.delta"]) == whole.output_text


async def test_calls_of_functions_are_items_of_their_own(tmp_path: Path, with_tools: Path) -> None:
    segments = await toy_segments("a")
    segments[0].script = f"Wait. {CALL}".encode()
    async with serving(tmp_path, with_tools, segments) as world, world.client as client:
        tools: Any = [FUNCTION]
        whole = await client.responses.create(model=MODEL, input="weather?", tools=tools, temperature=0)
        text, call = whole.output
        assert (text.type, whole.output_text, whole.status) == ("message", "Wait.", "completed")
        assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Rome", "days": 2})
        stream = await client.responses.create(model=MODEL, input="weather?", tools=tools, temperature=0, stream=True)
        events: list[Any] = [event async for event in stream]
        (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
        assert json.loads(done.arguments) == {"city": "Rome", "days": 2}
        assert [(item.type, item.status) for item in events[-1].response.output] == [
            ("message", "completed"),
            ("function_call", "completed"),
        ]
        segments[0].script = CALL.encode()
        alone = await client.responses.create(model=MODEL, input="weather?", tools=tools, temperature=0)
        assert [item.type for item in alone.output] == ["function_call"]


async def test_the_answer_of_a_function_goes_back_as_an_item(tmp_path: Path, with_tools: Path) -> None:
    items = [
        {"role": "user", "content": "weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Wait."}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "get_weather", "arguments": '{"city": "Rome"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "sun"},
    ]
    segments = await toy_segments("a")
    async with serving(tmp_path, with_tools, segments) as world:
        status, answer, _ = await world.post("/v1/responses", {"model": MODEL, "input": items, "max_output_tokens": 1, "temperature": 0})
        assert status == 200, answer
        told = bytes(segments[0].prompts[-1]).decode()
        assert 'assistant: Wait.<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>tool: sun' in told


async def test_the_form_of_the_text_is_followed(tmp_path: Path, model_path: Path) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"], "additionalProperties": False}
    text: Any = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    segments = await toy_segments("a")
    segments[0].end_after = 1
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        made = await client.responses.create(model=MODEL, input="hi", text=text, max_output_tokens=60, temperature=0)
        assert json.loads(made.output_text)["a"] in (1, 2)
        assert made.model_dump(by_alias=True)["text"]["format"]["type"] == "json_schema"


async def test_log_probabilities_are_told_where_they_are_asked_for(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world, world.client as client:
        include: Any = ["message.output_text.logprobs"]
        made: Any = await client.responses.create(model=MODEL, input="hi", max_output_tokens=3, top_logprobs=2, include=include)
        (part,) = made.output[0].content
        assert len(part.logprobs) == 3
        assert all(len(token.top_logprobs) == 2 for token in part.logprobs)


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send all earlier items in 'input'"),
        ({"conversation": "conv_1"}, "conversation", "No conversations are stored"),
        ({"prompt": {"id": "p"}}, "prompt", "No prompt templates are stored"),
        ({"background": True}, "background", "not supported"),
        ({"truncation": "auto"}, "truncation", "not supported"),
        ({"input": []}, "input", "0 items, and 1 to 4096"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type", "'item_reference' is none of message"),
        ({"input": [{"type": ["message"]}]}, "input.0.type", "is none of"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input.0.content.0", "'input_text'"),
        ({"input": [{"role": "owner", "content": "x"}]}, "input.0.role", "role"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input.0.call_id", "Missing"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{"}]}, "input", "not JSON"),
        ({"input": [{"type": "reasoning"}]}, "input", "says nothing"),
        ({"tools": [{"type": "web_search"}]}, "tools", "only functions"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "expected"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.json_schema.schema", "Missing"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"include": ["file_search_call.results"]}, "include.file_search_call.results", "not supported"),
        ({"input": "x" * 100_000}, "input", "maximum context length"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
    ],
)
async def test_what_cannot_be_done_is_refused_in_the_names_of_a_response(
    tmp_path: Path, model_path: Path, body: dict[str, Any], param: str, said: str
) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), max_context_tokens=256) as world:
        status, answer, _ = await world.post("/v1/responses", {"model": MODEL, "input": "hi", **body})
        assert status == 400, answer
        assert answer["error"]["param"] == param
        assert said in answer["error"]["message"]


async def test_fields_of_chats_alone_have_no_effect(tmp_path: Path, model_path: Path) -> None:
    for setting, status in (("warn", 200), ("refuse", 400)):
        async with serving(tmp_path, model_path, await toy_segments("a"), unknown_fields=setting) as world:
            body = {"model": MODEL, "input": "hi", "n": 3, "messages": [], "max_output_tokens": 2}
            found, answer, headers = await world.post("/v1/responses", body)
            assert found == status, answer
            assert ("n" in headers.get("Warning", "") and "messages" in headers.get("Warning", "")) == (status == 200)


async def test_a_response_cannot_be_fetched_and_an_error_in_a_stream_is_an_event(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments, replay_seconds=0.3, max_context_tokens=512) as world, world.client as client:
        with pytest.raises(openai.NotFoundError, match="No responses are stored here"):
            await client.responses.retrieve("resp_1")
        with pytest.raises(openai.NotFoundError, match="No responses are stored here"):
            await client.responses.delete("resp_1")
        body = {"model": MODEL, "input": "hi", "stream": True, "max_output_tokens": 300}
        async with world.http.post(f"{world.url}/v1/responses", data=json.dumps(body)) as response:
            first = await response.content.readuntil(b"response.output_text.delta")
            assert first.startswith(b"event: response.created\ndata: ")
            await segments[0].die()
            rest = await response.content.read()
        assert b"event: error\n" in rest
        assert b"[DONE]" not in rest
