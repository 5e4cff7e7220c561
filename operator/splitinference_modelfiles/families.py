"""Families of models: which are served, where transformers keeps their layers, and what their configuration means where it is silent.

The defaults are those of transformers 5, which a segment builds its modules from.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """A decoder. Paths are those inside the `…ForCausalLM` class; a path that a family does not have is None."""

    embedding: str
    blocks: str
    norm: str
    head: str = "lm_head"
    rotary: str | None = None
    positions: str | None = None  # learned positions, added to the embedding
    tied: bool = False  # where config.json does not say
    most_positions: int = 2048  # likewise
    kv_heads: int | None = None  # likewise; None: as many as heads
    head_dim: int | None = None  # likewise; None: hidden size over heads
    not_null: frozenset[str] = frozenset()  # keys beside the usual ones that may not be null
    qkv_bias: bool = False
    bias_key: str | None = "attention_bias"
    mlp_bias_key: str | None = None
    head_norms: bool = False

    @property
    def base(self) -> str:
        """The base model's prefix, which some checkpoints leave out."""
        return self.embedding.partition(".")[0]


def _llama_like(**more: object) -> Family:
    return Family("model.embed_tokens", "model.layers", "model.norm", rotary="model.rotary_emb", **more)  # type: ignore[arg-type]


DECODERS: Mapping[str, Family] = {
    "llama": _llama_like(mlp_bias_key="mlp_bias"),
    "mistral": _llama_like(most_positions=131072, kv_heads=8, bias_key=None, not_null=frozenset({"num_key_value_heads"})),
    "qwen2": _llama_like(most_positions=32768, kv_heads=32, qkv_bias=True, bias_key=None),
    "qwen3": _llama_like(most_positions=32768, kv_heads=32, head_dim=128, head_norms=True, not_null=frozenset({"head_dim"})),
    "gemma": _llama_like(
        tied=True, most_positions=8192, kv_heads=16, head_dim=256, not_null=frozenset({"num_key_value_heads", "head_dim"})
    ),
    "gpt2": Family(
        "transformer.wte", "transformer.h", "transformer.ln_f", positions="transformer.wpe", tied=True, most_positions=1024, bias_key=None
    ),
}
CHAIN = "sequential"


@dataclass(frozen=True, slots=True)
class EncoderFamily:
    """An encoder of BERT's kind; `classes` is how its architectures' names begin."""

    base: str
    classes: str
    most_positions: int = 512
    padding: int | None = None  # the padding's ID: positions begin after it. None: they begin at 0


ENCODERS: Mapping[str, EncoderFamily] = {
    "bert": EncoderFamily("bert", "Bert"),
    "roberta": EncoderFamily("roberta", "Roberta", padding=1),
    "xlm-roberta": EncoderFamily("roberta", "XLMRoberta", padding=1),
}
ENCODER_HEADS = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
SERVED = (*sorted(DECODERS), *sorted(ENCODERS), CHAIN)

ACTIVATIONS = frozenset(
    {
        "gelu", "gelu_10", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "hardswish",
        "laplace", "leaky_relu", "mish", "quick_gelu", "relu", "relu2", "relu6", "sigmoid", "silu", "swish", "tanh",
    }
)  # fmt: skip
"""Those of transformers that have no weights of their own."""

_EXPERTS = "mixtures of experts are not served"
_STATE = "layers that keep a state other than keys and values are not served"
_MEDIA = "models that read images, sound or video are not served"
_FUSED = "its fused weights and its rotary positions differ from those of the served families"
_OTHER = "its blocks differ from those of the served families"
_CODER = "encoder-decoders are not served"
NOT_SERVED: Mapping[str, str] = {
    "phi3": _FUSED,
    "gemma2": "its soft caps and alternating windows are not served",
    "gemma3_text": "its two kinds of RoPE and alternating windows are not served",
    "gemma3": _MEDIA,
    "smollm3": "its layers without positions are not served",
    "ministral": "its alternating windows are not served",
    "olmo": _OTHER, "olmo2": _OTHER, "olmo3": _OTHER, "granite": "its multipliers are not served", "starcoder2": _OTHER,
    "gpt_neox": _FUSED, "gptj": _OTHER, "gpt_neo": _OTHER, "falcon": _FUSED, "phi": _OTHER, "stablelm": _OTHER, "cohere": _OTHER,
    "cohere2": _OTHER, "opt": _OTHER, "bloom": _OTHER, "mpt": _OTHER, "glm": _FUSED, "glm4": _FUSED, "chatglm": _FUSED, "exaone4": _OTHER,
    "nemotron": _OTHER, "gpt_bigcode": _OTHER, "internlm2": "its code is not part of transformers",
    "baichuan": "its code is not part of transformers", "mixtral": _EXPERTS, "qwen2_moe": _EXPERTS, "qwen3_moe": _EXPERTS,
    "gpt_oss": _EXPERTS, "deepseek_v2": _EXPERTS, "deepseek_v3": _EXPERTS, "granitemoe": _EXPERTS, "olmoe": _EXPERTS, "phimoe": _EXPERTS,
    "llama4_text": _EXPERTS, "glm4_moe": _EXPERTS, "dbrx": _EXPERTS, "llama4": _MEDIA, "mllama": _MEDIA, "llava": _MEDIA,
    "qwen2_vl": _MEDIA, "qwen2_5_vl": _MEDIA, "qwen3_vl": _MEDIA, "mistral3": _MEDIA, "whisper": _MEDIA, "clip": _MEDIA, "vit": _MEDIA,
    "mamba": _STATE, "mamba2": _STATE, "jamba": _STATE, "qwen3_next": _STATE, "falcon_h1": _STATE, "rwkv": _STATE, "lfm2": _STATE,
    "recurrent_gemma": _STATE, "bamba": _STATE, "granitemoehybrid": _STATE, "t5": _CODER, "bart": _CODER, "mt5": _CODER, "marian": _CODER,
    "modernbert": _OTHER, "distilbert": _OTHER, "albert": _OTHER, "deberta-v2": _OTHER, "electra": _OTHER, "mpnet": _OTHER,
    "nomic_bert": _OTHER,
}  # fmt: skip
