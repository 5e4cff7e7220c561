"""Configurations of public models of the families that differ from Llama in their blocks: keys and values as published, as facts."""
# ruff: noqa: E501

from collections.abc import Callable, Mapping
from typing import Any

from tests.modelfiles import family_tables
from tests.modelfiles.case import Case
from tests.modelfiles.tables import Shapes

_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
Sizes = tuple[int, int, int, int, int, int]


def _made(kind: str, architecture: str, table: Callable[[Mapping[str, Any]], Shapes]) -> Callable[..., Case]:
    """A row of this family. Sizes: hidden, inner, blocks, heads, KV heads, vocabulary."""

    def row(name: str, sizes: Sizes, more: Mapping[str, Any] | None = None, *, numbers: int | None = None, positions: int | None = None,
            refused: str = "") -> Case:  # fmt: skip
        config = {"model_type": kind, "architectures": [architecture], **dict(zip(_KEYS, sizes, strict=True)), **(more or {})}
        return Case(name, config, refused, numbers, positions, table(config))

    return row


_gemma2 = _made("gemma2", "Gemma2ForCausalLM", lambda config: family_tables.gemma(config, head_norms=False))
_gemma3 = _made("gemma3_text", "Gemma3ForCausalLM", lambda config: family_tables.gemma(config, head_norms=True))
_phi3 = _made("phi3", "Phi3ForCausalLM", family_tables.phi3)
_olmo2 = _made("olmo2", "Olmo2ForCausalLM", family_tables.olmo2)
_smollm3 = _made("smollm3", "SmolLM3ForCausalLM", family_tables.granite)
_granite = _made("granite", "GraniteForCausalLM", family_tables.granite)
_starcoder2 = _made("starcoder2", "Starcoder2ForCausalLM", family_tables.starcoder2)
_neox = _made("gpt_neox", "GPTNeoXForCausalLM", family_tables.neox)
_mixtral = _made("mixtral", "MixtralForCausalLM", family_tables.mixtral)
_qwen3_moe = _made("qwen3_moe", "Qwen3MoeForCausalLM", family_tables.qwen3_moe)
_gpt_oss = _made("gpt_oss", "GptOssForCausalLM", family_tables.gpt_oss)

_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "sliding_window": 4096, "max_position_embeddings": 8192,
         "hidden_activation": "gelu_pytorch_tanh", "hidden_act": "gelu_pytorch_tanh", "rope_theta": 10000.0, "attention_bias": False,
         "cache_implementation": "hybrid", "rms_norm_eps": 1e-6}  # fmt: skip
_GEMMA3 = {"sliding_window": 512, "max_position_embeddings": 32768, "hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1000000,
           "rope_local_base_freq": 10000, "rope_scaling": None, "attn_logit_softcapping": None, "final_logit_softcapping": None,
           "query_pre_attn_scalar": 256, "attention_bias": False, "rms_norm_eps": 1e-6, "head_dim": 256}  # fmt: skip
_KINDS3 = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(18)]


def _longrope(pairs: int, kind: str = "longrope") -> dict[str, Any]:
    return {"type": kind, "short_factor": [1.0 + i / 50 for i in range(pairs)], "long_factor": [1.0 + i for i in range(pairs)]}


_PHI3 = {
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
}
_PHI_LONG = {**_PHI3, "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "sliding_window": 262144}
_GRANITE = {"tie_word_embeddings": True, "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "hidden_act": "silu", "attention_bias": False,
            "mlp_bias": False, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_scaling": None}  # fmt: skip
_STAR = {"use_bias": True, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "sliding_window": 4096, "max_position_embeddings": 16384,
         "rope_theta": 999999.4420358813, "norm_type": "layer_norm", "mlp_type": "default"}  # fmt: skip
_NEOX = {"hidden_act": "gelu", "rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True, "layer_norm_eps": 1e-5,
         "max_position_embeddings": 2048, "tie_word_embeddings": False}  # fmt: skip
_OLMO2 = {"hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 500000, "rope_scaling": None,
          "tie_word_embeddings": False, "attention_bias": False}  # fmt: skip
_QWEN_MOE = {"head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
             "max_position_embeddings": 40960, "attention_bias": False, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 48,
             "tie_word_embeddings": False, "rope_scaling": None, "output_router_logits": False}  # fmt: skip
_OSS = {"head_dim": 64, "num_experts_per_tok": 4, "sliding_window": 128, "tie_word_embeddings": False, "attention_bias": True,
        "max_position_embeddings": 131072, "rope_theta": 150000, "swiglu_limit": 7.0, "initial_context_length": 4096,
        "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                         "original_max_position_embeddings": 4096}}  # fmt: skip
_MIXTRAL = {"num_experts_per_tok": 2, "num_local_experts": 8, "tie_word_embeddings": False, "sliding_window": None, "rope_theta": 1e6,
            "router_aux_loss_coef": 0.02, "output_router_logits": False}  # fmt: skip

SERVED = (
    _mixtral("Mixtral-8x7B-v0.1", (4096, 14336, 32, 32, 8, 32000), {**_MIXTRAL, "max_position_embeddings": 32768}, numbers=46_702_792_704,
             positions=32768),
    _mixtral("Mixtral-8x22B-v0.1", (6144, 16384, 56, 48, 8, 32000), {**_MIXTRAL, "max_position_embeddings": 65536}, numbers=140_620_634_112),
    _qwen3_moe("Qwen3-30B-A3B", (2048, 6144, 48, 32, 4, 151936), {**_QWEN_MOE, "moe_intermediate_size": 768}, numbers=30_532_122_624,
               positions=40960),
    _gpt_oss("gpt-oss-20b in 16 bits", (2880, 2880, 24, 64, 8, 201088), {**_OSS, "num_local_experts": 32}, numbers=20_914_757_184, positions=131072),
    _gpt_oss("gpt-oss-120b in 16 bits", (2880, 2880, 36, 64, 8, 201088), {**_OSS, "num_local_experts": 128}, numbers=116_829_156_672),
    _gemma2("Gemma-2-2B", (2304, 9216, 26, 8, 4, 256000), {**_CAPS, "head_dim": 256, "query_pre_attn_scalar": 256}, numbers=2_614_341_888,
            positions=8192),
    _gemma2("Gemma-2-9B", (3584, 14336, 42, 16, 8, 256000), {**_CAPS, "head_dim": 256, "query_pre_attn_scalar": 256}, numbers=9_241_705_984),
    _gemma2("Gemma-2-27B", (4608, 36864, 46, 32, 16, 256000), {**_CAPS, "head_dim": 128, "query_pre_attn_scalar": 144}, numbers=27_227_128_320),
    _gemma3("Gemma-3-1B", (1152, 6912, 26, 4, 1, 262144), {**_GEMMA3, "sliding_window_pattern": 6}, numbers=999_885_952, positions=32768),
    _gemma3("Gemma-3-270M", (640, 2048, 18, 4, 1, 262144), {**_GEMMA3, "layer_types": _KINDS3}, numbers=268_098_176),
    _phi3("Phi-3-mini-4k", (3072, 8192, 32, 32, 32, 32064), {**_PHI3, "max_position_embeddings": 4096, "sliding_window": 2047},
          numbers=3_821_079_552, positions=4096),
    _phi3("Phi-3-mini-128k", (3072, 8192, 32, 32, 32, 32064), {**_PHI_LONG, "rope_scaling": _longrope(48)}, numbers=3_821_079_552, positions=4096),
    _phi3("Phi-3-medium-4k", (5120, 17920, 40, 40, 10, 32064), {**_PHI3, "max_position_embeddings": 4096, "sliding_window": 2047},
          numbers=13_960_238_080),
    _phi3("Phi-3.5-mini", (3072, 8192, 32, 32, 32, 32064), {**_PHI_LONG, "rope_scaling": _longrope(48)}, numbers=3_821_079_552),
    _phi3("Phi-4", (5120, 17920, 40, 40, 10, 100352), {**_PHI3, "max_position_embeddings": 16384, "rope_theta": 250000, "sliding_window": None,
          "original_max_position_embeddings": 16384, "rope_scaling": None}, numbers=14_659_507_200, positions=16384),
    _phi3("Phi-4-mini", (3072, 8192, 32, 24, 8, 200064), {**_PHI_LONG, "rope_scaling": _longrope(48), "partial_rotary_factor": 0.75,
          "tie_word_embeddings": True}, numbers=3_836_021_760, positions=4096),
    _olmo2("OLMo-2-1B", (2048, 8192, 16, 16, 16, 100352), _OLMO2, numbers=1_484_916_736, positions=4096),
    _olmo2("OLMo-2-7B", (4096, 11008, 32, 32, 32, 100352), _OLMO2, numbers=7_298_617_344),
    _olmo2("OLMo-2-13B", (5120, 13824, 40, 40, 40, 100352), _OLMO2, numbers=13_716_198_400),
    _olmo2("OLMo-2-32B", (5120, 27648, 64, 40, 8, 100352), _OLMO2, numbers=32_234_279_936),
    _smollm3("SmolLM3-3B", (2048, 11008, 36, 16, 4, 128256), {"tie_word_embeddings": True, "max_position_embeddings": 65536, "rope_theta": 5e6,
             "no_rope_layers": [1, 1, 1, 0] * 9, "no_rope_layer_interval": 4, "use_sliding_window": False, "sliding_window": None,
             "layer_types": ["full_attention"] * 36, "attention_bias": False, "mlp_bias": False}, numbers=3_075_098_624, positions=65536),
    _granite("Granite-3.1-2B", (2048, 8192, 40, 32, 8, 49155), {**_GRANITE, "attention_multiplier": 0.015625, "logits_scaling": 8.0},
             numbers=2_533_531_648, positions=131072),
    _granite("Granite-3.1-8B", (4096, 12800, 40, 32, 8, 49155), {**_GRANITE, "attention_multiplier": 0.0078125, "logits_scaling": 16.0},
             numbers=8_170_848_256),
    _starcoder2("StarCoder2-3B", (3072, 12288, 30, 24, 2, 49152), _STAR, numbers=3_030_371_328, positions=16384),
    _starcoder2("StarCoder2-15B", (6144, 24576, 40, 48, 4, 49152), {**_STAR, "tie_word_embeddings": False}, numbers=15_957_889_024),
    _neox("Pythia-160M", (768, 3072, 12, 12, 12, 50304), _NEOX, numbers=162_322_944, positions=2048),
    _neox("Pythia-1.4B", (2048, 8192, 24, 16, 16, 50304), _NEOX, numbers=1_414_647_808),
    _neox("Pythia-6.9B", (4096, 16384, 32, 32, 32, 50432), _NEOX, numbers=6_857_302_016),
    _neox("GPT-NeoX-20B", (6144, 24576, 44, 64, 64, 50432), {**_NEOX, "hidden_act": "gelu_fast"}, numbers=20_554_567_680),
)  # fmt: skip

_S = (512, 1024, 2, 8, 2, 1000)
REFUSED = (
    _phi3("Phi-3-mini-128k as first published", (3072, 8192, 32, 32, 32, 32064), {**_PHI_LONG, "rope_scaling": _longrope(48, "su")}, refused="write longrope"),
    _gpt_oss("gpt-oss as published, MXFP4", (64, 64, 2, 4, 2, 100), {**_OSS, "num_local_experts": 4,
             "quantization_config": {"quant_method": "mxfp4"}}, refused="quantized weights (MXFP4)"),
    _gemma2("a Gemma 2 that sees what follows", _S, {**_CAPS, "head_dim": 64, "use_bidirectional_attention": True}, refused="use_bidirectional_attention"),
    _gemma2("a Gemma 2 without a window", _S, {**_CAPS, "head_dim": 64, "sliding_window": None}, refused="sliding_window is null"),
    _gemma2("a Gemma 2 with kinds of another length", _S, {**_CAPS, "head_dim": 64, "layer_types": ["full_attention"]}, refused="layer_types should name"),
    _gemma2("a Gemma 2 with a whole cap", _S, {**_CAPS, "head_dim": 64, "attn_logit_softcapping": 50}, refused="attn_logit_softcapping is 50, expected"),
    _gemma3("a Gemma 3 with one RoPE in the new form", _S, {**_GEMMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
            refused="should have the objects"),
    _gemma3("a Gemma 3 with dynamic RoPE", _S, {**_GEMMA3, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, refused="'dynamic' is not served"),
    _phi3("a Phi with too few factors", _S, {**_PHI_LONG, "rope_scaling": _longrope(31)}, refused="needs 32 numbers in short_factor"),
    _phi3("a Phi with linear RoPE", _S, {**_PHI3, "rope_scaling": {"type": "linear", "factor": 2.0}}, refused="'linear' is not served for phi3"),
    _phi3("a Phi whose part is above one", _S, {**_PHI3, "partial_rotary_factor": 1.5}, refused="expected at most 1"),
    _olmo2("an OLMo with null heads", _S, {**_OLMO2, "head_dim": None}, refused="head_dim is null"),
    _mixtral("a Mixtral that routes to more than it has", _S, {**_MIXTRAL, "num_local_experts": 2, "num_experts_per_tok": 3},
             refused="num_experts_per_tok is 3, and there are 2 experts"),
    _mixtral("a Mixtral that routes to none", _S, {**_MIXTRAL, "num_experts_per_tok": 0}, refused="num_experts_per_tok is 0"),
    _qwen3_moe("a Qwen3-MoE with a text as list", (64, 64, 2, 4, 2, 100), {**_QWEN_MOE, "moe_intermediate_size": 32, "mlp_only_layers": ["1"]},
               refused="mlp_only_layers is ['1']"),
    _neox("a NeoX with null heads", (512, 1024, 2, 8, 8, 1000), {**_NEOX, "rotary_pct": 0}, refused="rotary_pct is 0"),
)  # fmt: skip
