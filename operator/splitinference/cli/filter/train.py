"""Fits the filter's network, and picks its threshold for a stated accuracy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import beta

from splitinference.cli.filter.labelled import Labelled
from splitinference_protocol.input_filter import InputFilter

_DECAY = 1e-3
_ITERATIONS = 400
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Point:
    """At one threshold: shares of all rows; `recall`: of the useful rows, those that pass.

    Where most rows are useless, accuracy alone would allow a filter that skips everything. `least_…`: the lower bound with a confidence of
    95 % (Clopper and Pearson).
    """

    threshold: float
    pass_rate: float
    accuracy: float
    least_accuracy: float
    recall: float
    least_recall: float


def parted(data: Labelled, seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Rows to fit, to pick the threshold with, and to report on: 60, 20 and 20 %."""
    order = np.random.default_rng(seed).permutation(data.rows)
    first, second = int(0.6 * data.rows), int(0.8 * data.rows)
    return data.take(order[:first]), data.take(order[first:second]), data.take(order[second:])


def fitted(data: Labelled, useless_class: int, hidden: int, seed: int) -> InputFilter:
    """The network that tells the useless class apart (logistic loss, weight decay, L-BFGS), with a threshold of 1: it skips nothing yet.

    `hidden`: units of the hidden layer, 0 for none.
    """
    mean, spread = data.x.mean(axis=0, dtype=np.float64), data.x.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0.0)
    x, wanted = (data.x - mean) * scale, data.useless.astype(np.float64)
    inputs, random = x.shape[1], np.random.default_rng(seed)
    sizes = [(hidden, inputs), (hidden,), (hidden or inputs,), (1,)]
    start = [random.normal(0, 1 / np.sqrt(inputs), size) for size in sizes[:1]] + [np.zeros(sizes[1])]
    start += [random.normal(0, 1 / np.sqrt(sizes[2][0]), sizes[2]) if hidden else np.zeros(sizes[2]), np.zeros(1)]

    def split(flat: Any) -> list[Any]:
        ends = np.cumsum([int(np.prod(size)) for size in sizes])[:-1]
        return [part.reshape(size) for part, size in zip(np.split(flat, ends), sizes, strict=True)]

    def loss(flat: Any) -> tuple[float, Any]:
        first, first_bias, last, last_bias = split(flat)
        sums = x @ first.T + first_bias
        features = np.maximum(sums, 0) if hidden else x
        logits = features @ last + last_bias[0]
        error = (expit(logits) - wanted) / len(x)
        back = np.outer(error, last) * (sums > 0) if hidden else np.zeros((len(x), 0))
        gradient = [back.T @ x + _DECAY * first, back.sum(axis=0), features.T @ error + _DECAY * last, np.array([error.sum()])]
        value = float(np.mean(np.logaddexp(0, logits) - wanted * logits)) + _DECAY / 2 * float((first**2).sum() + (last**2).sum())
        return value, np.concatenate([part.ravel() for part in gradient])

    found = minimize(loss, np.concatenate([part.ravel() for part in start]), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    first, first_bias, last, last_bias = split(found.x)
    return InputFilter(
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        hidden=tuple(tuple(row) for row in first.tolist()),
        hidden_bias=tuple(first_bias.tolist()),
        weight=tuple(last.tolist()),
        bias=float(last_bias[0]),
        threshold=1.0,
        useless=useless_class,
        answer=tuple(data.answer.tolist()),
    )


def probabilities(made: InputFilter, x: Any) -> Any:
    """Of the useless class for each row, as the gateway works it out."""
    values = (x - np.array(made.mean)) * np.array(made.scale)
    if made.hidden:
        values = np.maximum(values @ np.array(made.hidden).T + np.array(made.hidden_bias), 0)
    return expit(values @ np.array(made.weight) + made.bias)


def at(threshold: float, found: Any, useless: Any) -> Point:
    """What a threshold does to rows with these probabilities. Accurate is a row that passes, or that is skipped and useless."""
    skipped = found >= threshold
    rows, useful, wrong = len(found), int((~useless).sum()), int((skipped & ~useless).sum())
    recall = 1 - wrong / useful if useful else 1.0
    least, least_recall = float(_least(rows, np.array(wrong))), float(_least(useful, np.array(wrong)))
    return Point(float(threshold), 1 - float(skipped.mean()), 1 - wrong / rows, least, recall, least_recall)


def _least(rows: int, wrong: Any) -> Any:
    """Lower bounds of the shares that are right, for numbers of wrong rows."""
    return np.where(wrong < rows, beta.ppf(1 - CONFIDENCE, np.maximum(rows - wrong, 1), wrong + 1), 0.0)


def threshold_for(accuracy: float, recall: float, found: Any, useless: Any) -> Point | None:
    """The point that skips most among those that keep accuracy and recall with 95 % confidence; None where only skipping nothing does."""
    values, useful = np.unique(found), np.sort(found[~useless])
    wrong = len(useful) - np.searchsorted(useful, values, "left")
    kept = (_least(len(found), wrong) >= accuracy) & (_least(len(useful), wrong) >= recall)
    return at(values[kept].min(), found, useless) if kept.any() else None


def area(found: Any, useless: Any) -> float:
    """Under the ROC curve: the probability that a useless row has more than another one (Mann and Whitney)."""
    order = np.sort(found[~useless])
    below, not_above = np.searchsorted(order, found[useless], "left"), np.searchsorted(order, found[useless], "right")
    return float((below + not_above).mean() / 2 / len(order))
