"""Tiny GGUF models with random weights, one for each tested architecture: enough to see any wrong block, window or table."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, HEADS, GROUPS, WIDTH, FEED, VOCABULARY, BLOCKS, EXPERTS = 64, 4, 2, 16, 96, 80, 8, 4
_KINDS: Mapping[type, tuple[int, str]] = {bool: (7, "<?"), int: (4, "<I"), float: (6, "<f")}


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def value_of(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        parts = [value_of(each) for each in value]
        return struct.pack("<I", 9) + parts[0][:4] + struct.pack("<Q", len(parts)) + b"".join(part[4:] for part in parts)
    kind, form = _KINDS[type(value)]
    return struct.pack("<I", kind) + struct.pack(form, value)


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, np.ndarray], version: int = 3) -> Path:
    """A file of float32 tensors."""
    table, data = b"", b""
    for name, values in tensors.items():
        shape = values.shape[::-1]
        table += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += np.ascontiguousarray(values, np.float32).tobytes()
        data += bytes(-len(data) % 32)
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + value_of(value) for key, value in metadata.items()) + table
    path.write_bytes(head + bytes(-len(head) % 32) + data)
    return path


Tensors = dict[str, np.ndarray]
TIED = ("gemma2", "gemma3", "qwen3", "smollm3")
EXPERT = ("qwen2moe", "qwen3moe", "gpt-oss")
GEMMA = ("gemma2", "gemma3")
QUERIES, KEYS = HEADS * WIDTH, GROUPS * WIDTH


class Weights:
    """Random ones, about as large as a trained model's."""

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def matrix(self, *shape: int) -> np.ndarray:
        return (self._generator.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def vector(self, size: int, around: float = 1.0) -> np.ndarray:
        return (around + 0.1 * self._generator.standard_normal(size)).astype(np.float32)


def random_model(architecture: str, seed: int = 0, blocks: int = BLOCKS, tied: bool | None = None) -> tuple[dict[str, Any], Tensors]:
    """Metadata and tensors as llama.cpp's converter names them."""
    weights = Weights(seed)
    tensors = {"token_embd.weight": weights.matrix(VOCABULARY, HIDDEN) * 4, "output_norm.weight": weights.vector(HIDDEN)}
    if not (architecture in TIED if tied is None else tied):
        tensors["output.weight"] = weights.matrix(VOCABULARY, HIDDEN)
    for i in range(blocks):
        made = _attention(architecture, weights) | _feed_forward(architecture, weights)
        tensors |= {f"blk.{i}.{name}": values for name, values in made.items()}
    if architecture == "llama":  # as Llama 3.1 and later
        tensors["rope_freqs.weight"] = np.linspace(1.0, 4.0, WIDTH // 2).astype(np.float32)
    return _metadata(architecture, blocks), tensors


def _metadata(a: str, blocks: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "general.architecture": a, f"{a}.block_count": blocks, f"{a}.context_length": 512, f"{a}.embedding_length": HIDDEN,
        f"{a}.feed_forward_length": FEED, f"{a}.attention.head_count": HEADS, f"{a}.attention.head_count_kv": GROUPS,
        f"{a}.attention.key_length": WIDTH, f"{a}.attention.value_length": WIDTH, f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": WIDTH, f"{a}.rope.freq_base": 1e6 if a == "gemma3" else 1e4, f"{a}.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }  # fmt: skip
    if a in EXPERT:
        made |= {f"{a}.expert_count": EXPERTS, f"{a}.expert_used_count": 2, f"{a}.expert_feed_forward_length": FEED}
    if a == "qwen2moe":
        made[f"{a}.expert_shared_feed_forward_length"] = FEED
    if a in (*GEMMA, "gpt-oss"):
        made[f"{a}.attention.sliding_window"] = 8
    if a == "gemma2":
        made |= {f"{a}.attn_logit_softcapping": 50.0, f"{a}.final_logit_softcapping": 30.0}
    return made


def _attention(a: str, w: Weights) -> Tensors:
    made = {"attn_norm.weight": w.vector(HIDDEN), "attn_output.weight": w.matrix(HIDDEN, QUERIES)}
    sizes = {"attn_q": QUERIES, "attn_k": KEYS, "attn_v": KEYS}
    if a == "phi3":
        return made | {"attn_qkv.weight": w.matrix(QUERIES + 2 * KEYS, HIDDEN)}
    made |= {f"{name}.weight": w.matrix(size, HIDDEN) for name, size in sizes.items()}
    if a in ("qwen2", "qwen2moe", "gpt-oss"):
        made |= {f"{name}.bias": w.vector(size, 0.0) for name, size in sizes.items()}
    if a in ("qwen3", "qwen3moe", "gemma3"):
        made |= {"attn_q_norm.weight": w.vector(WIDTH), "attn_k_norm.weight": w.vector(WIDTH)}
    if a == "gpt-oss":
        made |= {"attn_output.bias": w.vector(HIDDEN, 0.0), "attn_sinks.weight": w.vector(HEADS, 0.0)}
    return made


def _feed_forward(a: str, w: Weights) -> Tensors:
    norm = "post_attention_norm.weight" if a == "gpt-oss" else "ffn_norm.weight"
    made = {norm: w.vector(HIDDEN)}
    if a in GEMMA:
        made |= {"post_attention_norm.weight": w.vector(HIDDEN), "post_ffw_norm.weight": w.vector(HIDDEN)}
    if a == "phi3":
        return made | {"ffn_up.weight": w.matrix(2 * FEED, HIDDEN), "ffn_down.weight": w.matrix(HIDDEN, FEED)}
    if a not in EXPERT:
        gates = {f"ffn_{name}.weight": w.matrix(FEED, HIDDEN) for name in ("gate", "up")}
        return made | gates | {"ffn_down.weight": w.matrix(HIDDEN, FEED)}
    made |= {f"ffn_{name}_exps.weight": w.matrix(EXPERTS, FEED, HIDDEN) for name in ("gate", "up")}
    made |= {"ffn_gate_inp.weight": w.matrix(EXPERTS, HIDDEN), "ffn_down_exps.weight": w.matrix(EXPERTS, HIDDEN, FEED)}
    if a == "gpt-oss":
        made |= {f"ffn_{name}_exps.bias": w.matrix(EXPERTS, size) for name, size in (("gate", FEED), ("up", FEED), ("down", HIDDEN))}
        made["ffn_gate_inp.bias"] = w.vector(EXPERTS, 0.0)
    if a == "qwen2moe":
        made |= {f"ffn_{name}_shexp.weight": w.matrix(FEED, HIDDEN) for name in ("gate", "up")}
        made |= {"ffn_gate_inp_shexp.weight": w.vector(HIDDEN, 0.0), "ffn_down_shexp.weight": w.matrix(HIDDEN, FEED)}
    return made


def make(folder: Path, architecture: str, **more: Any) -> Path:
    """The architecture's model as a file; `mixtral` is the architecture llama with experts."""
    metadata, tensors = random_model("llama" if architecture == "mixtral" else architecture, **more)
    if architecture == "mixtral":
        metadata, tensors = _with_experts(metadata, tensors)
    return write_gguf(folder / f"{architecture}.gguf", metadata, tensors)


def _with_experts(metadata: dict[str, Any], tensors: Tensors) -> tuple[dict[str, Any], Tensors]:
    generator = np.random.default_rng(7)
    made = {}
    for name, values in tensors.items():
        stem = name.removesuffix(".weight")
        if stem.rpartition(".")[2] in ("ffn_gate", "ffn_up", "ffn_down"):
            noise = generator.standard_normal((EXPERTS, *values.shape)) * 0.5 * values.std()
            made[f"{stem}_exps.weight"] = (values[None] + noise).astype(np.float32)
        else:
            made[name] = values
    blocks = metadata["llama.block_count"]
    made |= {f"blk.{i}.ffn_gate_inp.weight": generator.standard_normal((EXPERTS, HIDDEN)).astype(np.float32) for i in range(blocks)}
    return metadata | {"llama.expert_count": EXPERTS, "llama.expert_used_count": 2}, made
