"""Kinds of the values of config.json, as transformers 5 demands them: it refuses a configuration with a value of another kind."""

from collections.abc import Callable, Mapping
from typing import Any

from splitinference_modelfiles.rules.families import DECODERS, ENCODERS
from splitinference_modelfiles.rules.settings import shown
from splitinference_modelfiles.stored.headers import ModelRefusedError

_BOOL, _NUMBER, _FRACTION, _FLOAT = "true or false", "a number", "a fraction from 0.0 to 1.0", "a positive fraction below 1.0"
_INTEGER, _INTEGERS, _TEXT, _OBJECT = "a whole number", "a whole number or a list of them", "a text", "an object"
_DECIMAL, _LIST, _NATURAL = "a positive number with a decimal point", "a list of whole numbers", "a positive whole number"
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    _BOOL: lambda value: isinstance(value, bool),
    _NUMBER: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    _FRACTION: lambda value: isinstance(value, float) and 0 <= value <= 1,
    _FLOAT: lambda value: isinstance(value, float) and 0 < value < 1,
    _INTEGER: lambda value: type(value) is int,
    _INTEGERS: lambda value: type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value)),
    _TEXT: lambda value: isinstance(value, str),
    _OBJECT: lambda value: isinstance(value, dict),
    _DECIMAL: lambda value: isinstance(value, float) and 0 < value < 1e12,
    _LIST: lambda value: isinstance(value, list) and all(type(one) is int for one in value),
    _NATURAL: lambda value: type(value) is int and value > 0,
}

_QWEN = frozenset({"qwen2", "qwen3", "qwen3_moe", "smollm3"})
_GPT2 = frozenset({"gpt2"})
_ENCODERS = frozenset(ENCODERS)
_LLAMA_LIKE = frozenset(DECODERS) - _GPT2
_RMS = _LLAMA_LIKE - {"starcoder2", "gpt_neox"}
_GEMMAS = frozenset({"gemma2", "gemma3_text"})
_MIXTURES = frozenset(name for name, family in DECODERS.items() if family.experts)
_ALL = frozenset(DECODERS) | _ENCODERS
_EXPECTED: tuple[tuple[frozenset[str], str, tuple[str, ...]], ...] = (
    (_ALL, _BOOL, ("use_cache", "tie_word_embeddings")),
    (frozenset(name for name, family in DECODERS.items() if family.bias_key == "attention_bias"), _BOOL, ("attention_bias",)),
    (frozenset(name for name, family in DECODERS.items() if family.mlp_bias_key), _BOOL, ("mlp_bias",)),
    (_GEMMAS, _NATURAL, ("query_pre_attn_scalar",)),
    (_GEMMAS, _DECIMAL, ("attn_logit_softcapping", "final_logit_softcapping")),
    (frozenset({"gemma3_text"}), _NATURAL, ("sliding_window_pattern",)),
    (frozenset({"granite"}), _NUMBER, ("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier")),
    (_MIXTURES, _BOOL, ("output_router_logits",)),
    (frozenset({"mixtral"}), _DECIMAL, ("router_aux_loss_coef",)),
    (frozenset({"qwen3_moe"}), _BOOL, ("norm_topk_prob",)),
    (frozenset({"qwen3_moe"}), _LIST, ("mlp_only_layers",)),
    (frozenset({"gpt_oss"}), _DECIMAL, ("swiglu_alpha", "swiglu_limit")),
    (frozenset({"phi3"}), _NUMBER, ("resid_pdrop", "embd_pdrop")),
    (frozenset({"phi3"}), _NATURAL, ("original_max_position_embeddings",)),
    (frozenset({"smollm3"}), _LIST, ("no_rope_layers",)),
    (frozenset({"smollm3"}), _NATURAL, ("no_rope_layer_interval",)),
    (frozenset({"starcoder2"}), _BOOL, ("use_bias",)),
    (frozenset({"starcoder2"}), _NUMBER, ("residual_dropout", "embedding_dropout")),
    (frozenset({"starcoder2"}), _FLOAT, ("norm_epsilon",)),
    (frozenset({"gpt_neox"}), _BOOL, ("use_parallel_residual", "is_decoder")),
    (frozenset({"gpt_neox"}), _NUMBER, ("hidden_dropout", "classifier_dropout")),
    (frozenset({"gpt_neox"}), _FLOAT, ("layer_norm_eps",)),
    (_QWEN, _BOOL, ("use_sliding_window",)),
    (frozenset({"qwen2", "qwen3"}), _INTEGER, ("max_window_layers",)),
    (_ENCODERS | _GPT2, _BOOL, ("add_cross_attention",)),
    (_ENCODERS, _BOOL, ("is_decoder",)),
    (_GPT2, _BOOL, ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")),
    (_GPT2, _BOOL, ("summary_use_proj", "summary_proj_to_labels")),
    (_GPT2, _NUMBER, ("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout")),
    (_GPT2, _TEXT, ("summary_type", "summary_activation")),
    (_GPT2, _FLOAT, ("layer_norm_epsilon",)),
    (_LLAMA_LIKE, _NUMBER, ("attention_dropout",)),
    (_RMS, _FLOAT, ("rms_norm_eps",)),
    (_ENCODERS, _NUMBER, ("attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout")),
    (_ENCODERS, _FLOAT, ("layer_norm_eps",)),
    (_ALL, _INTEGER, ("bos_token_id", "pad_token_id")),
    (_ALL, _INTEGERS, ("eos_token_id",)),
    (frozenset({"llama"}), _INTEGER, ("pretraining_tp",)),
    (_ALL, _FRACTION, ("initializer_range",)),
    (_ALL, _TEXT, ("dtype", "torch_dtype")),
    (_ALL, _OBJECT, ("id2label",)),
)
"""Families, what is expected, and the keys of those families that it is expected of."""
_MAY_BE_NULL = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "classifier_dropout", "summary_activation", "dtype", "torch_dtype"}
    | {"id2label", "attn_logit_softcapping", "final_logit_softcapping", "no_rope_layers", "mlp_only_layers"}
)
_NULL_OF = frozenset({("attention_dropout", "llama"), *(("attention_dropout", family) for family in _GEMMAS)})


def check_kinds(config: Mapping[str, Any], family: str) -> None:
    """ModelRefusedError with the key, its value and what is expected."""
    for key, expected in _of_family(family):
        if key not in config:
            continue
        value = config[key]
        if value is None:
            if key not in _MAY_BE_NULL and (key, family) not in _NULL_OF:
                raise ModelRefusedError(f"config.json: {key} is null, expected {expected}")
        elif not _CHECKS[expected](value):
            raise ModelRefusedError(f"config.json: {key} is {shown(value)}, expected {expected}")


def _of_family(family: str) -> list[tuple[str, str]]:
    return [(key, expected) for families, expected, keys in _EXPECTED if family in families for key in keys]
