"""Which outputs an inference is asked for, and how one vector of a text is made of the hidden states of its tokens."""

from dataclasses import dataclass
from typing import Any

POOLING = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""Modes, by sentence-transformers' names."""
SENTENCE_EMBEDDING = "sentence_embedding"
"""The output that pooling gives."""
MAX_OUTPUTS = 16
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class Pooling:
    """One vector of each row of hidden states: the modes' vectors, one after the other, and whether the whole is scaled to length 1."""

    modes: tuple[str, ...]
    normalize: bool = False

    def as_json(self) -> dict[str, object]:
        """The form in META."""
        return {"modes": self.modes, "normalize": self.normalize}


def parse_pooling(value: Any) -> Pooling | None:
    """From JSON. ValueError says what is wrong."""
    if value is None:
        return None
    fields = value if isinstance(value, dict) else {}
    modes, normalize = fields.get("modes"), fields.get("normalize", False)
    known = isinstance(modes, list) and 1 <= len(modes) <= len(POOLING) and all(mode in POOLING for mode in modes)
    if not known or not isinstance(normalize, bool):
        raise ValueError(f"pooling should be {{modes, normalize}}, with modes of {', '.join(POOLING)}")
    return Pooling(tuple(fields["modes"]), normalize)


def parse_outputs(value: Any) -> tuple[str, ...]:
    """Names from JSON; none stands for all. ValueError says what is wrong."""
    if not isinstance(value, list) or len(value) > MAX_OUTPUTS:
        raise ValueError(f"outputs should be a list of {MAX_OUTPUTS} names at most")
    if not all(isinstance(name, str) and 1 <= len(name) <= _MAX_NAME for name in value):
        raise ValueError(f"outputs should be texts of 1 to {_MAX_NAME} characters")
    return tuple(value)
