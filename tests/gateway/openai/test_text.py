"""Text in pieces equals text in one: characters over several tokens, stop strings over several pieces."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from splitinference_gateway.tokens.text import Detokenizer, StopStrings
from splitinference_gateway.tokens.tokenizer import ModelFilesError, ModelTokenizer
from tests.gateway.model_folder import BEGIN, END


@pytest.fixture(scope="module")
def tokenizer(model_path: Path) -> ModelTokenizer:
    return ModelTokenizer(model_path)


def pieces_of(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.add(i) for i in ids), detokenizer.flush()]


@given(text=st.text(), prompt=st.text(max_size=5))
def test_bytes_of_any_text_come_out_as_that_text(tokenizer: ModelTokenizer, text: str, prompt: str) -> None:
    pieces = pieces_of(Detokenizer(tokenizer.decode, list(prompt.encode(errors="replace"))), list(text.encode(errors="replace")))
    assert "".join(pieces) == text.encode(errors="replace").decode()
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 255), max_size=40))
def test_bytes_that_are_no_text_come_out_as_the_decoder_has_them(tokenizer: ModelTokenizer, ids: list[int]) -> None:
    assert "".join(pieces_of(Detokenizer(tokenizer.decode), ids)).rstrip("\ufffd") == tokenizer.decode(ids).rstrip("\ufffd")


def test_special_tokens_are_no_text(model_path: Path) -> None:
    decode = ModelTokenizer(model_path).decode
    assert "".join(pieces_of(Detokenizer(decode), [BEGIN, *b"a", *[BEGIN] * 20, *b"b", END])) == "ab"


def test_a_word_after_the_prompt_keeps_its_leading_space() -> None:
    vocab = {"<unk>": 0, "\u2581Hello": 1, "\u2581world": 2, "!": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([2]) == "world"
    assert pieces_of(Detokenizer(tokenizer.decode, [1]), [2, 3]) == [" world", "!", ""]
    assert pieces_of(Detokenizer(tokenizer.decode), [1, 2]) == ["Hello", " world", ""]


def test_byte_tokens_wait_until_their_character_is_whole() -> None:
    euro = ["<0xE2>", "<0x82>", "<0xAC>"]
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, **{b: i for i, b in enumerate(euro, 1)}}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    assert pieces_of(Detokenizer(tokenizer.decode), [0, 1, 2, 3, 1, 2, 3, 0]) == ["a", "", "", "€", "", "", "€", "a", ""]
    assert "".join(pieces_of(Detokenizer(tokenizer.decode), [0, 1, 2])).startswith("a\ufffd")


def split(text: str, cuts: list[int]) -> list[str]:
    at = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[i:j] for i, j in itertools.pairwise(at)]


@given(
    text=st.text(alphabet="ab\n", max_size=30),
    stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=10),
)
def test_a_stop_string_is_found_wherever_pieces_end(text: str, stops: list[str], cuts: list[int]) -> None:
    # Text is generated piece by piece, so the earliest-finished stop string counts; shorter ones that end sooner come first.
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    matcher = StopStrings(stops)
    shown, stopped = "", False
    for character in text if not cuts else split(text, cuts):
        piece, stopped = matcher.add(character)
        shown += piece
        if stopped:
            break
    shown += "" if stopped else matcher.flush()
    assert stopped == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text.startswith(stop, len(shown)) for stop in stops)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    matcher = StopStrings(["\n\nUser:"])
    assert matcher.add("answer\n") == ("answer", False)
    assert matcher.add("x") == ("\nx", False)
    assert matcher.add("\n\nUs") == ("", False)
    assert matcher.add("er: next") == ("", True)


def test_tokens_have_their_bytes(model_path: Path) -> None:
    tokenizer = ModelTokenizer(model_path)
    assert [tokenizer.token_bytes(i) for i in "é".encode()] == [b"\xc3", b"\xa9"]
    assert tokenizer.token_bytes(ord("a")) == b"a"
    assert tokenizer.token_bytes(10_000_000) == b""


def test_the_end_tokens_are_those_of_generation_config_and_tokenizer(model_path: Path, tmp_path: Path) -> None:
    assert ModelTokenizer(model_path).end_tokens == {END}
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((model_path / file).read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert ModelTokenizer(tmp_path).end_tokens == {7, 8, END}
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 9}))
    assert ModelTokenizer(tmp_path).end_tokens == {9, END}


@pytest.mark.parametrize(
    ("generation", "model", "ends"),
    [
        (None, 9, {9}),  # a null says nothing
        ([None, 7], 9, {7}),
        ([7.0, 8], None, {7, 8}),
        (["</s>", True, {}, 2.5], 9, set()),
        ("</s>", 9, set()),
        ([], 9, set()),
        ([None], [5, 6], set()),
    ],
)
def test_what_is_no_end_token_ends_nothing_and_breaks_nothing(
    generation: object, model: object, ends: set[int], model_path: Path, tmp_path: Path
) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_text((model_path / file).read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation, "temperature": None, "top_k": "50"}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": model}))
    tokenizer = ModelTokenizer(tmp_path)
    assert tokenizer.end_tokens == {*ends, END}
    assert tokenizer.defaults == {}


def test_a_null_role_of_one_file_hides_no_token_of_the_other(model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((model_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": None, "chat_template": [None, "x", {"name": "default"}]}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|end|>"}}))
    tokenizer = ModelTokenizer(tmp_path)
    assert tokenizer.end_tokens == {END}
    assert tokenizer.template is None


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("chat_template.jinja", b"\xff\xfe"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("generation_config.json", b"[1]"),
        ("config.json", b"\xff"),
    ],
)
def test_a_damaged_file_is_named(file: str, content: bytes, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((model_path / "tokenizer.json").read_text())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ModelFilesError, match=file):
        ModelTokenizer(tmp_path)


@pytest.mark.parametrize("where", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json", "by name"])
def test_a_chat_template_may_be_in_any_of_its_files(where: str, model_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((model_path / "tokenizer.json").read_text())
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ 1 }}"}]
    file = "tokenizer_config.json" if where == "by name" else where
    told = named if where == "by name" else "{{ 1 }}"
    (tmp_path / file).write_text("{{ 1 }}" if file.endswith("jinja") else json.dumps({"chat_template": told}))
    assert ModelTokenizer(tmp_path).template == "{{ 1 }}"


def test_a_folder_without_tokenizer_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json is missing"):
        ModelTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelFilesError, match=r"tokenizer\.json"):
        ModelTokenizer(tmp_path)
