"""GGUF files of any content, also damaged ones, written from ggml's description of the format and without the reader under test."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_0": (2, 32, 18), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210),
         "BF16": (30, 1, 2), "MXFP4": (39, 32, 17)}  # fmt: skip
Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name → type and shape, rows first."""


@dataclass(frozen=True)
class Typed:
    """A metadata value with its type's number, where the Python type does not say it."""

    kind: int
    form: str
    value: Any


def u32(value: int) -> Typed:
    """An unsigned number of 32 bits."""
    return Typed(4, "I", value)


def u16(value: int) -> Typed:
    """An unsigned number of 16 bits."""
    return Typed(2, "H", value)


def text(value: str | bytes) -> bytes:
    """A string with its length."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value_of(value: Any) -> bytes:
    """Type and value. Numbers are int32 and float32 unless they are typed."""
    if isinstance(value, Typed):
        return struct.pack("<I" + value.form, value.kind, value.value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str | bytes):
        return struct.pack("<I", 8) + text(value)
    items = list(value)
    inner = 8 if items and isinstance(items[0], str | bytes) else 6 if items and isinstance(items[0], float) else 5
    body = b"".join(text(item) if inner == 8 else struct.pack("<f" if inner == 6 else "<i", item) for item in items)
    return struct.pack("<IIQ", 9, inner, len(items)) + body


@dataclass
class Gguf:
    """One file to write. `counts`: what its head says instead of the true numbers of tensors and keys."""

    metadata: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    version: int = 3
    magic: bytes = b"GGUF"
    counts: tuple[int, int] | None = None
    alignment: int = 32
    offsets: Mapping[str, int] = field(default_factory=dict)
    twice: Sequence[str] = ()
    again: Sequence[str] = ()

    def header(self) -> bytes:
        """All before the data, padded."""
        keys = [*self.metadata.items(), *((name, self.metadata[name]) for name in self.again)]
        tensors = [*self.tensors.items(), *((name, self.tensors[name]) for name in self.twice)]
        given = self.counts or (len(tensors), len(keys))
        data = self.magic + struct.pack("<IQQ", self.version, *given)
        data += b"".join(text(key) + value_of(value) for key, value in keys)
        offset = 0
        for name, (kind, shape) in tensors:
            number, block, size = TYPES[kind]
            data += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
            data += struct.pack("<IQ", number, self.offsets.get(name, offset))
            offset += -(-prod(shape) // block * size // self.alignment) * self.alignment
        return data + bytes(-len(data) % self.alignment)

    def content(self, filled: bool = False) -> bytes:
        """Header and data: zeros, or bytes that tell each tensor from the others."""
        data = b""
        for index, (kind, shape) in enumerate(self.tensors.values()):
            _, block, size = TYPES[kind]
            length = prod(shape) // block * size
            data += (bytes([index % 251 + 1]) * length if filled else bytes(length)) + bytes(-length % self.alignment)
        return self.header() + data

    def write(self, path: Path, filled: bool = False) -> Path:
        """To a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content(filled))
        return path


def reader(data: bytes, asked: list[tuple[int, int]] | None = None) -> Any:
    """What reads ranges of these bytes, and notes which."""

    def read(offset: int, count: int) -> bytes:
        if asked is not None:
            asked.append((offset, count))
        return data[offset : offset + count]

    return read


def llama(blocks: int = 2, kind: str = "Q8_0", arch: str = "llama", *, tied: bool = True, experts: int = 0, **more: Any) -> Gguf:
    """A small model of Llama's kind: hidden 64, 4 heads of 16, 2 KV heads, inner 128, 96 tokens."""
    hidden, inner, vocabulary = 64, 128, 96
    metadata: dict[str, Any] = {
        "general.architecture": arch, "general.name": "tiny", f"{arch}.block_count": u32(blocks), f"{arch}.context_length": u32(512),
        f"{arch}.embedding_length": u32(hidden), f"{arch}.feed_forward_length": u32(inner), f"{arch}.attention.head_count": u32(4),
        f"{arch}.attention.head_count_kv": u32(2), f"{arch}.attention.layer_norm_rms_epsilon": 1e-5, f"{arch}.rope.freq_base": 10000.0,
    }  # fmt: skip
    if experts:
        metadata |= {f"{arch}.expert_count": u32(experts), f"{arch}.expert_used_count": u32(2)}
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {"token_embd.weight": (kind, (vocabulary, hidden))}
    for number in range(blocks):
        block = f"blk.{number}"
        tensors |= {f"{block}.attn_norm.weight": ("F32", (hidden,)), f"{block}.ffn_norm.weight": ("F32", (hidden,))}
        for name, rows, columns in (("q", 64, hidden), ("k", 32, hidden), ("v", 32, hidden), ("output", hidden, 64)):
            tensors[f"{block}.attn_{name}.weight"] = (kind, (rows, columns))
        if experts:
            tensors[f"{block}.ffn_gate_inp.weight"] = ("F32", (experts, hidden))
        for name, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            tensors[f"{block}.ffn_{name}{'_exps' if experts else ''}.weight"] = (kind, ((experts,) if experts else ()) + (rows, columns))
    tensors["output_norm.weight"] = ("F32", (hidden,))
    if not tied:
        tensors["output.weight"] = (kind, (vocabulary, hidden))
    return Gguf(metadata | tokenizer() | more, tensors)


def tokenizer(vocabulary: int = 96) -> dict[str, Any]:
    """A byte-level BPE tokenizer of a few tokens."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "\u0120", *(chr(code) for code in range(0x21, 0x7F) if chr(code) != "~")]
    tokens += [f"unused{n}" for n in range(vocabulary)]
    tokens[vocabulary - 1 :] = ["ab"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3), "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": u32(1), "tokenizer.ggml.eos_token_id": u32(2), "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    }  # fmt: skip


def split(whole: Gguf, count: int) -> list[Gguf]:
    """The parts of a model, as llama.cpp's gguf-split writes them: the first one has the metadata."""
    names = list(whole.tensors)
    size = -(-len(names) // count)
    parts = []
    for index in range(count):
        own = {name: whole.tensors[name] for name in names[index * size : (index + 1) * size]}
        numbers = {"split.no": u16(index), "split.count": u16(count), "split.tensors.count": len(names)}
        parts.append(Gguf((dict(whole.metadata) if index == 0 else {}) | numbers, own))
    return parts
