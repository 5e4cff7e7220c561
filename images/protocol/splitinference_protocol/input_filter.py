"""A learned filter before a model: a small network that says of an input whether the model's answer will be the useless class.

`splitinference filter train` writes it as JSON, the gateway reads it from the model's folder. It is numbers only, and no code. The network
standardizes the input, has at most one hidden layer with ReLU, and gives one number, whose logistic function is the probability of the
useless class. The method is SKIP of InFi (Yuan et al., MobiCom 2022), with the input itself as features.
"""

import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FORM = 1
MOST_INPUTS = 1 << 16
MOST_HIDDEN = 256
MOST_MULTIPLICATIONS = 1 << 18
"""For one row: about 3 ms in Python, in which the gateway does nothing else."""
MOST_CLASSES = 1 << 16
MOST_BYTES = 32 << 20


class FilterError(ValueError):
    """The file is not a filter that can be used; the message says why."""


@dataclass(frozen=True)
class InputFilter:
    """One filter.

    Attributes:
        mean: What is subtracted from each of the n values of a row.
        scale: What the differences are multiplied by; n values.
        hidden: Weights [h][n] and biases [h] of the hidden layer; empty where there is none.
        hidden_bias: h values.
        weight: Of the last layer: h values, or n where there is no hidden layer.
        bias: One value.
        threshold: A row is skipped if the probability is at least this, 0..1.
        useless: Index of the useless class in the model's output.
        answer: What a skipped row gets instead of the model's output; one value for each class.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    hidden: tuple[tuple[float, ...], ...]
    hidden_bias: tuple[float, ...]
    weight: tuple[float, ...]
    bias: float
    threshold: float
    useless: int
    answer: tuple[float, ...]

    @property
    def inputs(self) -> int:
        """Values of a row."""
        return len(self.mean)

    def probability(self, row: Sequence[float]) -> float:
        """That the model's answer to this row is the useless class. A row with a number that is not finite has 0: it passes."""
        values: Sequence[float] = [(value - mean) * scale for value, mean, scale in zip(row, self.mean, self.scale, strict=True)]
        if self.hidden:
            sums = (_dot(weights, values) + bias for weights, bias in zip(self.hidden, self.hidden_bias, strict=True))
            values = [total if total > 0 else 0.0 for total in sums]
        logit = _dot(self.weight, values) + self.bias
        if not math.isfinite(logit) or not all(map(math.isfinite, row)):
            return 0.0
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))

    def skips(self, row: Sequence[float]) -> bool:
        """Whether the row gets `answer`, and the model does not run."""
        return self.probability(row) >= self.threshold

    def agrees(self, output: Sequence[float]) -> bool:
        """Whether the model's output of a row says the useless class."""
        return max(range(len(output)), key=output.__getitem__) == self.useless

    def as_json(self) -> dict[str, Any]:
        """The form in a file."""
        told = {
            "mean": self.mean, "scale": self.scale, "hidden": self.hidden, "hiddenBias": self.hidden_bias, "weight": self.weight,
            "bias": self.bias, "threshold": self.threshold, "uselessClass": self.useless, "answer": self.answer,
        }  # fmt: skip
        return {"form": FORM, "mode": "Skip", **told}


def read_filter(text: str | bytes) -> InputFilter:
    """A filter from its file.

    Raises:
        FilterError: it is not one, or a larger one than the gateway runs.
    """
    if len(text) > MOST_BYTES:
        raise FilterError(f"the file has {len(text)} bytes, at most {MOST_BYTES} are read")
    try:
        told = json.loads(text)
        if not isinstance(told, dict) or told.get("form") != FORM or told.get("mode") != "Skip":
            raise FilterError(f"form {FORM} and mode Skip are expected")
        made = InputFilter(
            mean=_numbers(told["mean"]),
            scale=_numbers(told["scale"]),
            hidden=tuple(_numbers(row) for row in _listed(told["hidden"])),
            hidden_bias=_numbers(told["hiddenBias"]),
            weight=_numbers(told["weight"]),
            bias=_number(told["bias"]),
            threshold=_number(told["threshold"]),
            useless=operator.index(told["uselessClass"]),
            answer=_numbers(told["answer"]),
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise FilterError(f"a field is missing or of another type: {error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, OverflowError) as error:
        raise FilterError(f"it is not JSON: {error}") from error
    _check(made)
    return made


def _check(made: InputFilter) -> None:
    inputs, hidden = made.inputs, len(made.hidden)
    if not 1 <= inputs <= MOST_INPUTS or hidden > MOST_HIDDEN or inputs * max(1, hidden) > MOST_MULTIPLICATIONS:
        limits = f"{MOST_INPUTS} inputs, {MOST_HIDDEN} hidden units and {MOST_MULTIPLICATIONS} weights"
        raise FilterError(f"it has {inputs} inputs and {hidden} hidden units; at most {limits} are run")
    last = hidden or inputs
    rows_fit = all(len(row) == inputs for row in made.hidden)
    if not (rows_fit and len(made.scale) == inputs and len(made.hidden_bias) == hidden and len(made.weight) == last):
        raise FilterError("its layers do not fit together")
    if not 0 < made.threshold <= 1:
        raise FilterError(f"the threshold is {made.threshold}, expected more than 0 and at most 1")
    if not 2 <= len(made.answer) <= MOST_CLASSES:
        raise FilterError(f"a filter needs both classes, the useless one and others: the answer has {len(made.answer)}")
    if not 0 <= made.useless < len(made.answer) or not made.agrees(made.answer):
        raise FilterError(f"the answer does not say the useless class {made.useless}")


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
