"""A small model's folder as the gateway reads it: a byte-level tokenizer, a chat template, the end tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

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


BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 4, "vocab_size": 258}
MEAN = {"word_embedding_dimension": 4, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
CLASSIFIER = {**BERT, "architectures": ["BertForSequenceClassification"], "num_labels": 1}


def write_encoder(
    folder: Path,
    config: Mapping[str, Any] = BERT,
    *,
    pooling: Mapping[str, Any] | None = MEAN,
    modules: Sequence[str] = ("Transformer", "Pooling", "Normalize"),
    files: Mapping[str, Any] | None = None,
) -> Path:
    """Tokenizer and files of an encoder. `pooling`: of sentence-transformers, None for an encoder without. `files`: more of them."""
    folder.mkdir(exist_ok=True)
    write_model(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A <|end|>", pair="<|begin|> $A <|end|> $B:1 <|end|>:1", special_tokens=[("<|begin|>", BEGIN), ("<|end|>", END)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    made: dict[str, Any] = {"config.json": config}
    if pooling is not None:
        made["modules.json"] = [
            {"idx": number, "path": f"{number}_{kind}" if number else "", "type": f"sentence_transformers.models.{kind}"}
            for number, kind in enumerate(modules)
        ]
        made["1_Pooling/config.json"] = pooling
    for name, content in (made | dict(files or {})).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
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
