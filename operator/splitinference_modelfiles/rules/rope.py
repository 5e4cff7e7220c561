"""Rotary positions: the kinds that are served, what each needs in config.json, and how many positions a model has."""

from collections.abc import Mapping
from typing import Any

from splitinference_modelfiles.rules.families import Family
from splitinference_modelfiles.stored.headers import ModelRefusedError

SERVED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("factor",),
}
"""Kind → numbers that it needs. Their frequencies are fixed, and transformers' own modules compute them: splitting changes nothing."""
LONGROPE = "longrope"
"""Served for Phi-3 and Phi-4, up to the positions of their first training: up to there its frequencies are fixed (the short factors)."""
_FORMER_LONGROPE = ("su", "yarn")
"""Names that transformers turns into longrope for a Phi-3, after it has looked for the settings of longrope."""
_PHI3_ORIGINAL = 4096
_FULL, _SLIDING = "full_attention", "sliding_attention"
NOT_SERVED = {
    "dynamic": "its frequencies change with the longest sequence seen, so a token's numbers would depend on other requests",
    "longrope": "only Phi-3 and Phi-4 have it here",
    "su": "it is longrope under its former name, which transformers 5 does not read",
    "proportional": "no served family has it",
    "axial": "no served family has it",
    "mrope": "it is for images and video",
}


def parameters(config: Mapping[str, Any], family: Family | None = None) -> Mapping[str, Any]:
    """The settings of RoPE. As in transformers 5, `rope_scaling` wins over `rope_parameters` where it says something."""
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) is not None and not isinstance(config[key], Mapping):
            raise ModelRefusedError(f"config.json: {key} is {str(config[key])[:60]!r}, expected an object or null")
    own = family.own_rope if family is not None else None
    found: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or own or {}
    return found


def kind(config: Mapping[str, Any], family: Family) -> str:
    """The kind of RoPE. ModelRefusedError where it is not served, or where a number that it needs is missing."""
    if family.ropes_by_kind:
        return _kind_of_full(config, family)
    found = parameters(config, family)
    if any(isinstance(value, Mapping) for value in found.values()):
        raise ModelRefusedError("config.json: RoPE settings that differ by kind of layer are not served for this family")
    return _checked(config, found, family)


def positions(config: Mapping[str, Any], family: Family, most: int) -> int:
    """Positions of a model whose config.json says `most`: linear and YaRN stretch them by their factor. Longrope has those of the first
    training alone. Families whose RoPE differs by kind of layer count the stretched ones already."""
    name = kind(config, family)
    if family.ropes_by_kind:
        return most
    found = parameters(config, family)
    if name == LONGROPE:
        return min(most, _original(config))
    if name == "linear":
        return max(most, int(most * float(found["factor"])))
    if name == "yarn":
        original = config.get("original_max_position_embeddings") or found.get("original_max_position_embeddings") or most
        return max(most, int(original * float(found["factor"])))
    return most


def _kind_of_full(config: Mapping[str, Any], family: Family) -> str:
    """Full and sliding attention have settings of their own; `rope_scaling` is about full attention."""
    parameters(config)
    by_kind = config.get("rope_parameters") or {}
    if any(not isinstance(value, Mapping | None) for value in by_kind.values()) or set(by_kind) - {_FULL, _SLIDING}:
        raise ModelRefusedError(f"config.json: rope_parameters should have the objects {_FULL} and {_SLIDING}")
    if config.get("rope_local_base_freq") is not None and not _number(config["rope_local_base_freq"]):
        raise ModelRefusedError(
            f"config.json: rope_local_base_freq is {_shown(config['rope_local_base_freq'])}, expected a positive number"
        )
    _checked(config, by_kind.get(_SLIDING) or {}, family)
    return _checked(config, {**(by_kind.get(_FULL) or {}), **(config.get("rope_scaling") or {})}, family)


def _checked(config: Mapping[str, Any], found: Mapping[str, Any], family: Family) -> str:
    name = str(found.get("rope_type") or found.get("type") or "default")
    if family.longrope:
        return _phi3(config, found, name, family)
    if name not in SERVED:
        why = NOT_SERVED.get(name, "it is not known")
        raise ModelRefusedError(f"RoPE kind {name[:40]!r} is not served: {why}. Served are {', '.join(SERVED)}")
    for key in SERVED[name]:
        if not _number(found.get(key)):
            raise ModelRefusedError(f"config.json: RoPE kind {name} needs the number {key}, which is {_shown(found.get(key))}")
    _check_numbers(config, found, family)
    return name


def _check_numbers(config: Mapping[str, Any], found: Mapping[str, Any], family: Family) -> None:
    for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings", "rotary_pct", "rotary_emb_base"):
        for where in (found, config):
            if key in where and where[key] is not None and not _number(where[key]):
                raise ModelRefusedError(f"config.json: {key} is {_shown(where[key])}, expected a positive number")
    for where in (found, config):
        for key in ("partial_rotary_factor", "rotary_pct"):
            part = where.get(key)
            if part in (None, 1, 1.0):
                continue
            if not family.partial_rope:
                raise ModelRefusedError(f"config.json: {key} below 1 is not served for this family")
            if part > 1:
                raise ModelRefusedError(f"config.json: {key} is {_shown(part)}, expected at most 1")


def _phi3(config: Mapping[str, Any], found: Mapping[str, Any], name: str, family: Family) -> str:
    """The default, or longrope with a factor for each pair of rotated numbers."""
    _check_numbers(config, found, family)
    if name in _FORMER_LONGROPE:
        raise ModelRefusedError(f"RoPE kind {name!r} is longrope under a former name, which transformers 5 fails on: write longrope")
    if name not in (LONGROPE, "default"):
        raise ModelRefusedError(f"RoPE kind {name[:40]!r} is not served for phi3. Served are default and longrope")
    if name == "default":
        return name
    part = found.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    pairs = int(int(config["hidden_size"]) // int(config["num_attention_heads"]) * part) // 2
    for key in ("short_factor", "long_factor"):
        factors = found.get(key)
        if not isinstance(factors, list) or len(factors) != pairs or not all(_number(factor) for factor in factors):
            raise ModelRefusedError(f"config.json: RoPE kind longrope needs {pairs} numbers in {key}")
    if not 1 < _original(config) < 1e12:
        raise ModelRefusedError("config.json: original_max_position_embeddings should be a number above 1")
    return LONGROPE


def _original(config: Mapping[str, Any]) -> int:
    """As transformers has it: Phi-3's own setting, or its default, replaces what the settings of RoPE say."""
    return int(config.get("original_max_position_embeddings") or _PHI3_ORIGINAL)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


def _shown(value: Any) -> str:
    return "null or missing" if value is None else repr(value)[:60]
