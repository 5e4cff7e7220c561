"""Rotary positions: the kinds that are served, what each needs in config.json, and how many positions a model has."""

from collections.abc import Mapping
from typing import Any

from splitinference_modelfiles.headers import ModelRefusedError

SERVED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""Kind → numbers that it needs. Their frequencies are fixed, and transformers' own modules compute them: splitting changes nothing."""
NOT_SERVED = {
    "dynamic": "its frequencies change with the longest sequence seen, so a token's numbers would depend on other requests",
    "longrope": "its frequencies change with the longest sequence seen, so a token's numbers would depend on other requests",
    "su": "it is longrope under its former name, whose frequencies change with the longest sequence seen",
    "proportional": "no served family has it",
    "axial": "no served family has it",
    "mrope": "it is for images and video",
}


def parameters(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of RoPE. As in transformers 5, `rope_scaling` wins over `rope_parameters` where it says something."""
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) is not None and not isinstance(config[key], Mapping):
            raise ModelRefusedError(f"config.json: {key} is {str(config[key])[:60]!r}, expected an object or null")
    found: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    return found


def kind(config: Mapping[str, Any]) -> str:
    """The kind of RoPE. ModelRefusedError where it is not served, or where a number that it needs is missing."""
    found = parameters(config)
    if any(isinstance(value, Mapping) for value in found.values()):
        raise ModelRefusedError("config.json: RoPE settings that differ by kind of layer are not served")
    name = str(found.get("rope_type") or found.get("type") or "default")
    if name not in SERVED:
        why = NOT_SERVED.get(name, "it is not known")
        raise ModelRefusedError(f"RoPE kind {name[:40]!r} is not served: {why}. Served are {', '.join(SERVED)}")
    for key in SERVED[name]:
        if not _number(found.get(key)):
            raise ModelRefusedError(f"config.json: RoPE kind {name} needs the number {key}, which is {_shown(found.get(key))}")
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
        for where in (found, config):
            if key in where and where[key] is not None and not _number(where[key]):
                raise ModelRefusedError(f"config.json: {key} is {_shown(where[key])}, expected a positive number")
        if key == "partial_rotary_factor" and any(where.get(key) not in (None, 1, 1.0) for where in (found, config)):
            raise ModelRefusedError("config.json: partial_rotary_factor below 1 is not served for this family")
    return name


def positions(config: Mapping[str, Any], most: int) -> int:
    """Positions of a model whose config.json says `most`: linear and YaRN stretch them by their factor."""
    found, name = parameters(config), kind(config)
    if name == "linear":
        return max(most, int(most * float(found["factor"])))
    if name == "yarn":
        original = config.get("original_max_position_embeddings") or found.get("original_max_position_embeddings") or most
        return max(most, int(original * float(found["factor"])))
    return most


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


def _shown(value: Any) -> str:
    return "null or missing" if value is None else repr(value)[:60]
