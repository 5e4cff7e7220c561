"""Small random models of every family, the same every time, and what transformers itself generates with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

_LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=False),
    "llama-tied": LlamaConfig(**_LLAMA_LIKE, tie_word_embeddings=True),
    "mistral-window": MistralConfig(**_LLAMA_LIKE, sliding_window=16),
    "qwen2": Qwen2Config(**_LLAMA_LIKE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_LLAMA_LIKE, head_dim=24),
    "gemma": GemmaConfig(**_LLAMA_LIKE, head_dim=16),
    "gpt2": GPT2Config(
        vocab_size=211, n_positions=256, n_embd=64, n_layer=5, n_head=4, initializer_range=0.25, bos_token_id=None, eos_token_id=None
    ),
}


def write_model(config: PreTrainedConfig, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of this configuration, the same every time."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    return folder


def unsplit_greedy(folder: Path, prompt: Sequence[int], count: int, dtype: torch.dtype = torch.float32) -> list[int]:
    """What transformers' own `generate` gives."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    ids = torch.tensor([list(prompt)])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count, do_sample=False)
    return [int(token) for token in out[0, len(prompt) :]]
