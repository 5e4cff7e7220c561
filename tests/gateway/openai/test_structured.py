"""Structured output: answers follow what the request says, also over several stages, replays, and several answers at once."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from splitinference_gateway.errors import ApiError
from splitinference_gateway.tokens.guides import Grammar, Guides
from splitinference_gateway.tokens.tokenizer import ModelTokenizer
from tests.gateway.model_folder import END
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import ToySegment, toy_segments

pytestmark = pytest.mark.anyio
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "say"}], "max_tokens": 400, "temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "level": {"enum": ["low", "high"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["ok", "level", "n"],
    "additionalProperties": False,
}


class Person(BaseModel):
    """A client's class."""

    grown: bool
    kind: str = Field(pattern="^[a-c]{2,4}$")


async def asked(folder: Path, model_path: Path, segments: list[ToySegment], **more: Any) -> tuple[int, Any]:
    async with serving(folder, model_path, segments) as served:
        status, answer, _ = await served.post("/v1/chat/completions", {**CHAT, **more})
        return status, answer


@pytest.mark.parametrize(
    "asks",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"structured_outputs": {"json": SCHEMA}},
        {"json_schema": SCHEMA},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "ignore_eos": True},
    ],
)
async def test_a_schema_is_followed(tmp_path: Path, model_path: Path, asks: dict[str, Any]) -> None:
    status, answer = await asked(tmp_path, model_path, await toy_segments("a", "b", "c"), **asks)
    assert status == 200, answer
    choice = answer["choices"][0]
    made = json.loads(choice["message"]["content"])
    assert set(made) == {"ok", "level", "n"}
    assert made["level"] in ("low", "high")
    assert 0 <= made["n"] <= 99
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("asks", "matches"),
    [
        ({"guided_regex": "[0-9]{3}-[ab]{2}"}, r"[0-9]{3}-[ab]{2}"),
        ({"structured_outputs": {"regex": "x{5}"}}, r"x{5}"),
        ({"guided_choice": ["yes", "no", "may be"]}, r"yes|no|may be"),
        ({"structured_outputs": {"choice": ['a"quote', "ü"]}}, r'a"quote|ü'),
        ({"guided_grammar": 'start: "a" mid "c"\nmid: "b" | "bb"'}, r"abb?c"),
        ({"grammar": 'root ::= "a" [0-9] [0-9]'}, r"a[0-9][0-9]"),
    ],
)
async def test_texts_choices_and_grammars(tmp_path: Path, model_path: Path, asks: dict[str, Any], matches: str) -> None:
    status, answer = await asked(tmp_path, model_path, await toy_segments("a", "b"), **asks)
    assert status == 200, answer
    assert re.fullmatch(matches, answer["choices"][0]["message"]["content"])


async def test_any_json_object_ends_by_the_models_word(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    for segment in segments:
        segment.end_after = 40
    status, answer = await asked(tmp_path, model_path, segments, response_format={"type": "json_object"}, max_tokens=3000)
    assert status == 200
    text = answer["choices"][0]["message"]["content"]
    if answer["choices"][0]["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)
    else:
        assert text.lstrip().startswith("{")


async def test_openais_client_reads_its_own_class(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as served, served.client as client:
        answer = await client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "who"}], response_format=Person, max_tokens=400, temperature=0
        )
        person = answer.choices[0].message.parsed
        assert isinstance(person, Person)
        stream = await client.completions.create(
            model=MODEL, prompt="x", max_tokens=50, stream=True, extra_body={"guided_regex": "[ab]{4}", "n": 2}
        )
        texts = {0: "", 1: ""}
        async for event in stream:
            texts[event.choices[0].index] += event.choices[0].text
        assert all(re.fullmatch("[ab]{4}", text) for text in texts.values())


async def test_a_replay_goes_on_where_the_answer_was(tmp_path: Path, model_path: Path) -> None:
    """Each broken step is run again; the guide counts each token once."""
    segments = await toy_segments("a", "b", "c")
    whole = await asked(tmp_path, model_path, await toy_segments("a", "b", "c"), guided_regex="[a-z]{30}")
    async with serving(tmp_path, model_path, segments) as served:
        segments[1].errors.extend(["internal", "kv_missing", "overloaded"])
        status, answer, _ = await served.post("/v1/chat/completions", {**CHAT, "guided_regex": "[a-z]{30}"})
        assert not segments[1].errors
    assert status == 200
    assert answer["choices"][0]["message"]["content"] == whole[1]["choices"][0]["message"]["content"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "missing_required_parameter"),
    ({"response_format": {"type": "xml"}}, "invalid_value"),
    ({"response_format": "json_object"}, "invalid_type"),
    ({"guided_json": "{"}, "invalid_value"),
    ({"guided_json": [1]}, "invalid_type"),
    ({"guided_json": {"type": "nothing"}}, "invalid_value"),
    ({"guided_json": {"$ref": "#/definitions/none"}}, "invalid_value"),
    ({"guided_json": {"not": {"type": "string"}}}, "invalid_value"),
    ({"guided_json": {"type": "string", "minLength": 5, "maxLength": 2}}, "invalid_value"),  # no text satisfies it
    ({"guided_json": {"allOf": [{"type": "string"}, {"type": "number"}]}}, "invalid_value"),
    ({"guided_json": {"enum": []}}, "invalid_value"),
    ({"guided_regex": "(("}, "invalid_value"),
    ({"guided_regex": 5}, "invalid_type"),
    ({"guided_choice": ["a", 5]}, "invalid_value"),
    ({"guided_choice": ["a", ""]}, "invalid_value"),
    ({"guided_choice": "a"}, "invalid_value"),
    ({"guided_grammar": "start: missing"}, "invalid_value"),
    ({"guided_grammar": 'start: s\ns: s s s | /[a-z]/ | s "x" s | ""'}, "grammar_too_complex"),  # ambiguous without bounds
    ({"guided_regex": "a" * 300_000}, "grammar_too_complex"),
    ({"structured_outputs": {"json": {}, "regex": "a", "choice": ["b"]}}, "invalid_value"),
    ({"structured_outputs": {"structural_tag": "x"}}, "unsupported_parameter"),
    ({"guided_regex": "a", "guided_choice": ["b"]}, "invalid_value"),
]


async def test_what_cannot_be_followed_is_refused(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as served:
        for asks, code in REFUSED:
            status, answer, _ = await served.post("/v1/chat/completions", {**CHAT, **asks})
            assert (status, answer["error"]["code"]) == (400, code), (asks, answer)
            assert answer["error"]["param"].split(".")[0] in asks


@pytest.mark.parametrize(
    "asks",
    [{"response_format": {"type": "text"}}, {"guided_json": None, "guided_regex": "", "guided_choice": []}, {"structured_outputs": {}}],
)
async def test_what_asks_for_nothing_changes_nothing(tmp_path: Path, model_path: Path, asks: dict[str, Any]) -> None:
    plain = await asked(tmp_path, model_path, await toy_segments("a"), max_tokens=8)
    same = await asked(tmp_path, model_path, await toy_segments("a"), max_tokens=8, **asks)
    assert same[0] == 200
    assert same[1]["choices"] == plain[1]["choices"]


async def test_openais_error_for_a_wrong_schema(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as served, served.client as client:
        with pytest.raises(openai.BadRequestError, match="response_format"):
            await client.chat.completions.create(
                **CHAT, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string", "minLength": -1}}}
            )


def test_a_guide_allows_what_may_come_and_nothing_else(model_path: Path) -> None:
    guide = Guides(ModelTokenizer(model_path)).begin(Grammar.of_regex("ab?", "r"))
    assert _allowed(guide.allowed()) == {ord("a")}
    other = guide.copy()
    guide.add(ord("a"))
    assert _allowed(guide.allowed()) == {ord("b"), END}
    assert _allowed(other.allowed()) == {ord("a")}
    guide.add(ord("b"))
    assert guide.complete
    with pytest.raises(ApiError, match="does not allow"):
        other.add(ord("z"))


def test_an_ambiguous_grammar_ends_before_it_takes_long(model_path: Path) -> None:
    guide = Guides(ModelTokenizer(model_path)).begin(Grammar.of_grammar('start: s\ns: s s | "a" | ""', "g"))

    def go_on() -> None:
        for _ in range(2000):
            guide.allowed()
            guide.add(ord("a"))

    with pytest.raises(ApiError) as refused:
        go_on()
    assert refused.value.code == "grammar_too_complex"


def _allowed(bits: str) -> set[int]:
    data = base64.b64decode(bits)
    return {token for token in range(8 * len(data)) if data[token // 8] >> (token % 8) & 1}
