"""Where each family of transformers models keeps its layers: all that differs between families, in one table."""

from dataclasses import dataclass

# RoPE kinds whose frequencies change with the longest sequence seen: a token's numbers would depend on its neighbours.
UNSTEADY_ROPE = frozenset({"dynamic", "longrope"})


@dataclass(frozen=True, slots=True)
class Family:
    """Module paths inside the `…ForCausalLM` class. A path that a family does not have is None."""

    embedding: str
    blocks: str
    norm: str
    head: str = "lm_head"
    rotary: str | None = None
    positions: str | None = None  # learned positions, added to the embedding


_LLAMA = Family("model.embed_tokens", "model.layers", "model.norm", rotary="model.rotary_emb")

FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gpt2": Family("transformer.wte", "transformer.h", "transformer.ln_f", positions="transformer.wpe"),
}


class UnsupportedModelError(Exception):
    """The model's family, or one of its settings, is not served; the message says which and what is."""


def family_of(model_type: str) -> Family:
    """The family of a config's `model_type`. UnsupportedModelError when there is none."""
    if model_type not in FAMILIES:
        raise UnsupportedModelError(f"model_type {model_type!r} is not served; these are: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]
