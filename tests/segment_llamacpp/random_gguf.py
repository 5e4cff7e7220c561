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


def random_model(
    architecture: str, seed: int = 0, blocks: int = BLOCKS, tied: bool | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors as llama.cpp's converter names them."""
    generator = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) * shape[-1] ** -0.5).astype(np.float32)

    def vector(size: int, around: float = 1.0) -> np.ndarray:
        return (around + 0.1 * generator.standard_normal(size)).astype(np.float32)

    a = architecture
    metadata: dict[str, Any] = {
        "general.architecture": a, f"{a}.block_count": blocks, f"{a}.context_length": 512, f"{a}.embedding_length": HIDDEN,
        f"{a}.feed_forward_length": FEED, f"{a}.attention.head_count": HEADS, f"{a}.attention.head_count_kv": GROUPS,
        f"{a}.attention.key_length": WIDTH, f"{a}.attention.value_length": WIDTH, f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{a}.rope.dimension_count": WIDTH, f"{a}.rope.freq_base": 10000.0, f"{a}.vocab_size": VOCABULARY,
        "tokenizer.ggml.model": "no_vocab",
    }  # fmt: skip
    tensors = {"token_embd.weight": matrix(VOCABULARY, HIDDEN) * 4, "output_norm.weight": vector(HIDDEN)}
    if not (a in ("gemma2", "gemma3", "qwen3") if tied is None else tied):
        tensors["output.weight"] = matrix(VOCABULARY, HIDDEN)
    queries, keys, experts = HEADS * WIDTH, GROUPS * WIDTH, a in ("qwen2moe", "qwen3moe", "gpt-oss", "mixtral")
    for i in range(blocks):
        b = f"blk.{i}."
        tensors |= {b + "attn_norm.weight": vector(HIDDEN), b + "attn_output.weight": matrix(HIDDEN, queries)}
        if a == "phi3":
            tensors[b + "attn_qkv.weight"] = matrix(queries + 2 * keys, HIDDEN)
        else:
            sizes = {"attn_q": queries, "attn_k": keys, "attn_v": keys}
            tensors |= {f"{b}{name}.weight": matrix(size, HIDDEN) for name, size in sizes.items()}
            if a in ("qwen2", "qwen2moe", "gpt-oss"):
                tensors |= {f"{b}{name}.bias": vector(size, 0.0) for name, size in sizes.items()}
        if a in ("qwen3", "qwen3moe", "gemma3"):
            tensors |= {b + "attn_q_norm.weight": vector(WIDTH), b + "attn_k_norm.weight": vector(WIDTH)}
        if a in ("gemma2", "gemma3"):
            tensors |= {b + "post_attention_norm.weight": vector(HIDDEN), b + "post_ffw_norm.weight": vector(HIDDEN)}
        if a == "gpt-oss":
            tensors |= {
                b + "attn_output.bias": vector(HIDDEN, 0.0), b + "attn_sinks.weight": vector(HEADS, 0.0),
                b + "post_attention_norm.weight": vector(HIDDEN), b + "ffn_gate_inp.bias": vector(EXPERTS, 0.0),
                b + "ffn_gate_exps.bias": matrix(EXPERTS, FEED), b + "ffn_up_exps.bias": matrix(EXPERTS, FEED),
                b + "ffn_down_exps.bias": matrix(EXPERTS, HIDDEN),
            }  # fmt: skip
        else:
            tensors[b + "ffn_norm.weight"] = vector(HIDDEN)
        if experts or a == "llama-moe":
            tensors |= {
                b + "ffn_gate_inp.weight": matrix(EXPERTS, HIDDEN), b + "ffn_gate_exps.weight": matrix(EXPERTS, FEED, HIDDEN),
                b + "ffn_up_exps.weight": matrix(EXPERTS, FEED, HIDDEN), b + "ffn_down_exps.weight": matrix(EXPERTS, HIDDEN, FEED),
            }  # fmt: skip
        elif a == "phi3":
            tensors |= {b + "ffn_up.weight": matrix(2 * FEED, HIDDEN), b + "ffn_down.weight": matrix(HIDDEN, FEED)}
        else:
            tensors |= {
                b + "ffn_gate.weight": matrix(FEED, HIDDEN), b + "ffn_up.weight": matrix(FEED, HIDDEN),
                b + "ffn_down.weight": matrix(HIDDEN, FEED),
            }  # fmt: skip
        if a == "qwen2moe":
            tensors |= {
                b + "ffn_gate_inp_shexp.weight": vector(HIDDEN, 0.0), b + "ffn_gate_shexp.weight": matrix(FEED, HIDDEN),
                b + "ffn_up_shexp.weight": matrix(FEED, HIDDEN), b + "ffn_down_shexp.weight": matrix(HIDDEN, FEED),
            }  # fmt: skip
    if experts or a == "llama-moe":
        metadata |= {f"{a}.expert_count": EXPERTS, f"{a}.expert_used_count": 2, f"{a}.expert_feed_forward_length": FEED}
    if a == "qwen2moe":
        metadata[f"{a}.expert_shared_feed_forward_length"] = FEED
    if a in ("gemma2", "gemma3", "gpt-oss"):
        metadata[f"{a}.attention.sliding_window"] = 8
    if a == "gemma2":
        metadata |= {f"{a}.attn_logit_softcapping": 50.0, f"{a}.final_logit_softcapping": 30.0}
    if a == "llama":  # as Llama 3.1 and later
        tensors["rope_freqs.weight"] = np.linspace(1.0, 4.0, WIDTH // 2).astype(np.float32)
    return metadata, tensors


def make(folder: Path, architecture: str, **more: Any) -> Path:
    """The architecture's model as a file; `mixtral` is the architecture llama with experts."""
    metadata, tensors = random_model("llama" if architecture == "mixtral" else architecture, **more)
    if architecture == "mixtral":
        metadata, tensors = _with_experts(metadata, tensors)
    return write_gguf(folder / f"{architecture}.gguf", metadata, tensors)


def _with_experts(metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
