"""The model's tokenizer, its end-of-sequence tokens and the source of its chat template, read from its folder once at the start."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_DEFAULTS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 100), "top_p": (1e-6, 1), "top_k": (-1, 2**31 - 1), "min_p": (0, 1), "repetition_penalty": (0.01, 100),
}  # fmt: skip
_log = logging.getLogger(__name__)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ModelFilesError(ValueError):
    """The model's folder lacks something or holds something unreadable; the message names the file."""


class ModelTokenizer:
    """Text to ids and back. `template` is the chat template's source, None for a model without one; `special` are the tokens by role.

    Encoding takes as long as the text says: only a process that may be ended does it (see `prompt_worker`).
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ModelFilesError(f"{file} is missing")
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:
            raise ModelFilesError(f"{file}: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = _read(folder / "tokenizer_config.json")
        self.special = _special_tokens(_read(folder / "special_tokens_map.json")) | _special_tokens(config)
        self.template = _template_source(folder, config) or None
        self.end_tokens = self._end_tokens(folder, self.special)
        self.size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        self.specials = self._special_ids()
        self.defaults = sampling_defaults(_read(folder / "generation_config.json"))
        self._byte_level = _byte_level_alphabet() if '"ByteLevel"' in json.dumps(_decoder(file)) else {}

    def longest_token(self) -> int:
        """Characters of the longest token: no token stands for more of a text."""
        return max((len(piece) for piece in self._tokenizer.get_vocab(with_added_tokens=True)), default=1)

    def encode(self, text: str, *, special_tokens: bool) -> list[int]:
        """Ids of a text; `special_tokens` adds what the model wants around a plain text (a chat template has it already)."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def encode_cut(self, text: str, pair: str | None, most: int | None) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or of two, with special tokens. What is longer than `most` loses its end."""
        if most is not None:
            self._tokenizer.enable_truncation(most)
        try:
            made = self._tokenizer.encode(text, pair)
            return made.ids, made.type_ids
        finally:
            self._tokenizer.no_truncation()

    def special_count(self, *, pair: bool) -> int:
        """How many special tokens stand around a text, or around two."""
        count: int = self._tokenizer.num_special_tokens_to_add(pair)
        return count

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """Text of ids, without special tokens unless they are asked for."""
        text: str = self._tokenizer.decode(ids, skip_special_tokens=not special_tokens)
        return text

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for, also where they are no whole character."""
        piece: str | None = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if match := _BYTE_TOKEN.fullmatch(piece):
            return bytes.fromhex(match[1])
        if self._byte_level and all(character in self._byte_level for character in piece):
            return bytes(self._byte_level[character] for character in piece)
        return piece.replace("\u2581", " ").encode()

    def _special_ids(self) -> dict[str, int]:
        """Tokens that no decoded text shows, by what stands for them."""
        added = self._tokenizer.get_added_tokens_decoder()
        return {token.content: int(number) for number, token in added.items() if token.special}

    def _end_tokens(self, folder: Path, special: Mapping[str, str]) -> frozenset[int]:
        ends: set[int] = set()
        for name in ("generation_config.json", "config.json"):  # a null says nothing
            if (given := _read(folder / name).get("eos_token_id")) is not None:
                ends |= _ids(given, name)
                break
        if "eos_token" in special:
            own = self._tokenizer.token_to_id(special["eos_token"])
            ends |= set() if own is None else {own}
        return frozenset(ends)


def _ids(given: object, name: str) -> set[int]:
    """A token id, or a list of them. What is none is left out, as it can end nothing."""
    found = set()
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, int | float) and not isinstance(each, bool) and each == int(each):
            found.add(int(each))
        elif each is not None:
            _log.warning("%s: eos_token_id of %.80r is no token id and has no effect", name, each)
    return found


def sampling_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    """What `generation_config.json` says of sampling, as vLLM reads it: whatever `do_sample` says. Values out of range are left out."""
    made: dict[str, float] = {}
    for name, (least, most) in _DEFAULTS.items():
        value = generation.get(name)
        if value is None:
            continue
        if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most:
            made[name] = int(value) if name == "top_k" else float(value)
        else:
            _log.warning("generation_config.json: %s of %.80r is not from %g to %g and has no effect", name, value, least, most)
    return made


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelFilesError(f"{file}: {error}") from error
    if not isinstance(content, dict):
        raise ModelFilesError(f"{file}: not a JSON object")
    return content


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Tokens by role; each is given as text or as an object with `content`."""
    found = {}
    for role in _SPECIAL:
        value = config.get(role)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            found[role] = value
    return found


def _template_source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Not compiled here: that runs what the file says."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelFilesError(f"{file}: {error}") from error
    source = config.get("chat_template") or _read(folder / "chat_template.json").get("chat_template")
    if isinstance(source, list):  # several by name: the default one
        source = next((entry.get("template") for entry in source if isinstance(entry, dict) and entry.get("name") == "default"), None)
    return source if isinstance(source, str) else None


def _decoder(file: Path) -> object:
    return json.loads(file.read_text(encoding="utf-8")).get("decoder")


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE writes each byte as a printable character: itself where it is one, else from 256 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet
