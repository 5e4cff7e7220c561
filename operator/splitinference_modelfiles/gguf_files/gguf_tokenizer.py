"""From a GGUF file's metadata to the files that the gateway reads: tokenizer.json and its companions. Pure; its text also runs in pods.

Two kinds are built: byte-level BPE (`gpt2`) with pre-tokenizers whose patterns are known, and SentencePiece's BPE (`llama`), whose merges
follow from the scores of its tokens. The patterns are those of the models' own tokenizer.json, to which llama.cpp's names stand in
`llama-vocab.cpp`. What cannot be built is refused with the reason, when the model is planned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"
_LLAMA3 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTIONS}|{_START}\p{{L}}+|\p{{N}}|{_REST}"
_GPT4O = rf"{_START}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_START}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}|{_REST_SLASH}"
_TEKKEN = rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_SLASH}"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_GPT2: Sequence[Mapping[str, Any]] = ({**_BYTES, "use_regex": True},)
_DIGITS: Sequence[Mapping[str, Any]] = ({"type": "Digits", "individual_digits": True}, *_GPT2)


def _by(pattern: str) -> Sequence[Mapping[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return (split, {**_BYTES, "use_regex": False})


PRE_TOKENIZERS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    **dict.fromkeys(("gpt-2", "olmo", "jais", "exaone4"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), _by(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan"), _by(_QWEN2)),
    **dict.fromkeys(("gpt-4o", "llama4"), _by(_GPT4O)),
    "tekken": _by(_TEKKEN),
}
"""`tokenizer.ggml.pre` → the pre-tokenizers of a tokenizer.json."""
TOKENIZER_MODELS = ("gpt2", "llama")
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})
"""Here a word that is a token is that token, whatever the merges say."""
_BEGIN_BY_DEFAULT = frozenset({"llama3", "llama-v3", "llama-bpe", "falcon3", "tekken"})
_NFC = frozenset({"qwen2", "deepseek-r1-qwen"})
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_ENDS_OF_TURNS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|return|>", "<|call|>"})
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "seperator": "sep_token", "padding": "pad_token"}
"""The keys of llama.cpp, its spelling included."""
LONGEST_TOKEN = 1024
MOST_MERGES = 3_000_000
LONGEST_TEMPLATE = 2**20


def tokenizer_files(metadata: Mapping[str, Any], *, check_only: bool = False) -> dict[str, Any]:
    """Name → content as JSON: tokenizer.json, tokenizer_config.json, generation_config.json. ModelRefusedError where one cannot be.

    `check_only`: leave out SentencePiece's merges, which take seconds for a large vocabulary."""
    vocabulary = _Vocabulary(metadata)
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        made = _byte_level(vocabulary)
    elif kind == "llama":
        made = _sentence_piece(vocabulary, check_only)
    else:
        raise ModelRefusedError(f"tokenizer.ggml.model is {str(kind)[:40]!r}; built are {', '.join(TOKENIZER_MODELS)}")
    return {
        "tokenizer.json": {"version": "1.0", "truncation": None, "padding": None, "added_tokens": vocabulary.added(), **made},
        "tokenizer_config.json": vocabulary.config(),
        "generation_config.json": {"eos_token_id": vocabulary.ends()},
    }


class _Vocabulary:
    """Tokens, their kinds and scores, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
            raise ModelRefusedError("tokenizer.ggml.tokens is missing, or is no list of texts")
        self.tokens: list[str] = tokens
        self.kinds = self._numbers("token_type") or [_NORMAL] * len(tokens)
        self.scores = self._numbers("scores")
        self.ids: dict[str, int] = {}
        for number, token in enumerate(tokens):
            if len(token) > LONGEST_TOKEN:
                raise ModelRefusedError(f"token {number} has {len(token)} characters, more than {LONGEST_TOKEN}")
            if any("\ud800" <= character <= "\udfff" for character in token):
                raise ModelRefusedError(f"token {number} is not UTF-8 text")
            if token in self.ids:
                raise ModelRefusedError(f"tokens {self.ids[token]} and {number} are both {token[:40]!r}")
            self.ids[token] = number

    def _numbers(self, key: str) -> list[Any] | None:
        found = self.metadata.get(f"tokenizer.ggml.{key}")
        if found is None:
            return None
        if not isinstance(found, list) or len(found) != len(self.tokens) or not all(isinstance(one, int | float) for one in found):
            raise ModelRefusedError(f"tokenizer.ggml.{key} should have one number for each of {len(self.tokens)} tokens")
        return found

    def token(self, key: str) -> int | None:
        """The ID under `tokenizer.ggml.<key>_token_id`."""
        found = self.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if found is None:
            return None
        if type(found) is not int or not 0 <= found < len(self.tokens):
            raise ModelRefusedError(f"tokenizer.ggml.{key}_token_id is {str(found)[:20]}, there are {len(self.tokens)} tokens")
        return found

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        found = self.metadata.get(f"tokenizer.ggml.{key}")
        return found if isinstance(found, bool) else default

    def added(self) -> list[dict[str, Any]]:
        """Tokens that are found in a text as they are; those that steer are special."""
        rigid = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        return [
            {"id": number, "content": self.tokens[number], **rigid, "special": kind != _USER}
            for number, kind in enumerate(self.kinds)
            if kind in (_UNKNOWN, _CONTROL, _USER) and self.tokens[number]
        ]

    def around(self, *, begin: bool) -> dict[str, Any] | None:
        """The post-processor: tokens that the model wants around a plain text. `begin`: whether one goes before, unless the file says."""
        first = self.token("bos") if self.flag("add_bos_token", begin) else None
        last = self.token("eos") if self.flag("add_eos_token", False) else None
        if first is None and last is None:
            return None
        before, after = ([] if number is None else [self._special(number)] for number in (first, last))
        numbers = dict.fromkeys(number for number in (first, last) if number is not None)
        return {
            "type": "TemplateProcessing",
            "single": [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after],
            "pair": [*before, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}, *after],
            "special_tokens": {
                self.tokens[number]: {"id": self.tokens[number], "ids": [number], "tokens": [self.tokens[number]]} for number in numbers
            },
        }

    def _special(self, number: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": self.tokens[number], "type_id": 0}}

    def config(self) -> dict[str, Any]:
        """tokenizer_config.json: tokens by role, and the chat template."""
        found: dict[str, Any] = {role: self.tokens[number] for key, role in _ROLES.items() if (number := self.token(key)) is not None}
        template = self.metadata.get("tokenizer.chat_template")
        if isinstance(template, str):
            if len(template) > LONGEST_TEMPLATE:
                raise ModelRefusedError(f"tokenizer.chat_template has {len(template)} characters, more than {LONGEST_TEMPLATE}")
            if any("\ud800" <= character <= "\udfff" for character in template):
                raise ModelRefusedError("tokenizer.chat_template is not UTF-8 text")
            found["chat_template"] = template
        return found

    def ends(self) -> list[int]:
        """Tokens that end an answer: those that the file names, and those whose text is known to end a turn."""
        named = {number for key in ("eos", "eot", "eom") if (number := self.token(key)) is not None}
        known = {self.ids[token] for token in _ENDS_OF_TURNS if token in self.ids and self.kinds[self.ids[token]] == _CONTROL}
        if not named | known:
            raise ModelRefusedError("tokenizer.ggml.eos_token_id is missing: no token would end an answer")
        return sorted(named | known)


def _byte_level(vocabulary: _Vocabulary) -> dict[str, Any]:
    pre = vocabulary.metadata.get("tokenizer.ggml.pre")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        found = "missing" if pre is None else repr(str(pre)[:40])
        raise ModelRefusedError(f"tokenizer.ggml.pre is {found}; built are {', '.join(PRE_TOKENIZERS)}")
    merges = vocabulary.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(merge, str) for merge in merges):
        raise ModelRefusedError("tokenizer.ggml.merges is missing, or is no list of texts")
    pairs = []
    for merge in merges:
        at = merge.find(" ", 1)
        left, right = merge[:at], merge[at + 1 :]
        if at < 0 or any(part not in vocabulary.ids for part in (left, right, left + right)):
            raise ModelRefusedError(f"the merge {merge[:60]!r} is not of two tokens that make a third")
        pairs.append([left, right])
    model = _model(vocabulary, pairs) | {"ignore_merges": pre in _WHOLE_WORDS}
    return {
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [dict(one) for one in PRE_TOKENIZERS[pre]]},
        "post_processor": vocabulary.around(begin=pre in _BEGIN_BY_DEFAULT),
        "decoder": {**_BYTES, "use_regex": True},
        "model": model,
    }


def _sentence_piece(vocabulary: _Vocabulary, check_only: bool) -> dict[str, Any]:
    unknown = vocabulary.token("unknown")
    if unknown is None:
        unknown = next((number for number, kind in enumerate(vocabulary.kinds) if kind == _UNKNOWN), None)
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]
    prefix = vocabulary.flag("add_space_prefix", True)
    if prefix:
        steps.insert(0, {"type": "Prepend", "prepend": "\u2581"})
    bytes_there = sum(kind == _BYTE for kind in vocabulary.kinds) == 256
    back: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}]
    back += [{"type": "Fuse"}, *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else [])]
    if vocabulary.scores is None:
        raise ModelRefusedError("tokenizer.ggml.scores is missing")
    merges = [] if check_only else _merges_by_score(vocabulary, vocabulary.scores)
    model = _model(vocabulary, merges) | {"fuse_unk": True, "byte_fallback": bytes_there}
    return {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": vocabulary.around(begin=True),
        "decoder": {"type": "Sequence", "decoders": back},
        "model": model | ({} if unknown is None else {"unk_token": vocabulary.tokens[unknown]}),
    }


def _merges_by_score(vocabulary: _Vocabulary, scores: Sequence[float]) -> list[list[str]]:
    """Every way in which two tokens make a third, the third with the highest score first: what SentencePiece's BPE does."""
    normal = {token: scores[number] for token, number in vocabulary.ids.items() if vocabulary.kinds[number] == _NORMAL}
    found: list[tuple[float, int, int, str, str]] = []
    for token, score in normal.items():
        for end in range(1, len(token)):
            left, right = token[:end], token[end:]
            if left in normal and right in normal:
                found.append((-score, vocabulary.ids[left], vocabulary.ids[right], left, right))
        if len(found) > MOST_MERGES:
            raise ModelRefusedError(f"the tokens make more than {MOST_MERGES} merges")
    return [[left, right] for *_, left, right in sorted(found)]


def _model(vocabulary: _Vocabulary, merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary.ids, "merges": merges,
    }  # fmt: skip
