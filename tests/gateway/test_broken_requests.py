"""Whatever a client sends, the answer is its own fault: no status of 500 and above, no traceback, no path, another request still works."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference_gateway.chat_template import ChatTemplate
from splitinference_gateway.errors import ApiError
from splitinference_gateway.fields import ONLY_NEUTRAL
from splitinference_gateway.kserve_body import parse_infer
from splitinference_gateway.reading import Reader
from splitinference_gateway.requests import ChatRequest, CompletionRequest
from splitinference_gateway.tokenizer import ModelTokenizer
from tests.examples import examples
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "\x00", "", MODEL, "user", "text", "FP32", "INT64", "a" * 600])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**400, float("nan"), float("inf"), 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def of(kind: type[ChatRequest] | type[CompletionRequest], likely: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with the fields of a request, right ones and any others."""
    names = [*sorted(kind.model_fields), *sorted(ONLY_NEUTRAL), "tools", "tool_choice", "best_of", "user", "metadata", "nothing"]
    right = {name: st.just(value) | VALUES for name, value in likely.items()}
    return st.fixed_dictionaries(right, optional={name: VALUES for name in names if name not in likely})


PART = st.fixed_dictionaries({"type": st.just("text") | VALUES, "text": TEXT | VALUES})
CALL = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": VALUES, "arguments": TEXT | VALUES}) | VALUES})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "tool"]) | VALUES, "content": TEXT | st.lists(PART, max_size=3) | VALUES},
    optional={"name": VALUES, "tool_calls": VALUES | st.lists(CALL, max_size=2)},
)
CHATS = of(ChatRequest, {"model": MODEL}).flatmap(lambda body: st.lists(MESSAGE, max_size=3).map(lambda m: {"messages": m, **body}))
SAMPLING = st.fixed_dictionaries(
    {},
    optional={
        "logit_bias": st.dictionaries(st.sampled_from(["0", "257", "258", "-1", "1e3", "9" * 30, "\u0663"]) | TEXT, NUMBERS, max_size=3),
        "stop_token_ids": st.lists(NUMBERS, max_size=3),
        "stop": st.lists(TEXT, max_size=5),
        "min_tokens": NUMBERS,
        "top_k": NUMBERS,
        "echo": st.booleans(),
        "logprobs": st.booleans() | st.integers(0, 21),
        "max_tokens": st.sampled_from([0, 1, 2.0, 3]),
        "chat_template_kwargs": st.dictionaries(
            st.sampled_from(["add_generation_prompt", "bos_token", "self", "x"]) | TEXT, VALUES, max_size=3
        ),
    },
)
COMPLETIONS = of(CompletionRequest, {"model": MODEL, "prompt": "hello", "max_tokens": 3})
NEARLY = st.one_of(
    SAMPLING.map(lambda more: {"model": MODEL, "prompt": "hello", "max_tokens": 3, **more}),
    SAMPLING.map(lambda more: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, **more}),
)
TOKENS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": TEXT | VALUES,
        "messages": st.lists(MESSAGE, max_size=2) | VALUES,
        "tokens": st.lists(NUMBERS, max_size=4) | VALUES,
        "model": VALUES,
    },
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("input_ids") | VALUES,
        "datatype": st.sampled_from(["INT64", "FP32", "BYTES"]) | VALUES,
        "shape": st.lists(st.integers(-1, 2**62), max_size=9) | VALUES,
        "data": st.lists(NUMBERS, max_size=5) | VALUES,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": VALUES}) | VALUES,
    },
)
INFERS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=3) | VALUES}, optional={"outputs": VALUES, "id": VALUES, "parameters": VALUES}
)
BODIES = st.one_of(CHATS, COMPLETIONS, INFERS, NEARLY, NEARLY, TOKENS, VALUES)
OFTEN = examples(400)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Reader:
    tokenizer = ModelTokenizer(model_path)
    assert tokenizer.template is not None
    return Reader(MODEL, 4096, 36, tokenizer, ChatTemplate(tokenizer.template, tokenizer.special), tokenizer.longest_token())


def refusal(raw: bytes, read: Any) -> ApiError | None:
    """The error, None where the body is read. Anything else that is raised fails the test."""
    try:
        read(raw)
    except ApiError as error:
        return error
    return None


def answers(body: dict[str, Any] | Any, read: Any) -> None:
    """It is read, or refused with a status of the client's, in words that can be sent."""
    error = refusal(json.dumps(body).encode(), read)
    if error is not None:
        assert 400 <= error.status < 500
        assert len(json.dumps(error.body, ensure_ascii=False).encode()) < 20_000
        assert "/splitinference_gateway/" not in error.message


@OFTEN
@given(CHATS | NEARLY | VALUES)
def test_any_chat_is_read_or_refused(reader: Reader, body: Any) -> None:
    answers(body, reader.chat)


@OFTEN
@given(COMPLETIONS | NEARLY | VALUES)
def test_any_completion_is_read_or_refused(reader: Reader, body: Any) -> None:
    answers(body, reader.completion)


@OFTEN
@given(TOKENS | VALUES)
def test_any_question_to_the_tokenizer_is_read_or_refused(reader: Reader, body: Any) -> None:
    answers(body, reader.tokenize)
    answers(body, reader.detokenize)


@OFTEN
@given(INFERS | VALUES, st.none() | st.text(max_size=8) | st.integers(0, 200).map(str))
def test_any_inference_is_read_or_refused(body: Any, header_length: str | None) -> None:
    answers(body, lambda raw: parse_infer(raw, header_length))


@OFTEN
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(reader: Reader, raw: bytes) -> None:
    for read in (reader.chat, reader.completion, reader.tokenize, reader.detokenize, lambda body: parse_infer(body, None)):
        error = refusal(raw, read)
        assert error is None or 400 <= error.status < 500


@pytest.mark.anyio
async def test_broken_requests_get_no_500_from_the_server_and_others_their_answer(
    tmp_path: Path, model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bodies: list[Any] = []

    @examples(150)
    @given(BODIES)
    def collect(body: Any) -> None:
        bodies.append(body)

    collect()
    paths = (
        "/v1/chat/completions",
        "/v1/completions",
        f"/v2/models/{MODEL}/infer",
        "/tokenize",
        "/detokenize",
        "/v1/models/\u00e9%00",
        f"/v2/models/{MODEL}/versions/%ff/infer",
    )
    async with serving(tmp_path, model_path, await toy_segments("a"), max_context_tokens=256) as world:
        for number, body in enumerate(bodies):
            raw = json.dumps(body).encode()
            for path in (paths[number % 2], paths[number % len(paths)]):
                async with world.http.post(world.url + path, data=raw, headers={"X-Forwarded-For": "\u00e9" * 40}) as response:
                    text = await response.text()
                    assert response.status < 500, (path, body, text)
                    assert "Traceback" not in text
                    assert "/splitinference_gateway/" not in text
        assert await world.complete("hello", 4)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
