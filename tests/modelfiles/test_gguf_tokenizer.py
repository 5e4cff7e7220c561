"""Tokenizers from GGUF metadata: what the gateway builds of them, and what is refused."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from splitinference_gateway.tokens.tokenizer import ModelTokenizer
from splitinference_modelfiles.gguf_files.gguf_tokenizer import PRE_TOKENIZERS, tokenizer_files
from splitinference_modelfiles.stored.headers import ModelRefusedError
from tests.modelfiles.gguf_files import Typed
from tests.modelfiles.gguf_files import tokenizer as stored

TEXTS = [
    "Hello, world! It's 1234567 o'clock; WE'LL see.\n\n  indented\tcode(x);\r\n",
    "Zażółć gęślą jaźń, 你好，世界！ こんにちは 안녕 مرحبا שלום 🤷🏽‍♀️ e\u0301 ﬁ \u00a0\u3000",
    "<|im_start|>user\nhi<|im_end|>\n",
    "   leading and trailing   ",
    "٣٤٥ ½ Ⅻ 3.14159 1,000,000",
]


def metadata() -> dict[str, Any]:
    """As the reader of GGUF gives it."""
    return {key: value.value if isinstance(value, Typed) else value for key, value in stored().items()}


def built(about: dict[str, Any]) -> Any:
    return Tokenizer.from_str(json.dumps(tokenizer_files(about)["tokenizer.json"]))


def varied(seed: int, count: int = 60) -> list[str]:
    chosen = random.Random(seed)
    ranges = [(32, 126), (32, 126), (160, 0x2FF), (0x370, 0x5FF), (0x3040, 0x30FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F600), (9, 13)]
    return ["".join(chr(chosen.randint(*chosen.choice(ranges))) for _ in range(80)) for _ in range(count)]


def byte_level(pre: Sequence[Any], texts: list[str]) -> Any:
    """A tokenizer of the `tokenizers` library, trained on these texts."""
    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(pre)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=900, special_tokens=["<|im_start|>", "<|im_end|>"], initial_alphabet=alphabet)
    )
    return made


def as_metadata(made: Any, pre: str) -> dict[str, Any]:
    """As llama.cpp's converter writes it."""
    content = json.loads(made.to_str())
    tokens = sorted(content["model"]["vocab"], key=content["model"]["vocab"].get)
    merges = [" ".join(merge) if isinstance(merge, list) else merge for merge in content["model"]["merges"]]
    kinds = [3 if token.startswith("<|") else 1 for token in tokens]
    about = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": kinds, "merges": merges, "eos_token_id": 1, "bos_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in about.items()}


def test_a_tokenizer_of_smollms_kind_gives_the_originals_ids():
    original = byte_level(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)], TEXTS + varied(1)
    )
    ours = built(as_metadata(original, "smollm"))
    for text in TEXTS + varied(2):
        assert ours.encode(text).ids == original.encode(text).ids, text
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_a_tokenizer_of_gpt2s_kind_gives_the_originals_ids():
    original = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)], TEXTS + varied(1))
    ours = built(as_metadata(original, "gpt-2"))
    assert [ours.encode(text).ids for text in TEXTS + varied(2)] == [original.encode(text).ids for text in TEXTS + varied(2)]


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("llama-bpe", "It'S 12345 years\n", ["It", "'S", " ", "123", "45", " years", "\n"]),
        ("qwen2", "It'S 123 years\n", ["It", "'S", " ", "1", "2", "3", " years", "\n"]),
        ("gpt-4o", "HTMLPage isn't 12345//\n", ["HTMLPage", " isn't", " ", "123", "45", "//\n"]),
        ("tekken", "aB 12/\n", ["a", "B", " ", "1", "2", "/\n"]),
        ("smollm", "It's 12 years", ["It", "'s", " ", "1", "2", " years"]),
        ("gpt-2", "It's 12 years", ["It", "'s", " 12", " years"]),
    ],
)
def test_words_are_cut_as_the_pre_tokenizer_says(pre, text, words):
    ours = built(metadata() | {"tokenizer.ggml.pre": pre})
    cut = [piece.replace("\u0120", " ").replace("\u010a", "\n") for piece, _ in ours.pre_tokenizer.pre_tokenize_str(text)]
    assert cut == words


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_every_pre_tokenizer_loads_and_loses_nothing(pre):
    original = byte_level([pre_tokenizers.ByteLevel(add_prefix_space=False)], TEXTS)
    ours = built(as_metadata(original, pre) | {"tokenizer.ggml.add_bos_token": False})
    for text in TEXTS[:1] + TEXTS[2:]:
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def sentence_piece(*, prefix: bool) -> tuple[dict[str, Any], Any]:
    """Metadata of a SentencePiece model, and the tokenizer that it was made from."""
    made: Any = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("\u2581")] if prefix else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<unk>", "<s>", "</s>", *pieces], limit_alphabet=120)
    made.train_from_iterator(TEXTS[:1] * 3 + TEXTS[3:] + varied(3), trainer)
    content = json.loads(made.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    scores = [0.0] * 259 + [-float(number) for number in range(len(tokens) - 259)]
    about = {"model": "llama", "pre": "default", "tokens": tokens, "token_type": kinds, "scores": scores, "bos_token_id": 1,
             "eos_token_id": 2, "unknown_token_id": 0, "add_space_prefix": prefix}  # fmt: skip
    trained = Tokenizer.from_str(json.dumps({**json.loads(made.to_str()), "added_tokens": []}))
    return {f"tokenizer.ggml.{key}": value for key, value in about.items()}, trained


@pytest.mark.parametrize("prefix", [True, False])
def test_merges_of_sentence_piece_follow_from_the_scores(prefix):
    about, original = sentence_piece(prefix=prefix)
    ours = built(about)
    for text in [TEXTS[0], *TEXTS[3:], *varied(4)]:
        assert ours.encode(text, add_special_tokens=False).ids == original.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text).ids) == text


def test_sentence_piece_begins_with_its_token_unless_the_file_says_otherwise():
    about, _ = sentence_piece(prefix=True)
    assert built(about).encode("a").ids[0] == 1
    assert built(about | {"tokenizer.ggml.add_bos_token": False}).encode("a").ids[0] != 1
    assert built(about | {"tokenizer.ggml.add_eos_token": True}).encode("a").ids[-1] == 2


def written(folder: Path, about: dict[str, Any]) -> ModelTokenizer:
    for name, content in tokenizer_files(about).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return ModelTokenizer(folder)


def test_the_gateway_reads_the_files(tmp_path):
    found = written(tmp_path, metadata())
    assert found.end_tokens == {2}
    assert found.special == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert found.template == "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert set(found.specials) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}
    assert found.size == 96
    assert found.token_bytes(95) == b"ab"


def test_tokens_that_end_a_turn_end_the_answer(tmp_path):
    assert written(tmp_path, metadata() | {"tokenizer.ggml.eos_token_id": 0}).end_tokens == {0, 2}


def test_a_token_of_the_user_is_found_and_shown(tmp_path):
    about = metadata() | {"tokenizer.ggml.token_type": [4, 3, 3] + [1] * 93}
    found = written(tmp_path, about)
    assert found.encode("<|endoftext|>", special_tokens=False) == [0]
    assert found.decode([0]) == "<|endoftext|>"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "t5"}, "tokenizer.ggml.model is 't5'; built are gpt2, llama"),
        ({"model": None}, "tokenizer.ggml.model is 'None'"),
        ({"pre": "kimi-k2"}, "tokenizer.ggml.pre is 'kimi-k2'; built are gpt-2"),
        ({"pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokens": [1, 2]}, "is no list of texts"),
        ({"tokens": ["a"] * 96}, "tokens 0 and 1 are both 'a'"),
        ({"tokens": ["\udcff", *map(str, range(95))]}, "token 0 is not UTF-8"),
        ({"tokens": ["x" * 2000, *map(str, range(95))]}, "token 0 has 2000 characters"),
        ({"token_type": [1]}, "one number for each of 96 tokens"),
        ({"merges": None}, "tokenizer.ggml.merges is missing"),
        ({"merges": ["ab"]}, "the merge 'ab' is not of two tokens"),
        ({"merges": ["a c"]}, "the merge 'a c' is not of two tokens that make a third"),
        ({"merges": ["", "a b"]}, "the merge '' is not"),
        ({"eos_token_id": 96}, "tokenizer.ggml.eos_token_id is 96, there are 96 tokens"),
        ({"eos_token_id": -1}, "eos_token_id is -1"),
        ({"eos_token_id": "2"}, "eos_token_id is 2"),
        ({"model": "llama"}, "tokenizer.ggml.scores is missing"),
    ],
)
def test_what_cannot_be_built_is_refused(change, reason):
    about = {key: value for key, value in (metadata() | {f"tokenizer.ggml.{k}": v for k, v in change.items()}).items() if value is not None}
    with pytest.raises(ModelRefusedError) as refused:
        tokenizer_files(about)
    assert reason in str(refused.value)


def test_a_model_without_an_end_is_refused():
    about = metadata() | {"tokenizer.ggml.token_type": [1] * 96}
    del about["tokenizer.ggml.eos_token_id"]
    with pytest.raises(ModelRefusedError, match="no token would end an answer"):
        tokenizer_files(about)


@pytest.mark.parametrize("template", ["x" * (2**20 + 1), "\udcff"])
def test_a_template_that_no_gateway_could_read_is_refused(template):
    with pytest.raises(ModelRefusedError, match="chat_template"):
        tokenizer_files(metadata() | {"tokenizer.chat_template": template})
