"""Fits the small network of a filter: softmax over at most one hidden layer, with weight decay, by L-BFGS."""

from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from splitinference.cli.filter.labelled import Labelled
from splitinference_protocol.input_filter import Features, Of

_DECAY = {Of.VALUES: 1e-3, Of.LAYERS: 1e-3, Of.TOKENS: 1e-4}
_ITERATIONS = 400


def fitted(data: Labelled, wanted: Any, hidden: int, seed: int) -> tuple[Features, Any, Any]:
    """The features' part, and weights [h or n, classes] and biases [classes] of the last layer.

    `wanted`: the class of each row. `hidden`: units of the hidden layer, 0 for none.
    """
    inputs = data.inputs
    mean, scale = _standard(data)
    x = data.matrix(inputs) if data.of is Of.TOKENS else (data.x - mean) * scale
    rows, classes, decay = data.rows, int(wanted.max()) + 1, _DECAY[data.of]
    target = np.eye(classes)[wanted]
    random = np.random.default_rng(seed)
    sizes = [(hidden, inputs), (hidden,), (hidden or inputs, classes), (classes,)]
    first_spread = 1 / np.sqrt(inputs if data.of is not Of.TOKENS else 1)
    start = [random.normal(0, first_spread, sizes[0]), np.zeros(sizes[1])]
    start += [random.normal(0, 1 / np.sqrt(sizes[2][0]), sizes[2]) if hidden else np.zeros(sizes[2]), np.zeros(classes)]

    def split(flat: Any) -> list[Any]:
        ends = np.cumsum([int(np.prod(size)) for size in sizes])[:-1]
        return [part.reshape(size) for part, size in zip(np.split(flat, ends), sizes, strict=True)]

    def loss(flat: Any) -> tuple[float, Any]:
        first, first_bias, last, last_bias = split(flat)
        sums = x @ first.T + first_bias if hidden else None
        features = x if sums is None else np.maximum(sums, 0)
        logits = features @ last + last_bias
        logs = logits - logsumexp(logits, axis=1, keepdims=True)
        error = (np.exp(logs) - target) / rows
        back = np.zeros((rows, 0)) if sums is None else (error @ last.T) * (sums > 0)
        of_first = back.T @ x if hidden else np.zeros(sizes[0])
        gradient = [of_first + decay * first, back.sum(axis=0), features.T @ error + decay * last, error.sum(axis=0)]
        value = -float((target * logs).sum()) / rows + decay / 2 * float((first**2).sum() + (last**2).sum())
        return value, np.concatenate([np.asarray(part).ravel() for part in gradient])

    found = minimize(loss, np.concatenate([part.ravel() for part in start]), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS})
    first, first_bias, last, last_bias = split(found.x)
    features = Features(
        of=data.of,
        layers=data.layers,
        inputs=inputs,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        hidden=tuple(tuple(row) for row in first.tolist()),
        hidden_bias=tuple(first_bias.tolist()),
    )
    return features, last, last_bias


def units(features: Features, data: Labelled) -> Any:
    """What the network makes of each row, as gateways and segments work it out; of tokens without a hidden layer it is sparse."""
    x = data.matrix(features.inputs)
    if features.of is not Of.TOKENS:
        x = (x - np.array(features.mean)) * np.array(features.scale)
    return np.maximum(x @ np.array(features.hidden).T + np.array(features.hidden_bias), 0) if features.hidden else x


def _standard(data: Labelled) -> tuple[Any, Any]:
    if data.of is Of.TOKENS:
        return np.zeros(0), np.zeros(0)
    mean, spread = data.x.mean(axis=0, dtype=np.float64), data.x.std(axis=0, dtype=np.float64)
    return mean, np.where(spread > 1e-6, 1 / np.maximum(spread, 1e-6), 0.0)
