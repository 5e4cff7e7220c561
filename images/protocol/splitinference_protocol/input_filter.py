"""A learned filter before a model, as it lies in the model's folder: numbers in JSON, and no code. `splitinference filter train` writes it.

Mode Skip says of a row whether the model's answer will be the useless class. Mode Reuse says whether an earlier row was near enough, so
that its answer holds for this one, too. Both are a small network over features of a row: its values, its tokens, or what the model's first
layers make of it. The method is InFi's (Yuan et al., MobiCom 2022).
"""

import json
import math
import operator
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

FORM = 1
MOST_INPUTS = 1 << 16
MOST_HIDDEN = 256
MOST_MULTIPLICATIONS = 1 << 18
"""For one row: about 3 ms in Python, in which the gateway does nothing else."""
MOST_TOKEN_WEIGHTS = 1 << 20
MOST_CLASSES = 1 << 16
MOST_ENTRIES = 4096
MOST_LAYERS = 1 << 14
MOST_BYTES = 32 << 20


class FilterError(ValueError):
    """The file is not a filter that can be used; the message says why."""


class Of(StrEnum):
    """What the network sees of a row."""

    VALUES = "values"
    TOKENS = "tokens"
    LAYERS = "layers"


@dataclass(frozen=True)
class Features:
    """The network up to its hidden layer, which is all of it where there is none.

    Of values and of layers, n numbers are standardized: (value - mean) * scale. Of tokens, each ID that is there counts once, as input
    ID modulo n, and the vector has length 1; mean and scale are not used, and empty.

    Attributes:
        of: What the n inputs are.
        layers: Of layers alone: the inputs are the mean over a row's tokens (of a generic chain: all values) behind so many layers.
        inputs: n.
        mean: What is subtracted from each of the n values of a row.
        scale: What the differences are multiplied by; n values.
        hidden: Weights [h][n] and biases [h] of the hidden layer with ReLU; empty where there is none.
        hidden_bias: h values.
    """

    of: Of
    layers: int
    inputs: int
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    hidden: tuple[tuple[float, ...], ...]
    hidden_bias: tuple[float, ...]

    @property
    def width(self) -> int:
        """Values of `units`."""
        return len(self.hidden) or self.inputs

    @property
    def multiplications(self) -> int:
        """For one row of values; for one token of a row of tokens."""
        return max(1, len(self.hidden)) * (1 if self.of is Of.TOKENS else self.inputs)

    def units(self, row: Sequence[float]) -> Sequence[float]:
        """What the network makes of a row of values or token IDs; of tokens without a hidden layer all n inputs."""
        if self.of is Of.TOKENS:
            return self._of_tokens({int(token) % self.inputs for token in row})
        values = [(value - mean) * scale for value, mean, scale in zip(row, self.mean, self.scale, strict=True)]
        return (
            _relu(_dot(weights, values) + bias for weights, bias in zip(self.hidden, self.hidden_bias, strict=True))
            if self.hidden
            else values
        )

    def logit(self, row: Sequence[float], weight: Sequence[float]) -> float:
        """The weighted sum of the units."""
        if self.of is Of.TOKENS and not self.hidden:
            there = {int(token) % self.inputs for token in row}
            return sum(weight[token] for token in there) / math.sqrt(max(1, len(there)))
        return _dot(weight, self.units(row))

    def as_json(self) -> dict[str, Any]:
        """Its part of the file."""
        told = {"mean": self.mean, "scale": self.scale, "hidden": self.hidden, "hiddenBias": self.hidden_bias}
        return {"of": self.of.value, **({"layers": self.layers} if self.layers else {}), "inputs": self.inputs, **told}

    def _of_tokens(self, there: set[int]) -> Sequence[float]:
        size = 1 / math.sqrt(max(1, len(there)))
        if not self.hidden:
            return [size if token in there else 0.0 for token in range(self.inputs)]
        sums = [0.0] * len(self.hidden)
        for token in there:
            sums = list(map(operator.add, sums, self._columns[token]))
        return _relu(size * total + bias for total, bias in zip(sums, self.hidden_bias, strict=True))

    @cached_property
    def _columns(self) -> tuple["array[float]", ...]:
        """The weights of each token."""
        return tuple(array("d", column) for column in zip(*self.hidden, strict=True))


@dataclass(frozen=True)
class InputFilter:
    """Mode Skip.

    Attributes:
        features: What the network sees, and its hidden layer.
        weight: Of the last layer: as many values as the features have units.
        bias: One value.
        threshold: A row is skipped if the probability of the useless class is at least this, 0..1.
        useless: Index of the useless class in the model's output.
        answer: What a skipped row gets instead of the model's output; one value for each class.
    """

    features: Features
    weight: tuple[float, ...]
    bias: float
    threshold: float
    useless: int
    answer: tuple[float, ...]

    @property
    def classes(self) -> int:
        """Values of the model's output."""
        return len(self.answer)

    def probability(self, row: Sequence[float]) -> float:
        """That the model's answer to this row is the useless class. A row with a number that is not finite has 0: it passes."""
        logit = self.features.logit(row, self.weight) + self.bias
        if not math.isfinite(logit) or not all(map(math.isfinite, row)):
            return 0.0
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

    def skips(self, row: Sequence[float]) -> bool:
        """Whether the row gets `answer`, and the model does not run."""
        return self.probability(row) >= self.threshold

    def as_json(self) -> dict[str, Any]:
        """The form in a file."""
        told = {"weight": self.weight, "bias": self.bias, "threshold": self.threshold, "uselessClass": self.useless, "answer": self.answer}
        return {"form": FORM, "mode": "Skip", **self.features.as_json(), **told}


@dataclass(frozen=True)
class ReuseFilter:
    """Mode Reuse: a row gets the answer of an earlier one whose units are at most `distance` away (Euclidean).

    `entries`: how many earlier rows are kept; `classes`: values of the model's output.
    """

    features: Features
    distance: float
    entries: int
    classes: int

    def as_json(self) -> dict[str, Any]:
        """The form in a file."""
        told = {"distance": self.distance, "entries": self.entries, "classes": self.classes}
        return {"form": FORM, "mode": "Reuse", **self.features.as_json(), **told}


AnyFilter = InputFilter | ReuseFilter


def largest(output: Sequence[float]) -> int:
    """The class that a model's output says."""
    return max(range(len(output)), key=output.__getitem__)


def read_filter(text: str | bytes) -> AnyFilter:
    """A filter from its file.

    Raises:
        FilterError: it is not one, or a larger one than is run.
    """
    if len(text) > MOST_BYTES:
        raise FilterError(f"the file has {len(text)} bytes, at most {MOST_BYTES} are read")
    try:
        told = json.loads(text)
        if not isinstance(told, dict) or told.get("form") != FORM or told.get("mode") not in _READ:
            raise FilterError(f"form {FORM} and mode Skip or Reuse are expected")
        features = _features(told)
        _check_features(features)
        return _READ[told["mode"]](told, features)
    except (KeyError, TypeError, RecursionError) as error:
        raise FilterError(f"a field is missing or of another type: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OverflowError) as error:
        raise FilterError(f"it is not JSON: {error}") from error


def _features(told: Mapping[str, Any]) -> Features:
    of, mean = told.get("of", Of.VALUES.value), _numbers(told["mean"])
    if of not in tuple(Of):
        raise FilterError(f"of is {of!r:.40}, expected one of {', '.join(Of)}")
    return Features(
        of=Of(of),
        layers=operator.index(told.get("layers", 0)),
        inputs=operator.index(told.get("inputs", len(mean))),
        mean=mean,
        scale=_numbers(told["scale"]),
        hidden=tuple(_numbers(row) for row in _listed(told["hidden"])),
        hidden_bias=_numbers(told["hiddenBias"]),
    )


def _check_features(made: Features) -> None:
    inputs, hidden = made.inputs, len(made.hidden)
    weights = inputs * max(1, hidden)
    most = MOST_TOKEN_WEIGHTS if made.of is Of.TOKENS else MOST_MULTIPLICATIONS
    if not 1 <= inputs <= MOST_INPUTS or hidden > MOST_HIDDEN or weights > most:
        limits = f"{MOST_INPUTS} inputs, {MOST_HIDDEN} hidden units and {most} weights"
        raise FilterError(f"it has {inputs} inputs and {hidden} hidden units; at most {limits} are run")
    standardized = 0 if made.of is Of.TOKENS else inputs
    rows_fit = all(len(row) == inputs for row in made.hidden)
    if not (rows_fit and len(made.mean) == len(made.scale) == standardized and len(made.hidden_bias) == hidden):
        raise FilterError("its layers do not fit together")
    if (made.of is Of.LAYERS) != (made.layers > 0) or not 0 <= made.layers <= MOST_LAYERS:
        raise FilterError(f"it is of {made.of.value} and names {made.layers} layers; a filter of layers, and only that, names some")


def _skip(told: Mapping[str, Any], features: Features) -> InputFilter:
    made = InputFilter(
        features=features,
        weight=_numbers(told["weight"]),
        bias=_number(told["bias"]),
        threshold=_number(told["threshold"]),
        useless=operator.index(told["uselessClass"]),
        answer=_numbers(told["answer"]),
    )
    if len(made.weight) != features.width:
        raise FilterError("its layers do not fit together")
    if not 0 < made.threshold <= 1:
        raise FilterError(f"the threshold is {made.threshold}, expected more than 0 and at most 1")
    if not 2 <= made.classes <= MOST_CLASSES:
        raise FilterError(f"a filter needs both classes, the useless one and others: the answer has {made.classes}")
    if not 0 <= made.useless < made.classes or largest(made.answer) != made.useless:
        raise FilterError(f"the answer does not say the useless class {made.useless}")
    return made


def _reuse(told: Mapping[str, Any], features: Features) -> ReuseFilter:
    made = ReuseFilter(features, _number(told["distance"]), operator.index(told["entries"]), operator.index(told["classes"]))
    if features.of is Of.LAYERS:
        raise FilterError("mode Reuse is of values or tokens: the gateway runs it, and has nothing of the layers")
    if features.of is Of.TOKENS and not features.hidden:
        raise FilterError("mode Reuse of tokens needs a hidden layer")
    if made.distance < 0:
        raise FilterError(f"the distance is {made.distance}, expected at least 0")
    most = min(MOST_ENTRIES, MOST_MULTIPLICATIONS // features.width)
    if not 1 <= made.entries <= most:
        raise FilterError(f"{made.entries} entries are to be kept; with {features.width} units, 1 to {most} are")
    if not 2 <= made.classes <= MOST_CLASSES:
        raise FilterError(f"the model's output has {made.classes} classes; at least 2 are needed")
    return made


_READ: Mapping[str, Callable[[Mapping[str, Any], Features], AnyFilter]] = {"Skip": _skip, "Reuse": _reuse}


def _relu(values: Any) -> list[float]:
    return [value if value > 0 else 0.0 for value in values]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return float(sum(map(operator.mul, one, other)))


def _listed(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FilterError(f"{value!r:.40} is not a finite number")
    return float(value)


def _numbers(value: object) -> tuple[float, ...]:
    return tuple(_number(entry) for entry in _listed(value))
