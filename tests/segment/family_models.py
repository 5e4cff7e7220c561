"""A small random model of each family beyond those of random_models.py, with what is its own: windows, caps, sinks, experts, factors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

_SMALL: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_NEOX = {key: value for key, value in _SMALL.items() if key != "num_key_value_heads"}
_YARN = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "original_max_position_embeddings": 8, "truncate": False}
_LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + i / 10 for i in range(6)], "long_factor": [2.0 + i for i in range(6)],
}  # fmt: skip
FAMILIES: Mapping[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(
        **_SMALL, head_dim=24, sliding_window=12, query_pre_attn_scalar=24, attn_logit_softcapping=5.0, final_logit_softcapping=3.0
    ),
    "gemma2 without caps": Gemma2Config(
        **_SMALL, head_dim=24, sliding_window=12, query_pre_attn_scalar=24, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "gemma3": Gemma3TextConfig(
        **_SMALL, head_dim=24, sliding_window=12, sliding_window_pattern=3, rope_scaling={"rope_type": "linear", "factor": 8.0}
    ),
    "phi3 with a window": Phi3Config(**_SMALL, sliding_window=16),
    "phi3 with longrope": Phi3Config(
        **{**_SMALL, "max_position_embeddings": 1024}, original_max_position_embeddings=128, rope_parameters=_LONGROPE
    ),
    "olmo2": Olmo2Config(**_SMALL),
    "smollm3": SmolLM3Config(**_SMALL, no_rope_layer_interval=2, tie_word_embeddings=True),
    "smollm3 with windows": SmolLM3Config(**_SMALL, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=12),
    "granite": GraniteConfig(
        **_SMALL, embedding_multiplier=3.0, logits_scaling=4.0, residual_multiplier=0.4, attention_multiplier=0.3, tie_word_embeddings=True
    ),
    "starcoder2": Starcoder2Config(**_SMALL, sliding_window=16),
    "starcoder2 without biases": Starcoder2Config(**_SMALL, use_bias=False, tie_word_embeddings=False),
    "gpt_neox": GPTNeoXConfig(**_NEOX),
    "gpt_neox in sequence": GPTNeoXConfig(**_NEOX, use_parallel_residual=False, rotary_pct=1.0, attention_bias=False),
    "mixtral": MixtralConfig(**_SMALL, num_local_experts=4, num_experts_per_tok=2),
    "qwen3_moe": Qwen3MoeConfig(
        **_SMALL, head_dim=24, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=40, mlp_only_layers=[1], norm_topk_prob=True
    ),
    "gpt_oss": GptOssConfig(
        **_SMALL, head_dim=24, sliding_window=12, num_local_experts=4, num_experts_per_tok=2, rope_parameters=_YARN
    ),
}  # fmt: skip


def write_random(config: PreTrainedConfig, folder: Path) -> Path:
    """A random model of this configuration, the same every time. Norms and biases, too: ones and zeros would hide what is not loaded."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    return folder
