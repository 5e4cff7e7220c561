"""A small model's folder as the gateway reads it: a byte-level tokenizer, a chat template, the end tokens."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BYTES = 256
END = 256
BEGIN = 257
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ bos_token }}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def write_model(folder: Path) -> Path:
    """Token ids 0..255 are the bytes themselves, 256 ends, 257 begins."""
    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in enumerate(_symbols())}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|begin|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|end|>", "bos_token": {"content": "<|begin|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [END]}))
    return folder


def _symbols() -> list[str]:
    """The printable character that byte-level BPE writes for each byte, asked of the library itself."""
    writer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    by_byte: dict[int, str] = {}
    for point in (*range(0x800), *range(0x800, 0xD800, 0x40), *range(0xE000, 0x110000, 0x1000)):
        symbols = "".join(piece for piece, _ in writer.pre_tokenize_str(chr(point)))
        by_byte.update(zip(chr(point).encode(), symbols, strict=True))
    never_in_utf8 = [byte for byte in range(BYTES) if byte not in by_byte]
    by_byte.update(zip(never_in_utf8, sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(by_byte.values())), strict=True))
    return [by_byte[byte] for byte in range(BYTES)]
