"""A generic chain as steps that two parties can compute: products with a matrix, and ReLU."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinference.cli.secret.ring import FRACTION
from splitinference_modelfiles.chains import ChainLayer, layers_of, used
from splitinference_modelfiles.stored.folder import inside, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError

Reals = NDArray[np.float64]
SERVED = ("Linear", "Conv1d", "Conv2d", "ReLU", "Flatten", "Identity")
LARGEST_STEP = 1 << 24
"""Elements of one step's gathered input, and of one step's matrix."""


@dataclass(frozen=True)
class Step:
    """A product (`weight` is not None) or a ReLU, on rows of `size` numbers.

    A product takes `index` [places, taps] of the row, to which a zero is appended, and multiplies by `weight` [taps, outputs].
    Its result is [places, outputs], or [outputs, places] if `outputs_first`.
    """

    size: int
    index: NDArray[np.int64] | None = None
    weight: Reals | None = None
    bias: Reals | None = None
    outputs_first: bool = False


@dataclass(frozen=True)
class SharedChain:
    """Steps, and the shapes of one row before and after them."""

    steps: tuple[Step, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


def read_chain(folder: Path) -> SharedChain:
    """The chain of a model's folder. ModelRefusedError says which layer cannot be computed on shares, and why."""
    config = json.loads((folder / "config.json").read_text())
    if not isinstance(config, dict) or config.get("model_type") != "sequential":
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise ModelRefusedError(
            f"model_type is {kind!r}. Only sequential chains are computed on shares: "
            "one token of a language model of 135 million parameters would take about 30 s and 2 GB"
        )
    layers = layers_of(config)
    files, tensors = tensor_tables(str(folder))
    used(config, tensors)
    steps = []
    for number, layer in enumerate(layers):
        if layer.kind not in SERVED:
            raise ModelRefusedError(f"layers[{number}] is {layer.kind}, which is not computed on shares; these are: {', '.join(SERVED)}")
        if layer.kind == "ReLU":
            steps.append(Step(math.prod(layer.before)))
        elif layer.tensors:
            own = {name: _tensor(folder, files[f"{number}.{name}"], f"{number}.{name}") for name in layer.tensors}
            steps.append(_product(layer, config["layers"][number], own, number))
    if not any(step.weight is not None for step in steps):
        raise ModelRefusedError("the chain has no Linear and no Conv layer: there is nothing to compute on shares")
    return SharedChain(tuple(steps), layers[0].before, layers[-1].after)


def gather(values: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """[rows, size] as [rows, places, taps]; the index `size` reads zero."""
    zero = np.zeros((len(values), 1), dtype=values.dtype)
    return np.concatenate((values, zero), axis=1)[:, index]


def laid_out(result: NDArray[Any], outputs_first: bool) -> NDArray[Any]:
    """[rows, places, outputs] as rows of the next step."""
    return (result.swapaxes(1, 2) if outputs_first else result).reshape(len(result), -1)


def plain(chain: SharedChain, rows: Reals) -> Reals:
    """The chain's outputs for [rows, size], in the open and in float64."""
    for step in chain.steps:
        if step.index is None or step.weight is None:
            rows = np.maximum(rows, 0)
            continue
        result = gather(rows, step.index) @ step.weight
        rows = laid_out(result if step.bias is None else result + step.bias, step.outputs_first)
    return rows


def check_range(chain: SharedChain, largest: float) -> float:
    """The largest output for inputs up to `largest`. ModelRefusedError where a step could pass the range of 64 bits."""
    limit = 2.0 ** (62 - 2 * FRACTION) - 1
    for number, step in enumerate(chain.steps):
        if step.weight is not None:
            weights = np.abs(step.weight) + 2.0 ** -(FRACTION + 1)  # as they are rounded
            sums = weights.sum(axis=0) * (largest + 2.0**-FRACTION) + (0 if step.bias is None else np.abs(step.bias))
            largest = float(sums.max()) + 2.0 ** -(FRACTION - 1)
        if not largest < limit:
            raise ModelRefusedError(
                f"step {number} could reach {largest:.3g}, and fixed point holds up to {limit:.3g}: set --largest-input lower"
            )
    return largest


def _product(layer: ChainLayer, given: Mapping[str, Any], own: Mapping[str, Reals], number: int) -> Step:
    size, weight = math.prod(layer.before), own["weight"]
    if layer.kind == "Linear":
        index = np.arange(size, dtype=np.int64).reshape(-1, layer.before[-1])
    else:
        if int(given.get("groups", 1)) != 1:
            raise ModelRefusedError(f"layers[{number}] has groups, which are not computed on shares")
        index = _places(layer, given)
    if max(index.size, weight.size) > LARGEST_STEP:
        raise ModelRefusedError(f"layers[{number}] has more than {LARGEST_STEP} products or weights: too large for shares")
    return Step(size, index, weight.reshape(len(weight), -1).T.copy(), own.get("bias"), layer.kind != "Linear")


def _places(layer: ChainLayer, given: Mapping[str, Any]) -> NDArray[np.int64]:
    """For each place of a convolution's output, which elements of the row it takes; `size` for those in the padding."""
    channels, *sizes = layer.before
    kernel, stride, padding, dilation = (
        _each(given.get(name, other), len(sizes)) for name, other in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
    )
    if math.prod(layer.after[1:]) * channels * math.prod(kernel) > LARGEST_STEP:
        raise ModelRefusedError(f"a convolution has more than {LARGEST_STEP} products in one row: too large for shares")
    row = np.arange(math.prod(layer.before), dtype=np.int64).reshape(layer.before)
    padded = np.pad(row, [(0, 0), *((n, n) for n in padding)], constant_values=row.size)
    taken = padded
    for axis in range(len(sizes)):  # [channels, out…, kernel…] grows by one axis each time
        at = np.arange(layer.after[1 + axis])[:, None] * stride[axis] + np.arange(kernel[axis])[None, :] * dilation[axis]
        taken = np.moveaxis(np.take(taken, at, axis=1 + axis), 2 + axis, -1)
    count = len(sizes)
    order = (*range(1, 1 + count), 0, *range(1 + count, 1 + 2 * count))
    return np.ascontiguousarray(taken.transpose(order)).reshape(math.prod(layer.after[1:]), -1)


def _each(value: Any, count: int) -> Sequence[int]:
    return [int(n) for n in value] if isinstance(value, list | tuple) else [int(value)] * count


def _tensor(folder: Path, file: str, name: str) -> Reals:
    """One tensor of a safetensors file, as float64."""
    with open(inside(str(folder), file), "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        entry = json.loads(opened.read(length))[name]
        begin, end = entry["data_offsets"]
        opened.seek(8 + length + begin)
        data = opened.read(end - begin)
    if entry["dtype"] == "BF16":
        values = (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, dtype={"F64": "<f8", "F32": "<f4", "F16": "<f2"}[entry["dtype"]])
    made = values.astype(np.float64).reshape(entry["shape"])
    if not np.all(np.isfinite(made)):
        raise ModelRefusedError(f"tensor {name} has numbers that are not finite")
    return made
