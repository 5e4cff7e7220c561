"""Families of models: which are served, where transformers keeps their layers, and what their configuration means where it is silent.

The defaults are those of transformers 5, which a segment builds its modules from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from splitinference_modelfiles.rules.experts import FUSED_EXPERTS, ExpertForm


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
    bias: bool = False  # where bias_key is not there
    all_bias: bool = False  # bias_key is about all linear layers of a block
    mlp_bias_key: str | None = None
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    head_norms: str = ""  # of queries and keys: "head", a norm for each head; "all", one for all heads
    fused: bool = False  # queries, keys and values are one matrix, gate and up another
    plain_mlp: tuple[str, str] | None = None  # names of the two matrices of a feed-forward layer without a gate
    sinks: bool = False  # one number for each head, which attention sees as a token more
    experts: ExpertForm | None = None
    activation: str = "hidden_act"
    whole_heads: bool = False  # transformers wants hidden_size to be a multiple of the heads, whatever head_dim says
    windows: str = ""  # "list": layer_types says which blocks have one; "sliding": as "list", and where it is silent some have one
    longrope: bool = False
    partial_rope: bool = False  # a part of each head may be rotated
    ropes_by_kind: bool = False  # full and sliding attention each have their own RoPE
    multipliers: bool = False  # factors of the embedding and of the logits, as Granite has them
    caps: bool = False  # logits may have a soft cap
    own_rope: Mapping[str, object] | None = None  # where config.json does not say

    @property
    def base(self) -> str:
        """The base model's prefix, which some checkpoints leave out."""
        return self.embedding.partition(".")[0]


def _llama_like(**more: object) -> Family:
    return Family("model.embed_tokens", "model.layers", "model.norm", rotary="model.rotary_emb", **more)  # type: ignore[arg-type]


_KV_AND_WIDTH = frozenset({"num_key_value_heads", "head_dim"})
_FOUR_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")

DECODERS: Mapping[str, Family] = {
    "llama": _llama_like(mlp_bias_key="mlp_bias", whole_heads=True),
    "mistral": _llama_like(most_positions=131072, kv_heads=8, bias_key=None, not_null=frozenset({"num_key_value_heads"})),
    "qwen2": _llama_like(
        most_positions=32768, kv_heads=32, qkv_bias=True, bias_key=None, windows="list", not_null=frozenset({"head_dim"})
    ),
    "qwen3": _llama_like(
        most_positions=32768, kv_heads=32, head_dim=128, head_norms="head", windows="list", not_null=frozenset({"head_dim"})
    ),
    "gemma": _llama_like(tied=True, most_positions=8192, kv_heads=16, head_dim=256, not_null=_KV_AND_WIDTH),
    "gemma2": _llama_like(
        tied=True, most_positions=8192, kv_heads=4, head_dim=256, norms=_FOUR_NORMS, activation="hidden_activation", windows="sliding",
        whole_heads=True, caps=True, not_null=_KV_AND_WIDTH | {"hidden_activation", "query_pre_attn_scalar"},
    ),
    "gemma3_text": _llama_like(
        tied=True, most_positions=131072, kv_heads=4, head_dim=256, norms=_FOUR_NORMS, head_norms="head", activation="hidden_activation",
        windows="sliding", whole_heads=True, caps=True, ropes_by_kind=True,
        not_null=_KV_AND_WIDTH | {"hidden_activation", "query_pre_attn_scalar"},
    ),
    "phi3": _llama_like(
        most_positions=4096, bias_key=None, fused=True, longrope=True, partial_rope=True,
        not_null=frozenset({"head_dim", "original_max_position_embeddings"}),
    ),
    "olmo2": _llama_like(
        norms=("post_attention_layernorm", "post_feedforward_layernorm"), head_norms="all", not_null=frozenset({"head_dim"})
    ),
    "smollm3": _llama_like(
        tied=True, most_positions=32768, kv_heads=4, mlp_bias_key="mlp_bias", windows="list", not_null=frozenset({"head_dim"})
    ),
    "granite": _llama_like(mlp_bias_key="mlp_bias", multipliers=True, not_null=frozenset({"head_dim"})),
    "starcoder2": _llama_like(
        tied=True, most_positions=4096, kv_heads=2, bias_key="use_bias", bias=True, all_bias=True, norm_bias=True,
        plain_mlp=("c_fc", "c_proj"), not_null=frozenset({"num_key_value_heads"}),
    ),
    "mixtral": _llama_like(
        most_positions=131072, kv_heads=8, bias_key=None,
        experts=ExpertForm("block_sparse_moe", "gate", ("w1", "w3"), "w2", ("num_local_experts",), 8, 2, "intermediate_size"),
    ),
    "qwen3_moe": _llama_like(
        most_positions=32768, kv_heads=4, head_norms="head",
        not_null=frozenset({"num_key_value_heads", "head_dim", "decoder_sparse_step"}),
        experts=ExpertForm("mlp", "gate", ("gate_proj", "up_proj"), "down_proj", ("num_experts", "num_local_experts"), 128, 8,
                           "moe_intermediate_size", 768, some_blocks=True),
    ),
    "gpt_oss": _llama_like(
        most_positions=131072, kv_heads=8, head_dim=64, bias=True, sinks=True, windows="sliding",
        not_null=frozenset({"original_max_position_embeddings"}),
        own_rope={"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096},
        experts=ExpertForm("mlp", "router", FUSED_EXPERTS, "down_proj", ("num_local_experts", "num_experts"), 128, 4, "intermediate_size",
                           2880),
    ),
    "gpt_neox": Family(
        "gpt_neox.embed_in", "gpt_neox.layers", "gpt_neox.final_layer_norm", rotary="gpt_neox.rotary_emb", bias=True, norm_bias=True,
        partial_rope=True, whole_heads=True,
    ),
    "gpt2": Family(
        "transformer.wte", "transformer.h", "transformer.ln_f", positions="transformer.wpe", tied=True, most_positions=1024, bias_key=None,
        activation="activation_function",
    ),
}  # fmt: skip
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

_EXPERTS = "mixtures of experts of this kind are not served"
_STATE = "layers that keep a state other than keys and values are not served"
_MEDIA = "models that read images, sound or video are not served"
_FUSED = "its fused weights and its rotary positions differ from those of the served families"
_OTHER = "its blocks differ from those of the served families"
_CODER = "encoder-decoders are not served"
NOT_SERVED: Mapping[str, str] = {
    "gemma3": _MEDIA,
    "ministral": "its alternating windows are not served",
    "olmo": _OTHER, "olmo3": _OTHER,
    "gptj": _OTHER, "gpt_neo": _OTHER, "falcon": "its attention takes no other KV cache than its own",
    "phi": _OTHER, "stablelm": _OTHER, "cohere": _OTHER,
    "cohere2": _OTHER, "opt": _OTHER, "bloom": _OTHER, "mpt": _OTHER, "glm": _FUSED, "glm4": _FUSED, "chatglm": _FUSED, "exaone4": _OTHER,
    "nemotron": _OTHER, "gpt_bigcode": _OTHER, "internlm2": "its code is not part of transformers",
    "baichuan": "its code is not part of transformers", "qwen2_moe": _EXPERTS,
    "deepseek_v2": _EXPERTS, "deepseek_v3": _EXPERTS, "granitemoe": _EXPERTS, "olmoe": _EXPERTS, "phimoe": _EXPERTS,
    "llama4_text": _EXPERTS, "glm4_moe": _EXPERTS, "dbrx": _EXPERTS, "llama4": _MEDIA, "mllama": _MEDIA, "llava": _MEDIA,
    "qwen2_vl": _MEDIA, "qwen2_5_vl": _MEDIA, "qwen3_vl": _MEDIA, "mistral3": _MEDIA, "whisper": _MEDIA, "clip": _MEDIA, "vit": _MEDIA,
    "mamba": _STATE, "mamba2": _STATE, "jamba": _STATE, "qwen3_next": _STATE, "falcon_h1": _STATE, "rwkv": _STATE, "lfm2": _STATE,
    "recurrent_gemma": _STATE, "bamba": _STATE, "granitemoehybrid": _STATE, "t5": _CODER, "bart": _CODER, "mt5": _CODER, "marian": _CODER,
    "modernbert": "its blocks with windows and two kinds of RoPE are not served",
    "distilbert": _OTHER, "albert": _OTHER, "deberta-v2": _OTHER, "electra": _OTHER, "mpnet": _OTHER,
    "nomic_bert": _OTHER,
}  # fmt: skip
