"""The field `sampling` of META: how the last segment chooses a token, read and checked."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from splitinference_protocol.wire import leb128

MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_BANNED = 256
_MOST_ID = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Temperature 0 is greedy; `logprobs` is how many alternatives to report.

    `top_k` 0 and the defaults of the others change nothing. `bias` is added to logits by token id; `banned` tokens are not chosen.
    `allowed`, where it is given, has a bit for each token that may be chosen (base64, the lowest bit of the first byte for token 0).
    `prompt` and `generated` are the sequence's tokens so far (leb128.py), there only where a penalty needs them.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    prompt: str = ""
    generated: str = ""
    allowed: str = ""

    @property
    def adjusts(self) -> bool:
        """Logits are changed before a token is chosen."""
        return bool(self.bias or self.banned or self.prompt or self.generated or self.allowed)

    def check(self, vocabulary: int) -> None:
        """ValueError for token ids that the model does not have, for tokens so far that cannot be read, and where no token may come."""
        if self.allowed and not any(allowed_bits(self.allowed)[: -(-vocabulary // 8)]):
            raise ValueError("sampling.allowed: no token of the model's vocabulary may come")
        named = {
            "bias": [token for token, _ in self.bias],
            "banned": self.banned,
            "prompt": leb128.ids(self.prompt)[-1:],
            "generated": leb128.counts(self.generated)[0][-1:],
        }
        for name, ids in named.items():
            if (wrong := next((token for token in ids if token >= vocabulary), None)) is not None:
                raise ValueError(f"sampling.{name}: token id {wrong} is not in the model's vocabulary of {vocabulary}")

    def as_json(self) -> dict[str, Any]:
        """The protocol's form; what is as by default is left out, but for the first four."""
        every = ((name, getattr(self, name)) for name in _DEFAULTS)
        return {name: value for name, value in every if name in _ALWAYS or value != _DEFAULTS[name]}


def allowed_bits(allowed: str) -> bytes:
    """The bits of `allowed`. ValueError for what is not base64."""
    try:
        return base64.b64decode(allowed, validate=True)
    except ValueError as error:
        raise ValueError("sampling.allowed is not base64") from error


GREEDY = Sampling()
_ALWAYS = ("temperature", "top_p", "seed", "logprobs")
_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(Sampling)}


def parse_sampling(value: Any) -> Sampling:
    """ValueError names the field that is wrong. Fields that are not known are left out."""
    if not isinstance(value, dict):
        raise ValueError("sampling should be an object")
    return Sampling(**{name: _READ[name](value[name], f"sampling.{name}") for name in _READ if name in value})


def _number(least: float, most: float) -> Callable[[Any, str], float]:
    def read(value: Any, name: str) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} should be a number from {least:g} to {most:g}, got {value!r:.80}")
        return float(value)

    return read


def _integer(least: int, most: int) -> Callable[[Any, str], int]:
    def read(value: Any, name: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} should be a whole number from {least} to {most}, got {value!r:.80}")
        return value

    return read


def _seed(value: Any, name: str) -> int | None:
    return None if value is None else _integer(-(2**63), 2**63 - 1)(value, name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > leb128.MOST_CHARACTERS:
        raise ValueError(f"{name} should be a text of {leb128.MOST_CHARACTERS} characters at most")
    return value


def _banned(value: Any, name: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_BANNED:
        raise ValueError(f"{name} should be a list of {MAX_BANNED} token ids at most")
    return tuple(_integer(0, _MOST_ID)(token, name) for token in value)


def _bias(value: Any, name: str) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, list) or len(value) > MAX_BIASES or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError(f"{name} should be a list of [token id, bias], {MAX_BIASES} at most")
    return tuple((_integer(0, _MOST_ID)(token, name), _number(-100, 100)(bias, name)) for token, bias in value)


_READ: Mapping[str, Callable[[Any, str], Any]] = {
    "temperature": _number(0.0, 100.0),
    "top_p": _number(0.0, 1.0),
    "seed": _seed,
    "logprobs": _integer(0, MAX_LOGPROBS),
    "top_k": _integer(0, _MOST_ID),
    "min_p": _number(0.0, 1.0),
    "repetition_penalty": _number(0.01, 100.0),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "bias": _bias,
    "banned": _banned,
    "prompt": _text,
    "generated": _text,
    "allowed": _text,
}
