"""Whatever a client sends, the answer is its own fault: no status of 500 and above, no traceback, no path, another request still works."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from splitinference_gateway.client_requests.fields import ONLY_NEUTRAL
from splitinference_gateway.client_requests.requests import ChatRequest, CompletionRequest
from splitinference_gateway.client_requests.responses_request import ResponseRequest
from splitinference_gateway.client_requests.text_requests import EmbeddingRequest, RerankRequest, ScoreRequest
from splitinference_gateway.errors import ApiError
from splitinference_gateway.prompt_reading.reading import Reader
from splitinference_gateway.prompt_reading.texts import TextReader
from splitinference_gateway.tensor_io.kserve_body import parse_infer
from splitinference_gateway.tensor_io.signature import Signature
from splitinference_gateway.tokens.chat_template import ChatTemplate
from splitinference_gateway.tokens.tokenizer import ModelTokenizer
from tests.examples import examples
from tests.gateway.model_folder import CLASSIFIER, write_encoder
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import toy_segments

TEXT = st.text(st.characters(), max_size=20) | st.sampled_from(["\ud800", "\x00", "", MODEL, "user", "text", "FP32", "INT64", "a" * 600])
NUMBERS = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**63, 10**400, float("nan"), float("inf"), 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def of(kind: type[BaseModel], likely: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
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
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "item_reference"]) | VALUES,
        "role": st.sampled_from(["user", "assistant", "system", "developer"]) | VALUES,
        "content": TEXT
        | st.lists(st.fixed_dictionaries({"type": st.sampled_from(["input_text", "output_text", "refusal"]) | VALUES, "text": VALUES}))
        | VALUES,
        "call_id": TEXT | VALUES,
        "name": TEXT | VALUES,
        "arguments": st.sampled_from(["{}", "{", ""]) | VALUES,
        "output": TEXT | VALUES,
    },
)
RESPONSE_TOOL = st.fixed_dictionaries({"type": st.just("function") | VALUES, "name": TEXT | VALUES}, optional={"parameters": VALUES})
FORMAT = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema"]) | VALUES}, optional={"schema": VALUES, "name": VALUES}
)
RESPONSES = of(ResponseRequest, {"model": MODEL, "input": "hi", "max_output_tokens": 3}) | st.fixed_dictionaries(
    {"model": st.just(MODEL), "input": st.lists(ITEM, max_size=4) | TEXT, "max_output_tokens": st.just(2)},
    optional={
        "instructions": TEXT,
        "text": st.fixed_dictionaries({"format": FORMAT | VALUES}) | VALUES,
        "tools": st.lists(RESPONSE_TOOL, max_size=2) | VALUES,
        "tool_choice": st.fixed_dictionaries({"type": st.just("function"), "name": VALUES}) | VALUES,
        "include": st.lists(TEXT, max_size=2) | VALUES,
        "previous_response_id": VALUES,
        "stream": st.booleans(),
        "metadata": VALUES,
    },
)
WORDS = TEXT | st.lists(TEXT, max_size=3) | st.lists(NUMBERS, max_size=4) | st.lists(st.lists(NUMBERS, max_size=3), max_size=3) | VALUES
CUT = {"truncate_prompt_tokens": st.integers(-2, 300) | NUMBERS, "dimensions": st.integers(-1, 5) | NUMBERS, "encoding_format": VALUES}
OF_TEXTS = st.one_of(
    of(EmbeddingRequest, {"model": MODEL, "input": "hi"}),
    of(ScoreRequest, {"model": MODEL, "text_1": "a", "text_2": "b"}),
    of(RerankRequest, {"model": MODEL, "query": "a", "documents": ["b"]}),
    st.fixed_dictionaries({"model": st.just(MODEL), "input": WORDS}, optional=CUT),
    st.fixed_dictionaries({"model": st.just(MODEL), "text_1": WORDS, "text_2": WORDS, "query": WORDS, "documents": WORDS}, optional=CUT),
)
BODIES = st.one_of(CHATS, COMPLETIONS, INFERS, NEARLY, NEARLY, TOKENS, VALUES)
OFTEN = examples(400)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Reader:
    tokenizer = ModelTokenizer(model_path)
    assert tokenizer.template is not None
    return Reader(MODEL, 4096, 36, tokenizer, ChatTemplate(tokenizer.template, tokenizer.special), tokenizer.longest_token())


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[TextReader]:
    """One that embeds, and one that classifies pairs."""
    made = []
    for number, folder in enumerate(
        (
            write_encoder(tmp_path_factory.mktemp("encoder")),
            write_encoder(tmp_path_factory.mktemp("classifier"), CLASSIFIER, pooling=None),
        )
    ):
        tokenizer = ModelTokenizer(folder)
        reader = Reader(MODEL, 256, 36, tokenizer, None, tokenizer.longest_token())
        made.append(TextReader(reader, Signature.read(folder).sentence, width=0 if number else 4))
    return made


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
@given(RESPONSES | NEARLY | VALUES)
def test_any_response_is_read_or_refused(reader: Reader, body: Any) -> None:
    answers(body, reader.response)


@OFTEN
@given(OF_TEXTS | VALUES)
def test_any_question_to_an_encoder_is_read_or_refused(encoders: list[TextReader], body: Any) -> None:
    for encoder in encoders:
        for read in (encoder.embedding, encoder.score, encoder.rerank):
            answers(body, read)


@OFTEN
@given(INFERS | VALUES, st.none() | st.text(max_size=8) | st.integers(0, 200).map(str))
def test_any_inference_is_read_or_refused(body: Any, header_length: str | None) -> None:
    answers(body, lambda raw: parse_infer(raw, header_length))


@OFTEN
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(reader: Reader, raw: bytes) -> None:
    every = (reader.chat, reader.completion, reader.response, reader.tokenize, reader.detokenize, lambda body: parse_infer(body, None))
    for read in every:
        error = refusal(raw, read)
        assert error is None or 400 <= error.status < 500


@pytest.mark.anyio
async def test_broken_requests_get_no_500_from_the_server_and_others_their_answer(
    tmp_path: Path, model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = some(BODIES | RESPONSES)
    paths = (
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/embeddings",
        "/v1/rerank",
        f"/v2/models/{MODEL}/infer",
        "/tokenize",
        "/detokenize",
        "/v1/models/\u00e9%00",
        f"/v2/models/{MODEL}/versions/%ff/infer",
    )
    async with serving(tmp_path, model_path, await toy_segments("a"), max_context_tokens=256) as world:
        for number, body in enumerate(bodies):
            for path in (paths[number % 3], paths[number % len(paths)]):
                await fares_well(world, path, body)
        assert await world.complete("hello", 4)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.anyio
async def test_broken_requests_to_an_encoder_get_no_500_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bodies = some(OF_TEXTS | BODIES)
    paths = ("/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/chat/completions", "/v1/responses", "/tokenize", f"/v2/models/{MODEL}/infer")
    async with serving(tmp_path, write_encoder(tmp_path / "model"), await toy_segments("a"), max_context_tokens=256) as world:
        for number, body in enumerate(bodies):
            for path in (paths[number % 3], paths[number % len(paths)]):
                await fares_well(world, path, body)
        status, _, _ = await world.post("/v1/embeddings", {"model": MODEL, "input": "hello"})
        assert status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def some(strategy: st.SearchStrategy[Any]) -> list[Any]:
    """Bodies of a strategy."""
    bodies: list[Any] = []

    @examples(150)
    @given(strategy)
    def collect(body: Any) -> None:
        bodies.append(body)

    collect()
    return bodies


async def fares_well(world: Serving, path: str, body: Any) -> None:
    """The gateway's answer is none of its own faults."""
    raw = json.dumps(body).encode()
    async with world.http.post(world.url + path, data=raw, headers={"X-Forwarded-For": "\u00e9" * 40}) as response:
        text = await response.text()
        assert response.status < 500, (path, body, text)
        assert "Traceback" not in text
        assert "/splitinference_gateway/" not in text
