"""Kinds of the values of config.json, as transformers 5 demands them: it refuses a configuration with a value of another kind."""

from collections.abc import Callable, Mapping
from typing import Any

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

_EXPECTED: Mapping[str, str] = {
    **dict.fromkeys(("use_cache", "use_sliding_window", "attention_bias", "mlp_bias", "tie_word_embeddings", "is_decoder"), _BOOL),
    **dict.fromkeys(("add_cross_attention", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"), _BOOL),
    **dict.fromkeys(("summary_use_proj", "summary_proj_to_labels"), _BOOL),
    **dict.fromkeys(
        ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout", "classifier_dropout"), _NUMBER
    ),
    **dict.fromkeys(("attention_probs_dropout_prob", "hidden_dropout_prob"), _NUMBER),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), _FLOAT),
    **dict.fromkeys(("bos_token_id", "pad_token_id", "pretraining_tp", "max_window_layers"), _INTEGER),
    "eos_token_id": _INTEGERS,
    "initializer_range": _FRACTION,
    **dict.fromkeys(("summary_type", "summary_activation", "dtype", "torch_dtype"), _TEXT),
    "id2label": _OBJECT,
}
_MAY_BE_NULL = frozenset(
    {"bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp", "classifier_dropout", "summary_activation", "dtype", "torch_dtype"}
    | {"id2label"}
)


def check_kinds(config: Mapping[str, Any], family: str) -> None:
    """ModelRefusedError with the key, its value and what is expected."""
    for key, expected in _EXPECTED.items():
        if key not in config:
            continue
        value = config[key]
        if value is None:
            if key not in _MAY_BE_NULL and (key, family) != ("attention_dropout", "llama"):
                raise ModelRefusedError(f"config.json: {key} is null, expected {expected}")
        elif not _CHECKS[expected](value):
            raise ModelRefusedError(f"config.json: {key} is {shown(value)}, expected {expected}")
