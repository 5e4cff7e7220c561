"""Where each family of decoders keeps its layers. The table is the operator's, too (splitinference_modelfiles)."""

from splitinference_modelfiles.rules.families import DECODERS as FAMILIES
from splitinference_modelfiles.rules.families import Family
from splitinference_modelfiles.rules.rope import NOT_SERVED

# RoPE kinds whose frequencies change with the longest sequence seen: a token's numbers would depend on its neighbours.
UNSTEADY_ROPE = frozenset(NOT_SERVED)


class UnsupportedModelError(Exception):
    """The model's family, or one of its settings, is not served; the message says which and what is."""


def family_of(model_type: str) -> Family:
    """The family of a config's `model_type`. UnsupportedModelError when there is none."""
    if model_type not in FAMILIES:
        raise UnsupportedModelError(f"model_type {model_type!r} is not served; these are: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[model_type]
