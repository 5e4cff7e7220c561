"""Kinds of the values of config.json, as transformers 5 demands them: it refuses a configuration with a value of another kind."""

from collections.abc import Callable, Mapping
from typing import Any

from splitinference_modelfiles.families import DECODERS, ENCODERS
from splitinference_modelfiles.headers import ModelRefusedError
from splitinference_modelfiles.settings import shown

_BOOL, _NUMBER, _FRACTION, _FLOAT = "true or false", "a number", "a fraction from 0.0 to 1.0", "a positive fraction below 1.0"
_INTEGER, _INTEGERS, _TEXT, _OBJECT = "a whole number", "a whole number or a list of them", "a text", "an object"
_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    _BOOL: lambda value: isinstance(value, bool),
    _NUMBER: lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    _FRACTION: lambda value: isinstance(value, float) and 0 <= value <= 1,
    _FLOAT: lambda value: isinstance(value, float) and 0 < value < 1,
    _INTEGER: lambda value: type(value) is int,
    _INTEGERS: lambda value: type(value) is int or (isinstance(value, list) and all(type(one) is int for one in value)),
    _TEXT: lambda value: isinstance(value, str),
    _OBJECT: lambda value: isinstance(value, dict),
}

_QWEN = frozenset({"qwen2", "qwen3"})
_GPT2 = frozenset({"gpt2"})
_ENCODERS = frozenset(ENCODERS)
_LLAMA_LIKE = frozenset(DECODERS) - _GPT2
_ALL = frozenset(DECODERS) | _ENCODERS
_EXPECTED: tuple[tuple[frozenset[str], str, tuple[str, ...]], ...] = (
    (_ALL, _BOOL, ("use_cache", "tie_word_embeddings")),
    (frozenset({"llama", "qwen3", "gemma"}), _BOOL, ("attention_bias",)),
    (frozenset({"llama"}), _BOOL, ("mlp_bias",)),
    (_QWEN, _BOOL, ("use_sliding_window",)),
    (_QWEN, _INTEGER, ("max_window_layers",)),
    (_ENCODERS | _GPT2, _BOOL, ("add_cross_attention",)),
    (_ENCODERS, _BOOL, ("is_decoder",)),
    (_GPT2, _BOOL, ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn")),
    (_GPT2, _BOOL, ("summary_use_proj", "summary_proj_to_labels")),
    (_GPT2, _NUMBER, ("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout")),
    (_GPT2, _TEXT, ("summary_type", "summary_activation")),
    (_GPT2, _FLOAT, ("layer_norm_epsilon",)),
    (_LLAMA_LIKE, _NUMBER, ("attention_dropout",)),
    (_LLAMA_LIKE, _FLOAT, ("rms_norm_eps",)),
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
    | {"id2label"}
)


def check_kinds(config: Mapping[str, Any], family: str) -> None:
    """ModelRefusedError with the key, its value and what is expected."""
    for key, expected in _of_family(family):
        if key not in config:
            continue
        value = config[key]
        if value is None:
            if key not in _MAY_BE_NULL and (key, family) != ("attention_dropout", "llama"):
                raise ModelRefusedError(f"config.json: {key} is null, expected {expected}")
        elif not _CHECKS[expected](value):
            raise ModelRefusedError(f"config.json: {key} is {shown(value)}, expected {expected}")


def _of_family(family: str) -> list[tuple[str, str]]:
    return [(key, expected) for families, expected, keys in _EXPECTED if family in families for key in keys]
