"""Fits a filter of mode Skip, and picks its threshold for a stated accuracy."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import beta

from splitinference.cli.filter.labelled import Labelled
from splitinference.cli.filter.network import fitted, units
from splitinference_protocol.input_filter import InputFilter

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
    recall: float = 1.0
    least_recall: float = 1.0


def parted(data: Labelled, seed: int) -> tuple[Labelled, Labelled, Labelled]:
    """Rows to fit, to pick the threshold with, and to report on: 60, 20 and 20 %, by chance."""
    return _parts(data, np.random.default_rng(seed).permutation(data.rows))


def parted_in_order(data: Labelled) -> tuple[Labelled, Labelled, Labelled]:
    """The same, the earlier rows first."""
    return _parts(data, np.arange(data.rows))


def _parts(data: Labelled, order: Any) -> tuple[Labelled, Labelled, Labelled]:
    first, second = int(0.6 * data.rows), int(0.8 * data.rows)
    return data.take(order[:first]), data.take(order[first:second]), data.take(order[second:])


def skipping(data: Labelled, useless: int, hidden: int, seed: int) -> InputFilter:
    """The network that tells the useless class apart, with a threshold of 1: it skips nothing yet.

    A skipped row gets the mean output of the useless rows. `hidden`: units of the hidden layer, 0 for none.
    """
    features, last, bias = fitted(data, (data.classes == useless).astype(int), hidden, seed)
    return InputFilter(
        features=features,
        weight=tuple((last[:, 1] - last[:, 0]).tolist()),
        bias=float(bias[1] - bias[0]),
        threshold=1.0,
        useless=useless,
        answer=tuple(data.outputs[data.classes == useless].mean(axis=0).tolist()),
    )


def probabilities(made: InputFilter, data: Labelled) -> Any:
    """Of the useless class for each row, as gateways and segments work it out."""
    return expit(units(made.features, data) @ np.array(made.weight) + made.bias)


def at(threshold: float, found: Any, useless: Any) -> Point:
    """What a threshold does to rows with these probabilities. Accurate is a row that passes, or that is skipped and useless."""
    skipped = found >= threshold
    rows, useful, wrong = len(found), int((~useless).sum()), int((skipped & ~useless).sum())
    recall = 1 - wrong / useful if useful else 1.0
    least, least_recall = float(lower_bound(rows, np.array(wrong))), float(lower_bound(useful, np.array(wrong)))
    return Point(float(threshold), 1 - float(skipped.mean()), 1 - wrong / rows, least, recall, least_recall)


def lower_bound(rows: int, wrong: Any) -> Any:
    """Lower bounds of the shares that are right, for numbers of wrong rows."""
    return np.where(wrong < rows, beta.ppf(1 - CONFIDENCE, np.maximum(rows - wrong, 1), wrong + 1), 0.0)


def threshold_for(accuracy: float, recall: float, found: Any, useless: Any) -> Point | None:
    """The point that skips most among those that keep accuracy and recall with 95 % confidence; None where only skipping nothing does."""
    values, useful = np.unique(found), np.sort(found[~useless])
    wrong = len(useful) - np.searchsorted(useful, values, "left")
    kept = (lower_bound(len(found), wrong) >= accuracy) & (lower_bound(len(useful), wrong) >= recall)
    return at(values[kept].min(), found, useless) if kept.any() else None


def area(found: Any, useless: Any) -> float:
    """Under the ROC curve: the probability that a useless row has more than another one (Mann and Whitney)."""
    order = np.sort(found[~useless])
    below, not_above = np.searchsorted(order, found[useless], "left"), np.searchsorted(order, found[useless], "right")
    return float((below + not_above).mean() / 2 / len(order))
