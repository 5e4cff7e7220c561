"""Labelled inputs from a file of numpy, and how they are parted."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from splitinference.cli.errors import SplitError
from splitinference_protocol.input_filter import MOST_INPUTS, MOST_LAYERS, Features, Of

LEAST_ROWS = 200
LEAST_OF_A_CLASS = 20
_NAMES = {"x": Of.VALUES, "input_ids": Of.TOKENS, "features": Of.LAYERS}


@dataclass(frozen=True)
class Labelled:
    """Inputs in the order in which they came, and what the model gave for them.

    `x`: values [rows, n] float32, or of tokens a list of the IDs that are in each row. `outputs` [rows, classes]. `layers`: behind how many
    layers the values are; 0: they are the input.
    """

    of: Of
    x: Any
    outputs: Any
    layers: int = 0

    @property
    def rows(self) -> int:
        """How many inputs."""
        return len(self.x)

    @property
    def classes(self) -> Any:
        """The class of each row: the largest output."""
        return self.outputs.argmax(axis=1)

    @property
    def inputs(self) -> int:
        """Values of a row; of tokens, IDs up to the largest one, and no more than a filter may have."""
        if self.of is not Of.TOKENS:
            return int(self.x.shape[1])
        return min(MOST_INPUTS, 1 + max(int(row.max()) for row in self.x))

    def take(self, which: Any) -> "Labelled":
        """Some of the rows."""
        x = [self.x[index] for index in which] if self.of is Of.TOKENS else self.x[which]
        return replace(self, x=x, outputs=self.outputs[which])

    def matrix(self, inputs: int) -> Any:
        """As numbers that a network reads, [rows, inputs]: dense, or of tokens sparse, in rows of length 1."""
        if self.of is not Of.TOKENS:
            return self.x
        there = [np.unique(row % inputs) for row in self.x]
        counts = np.array([len(row) for row in there])
        ends = np.concatenate([[0], np.cumsum(counts)])
        return csr_matrix((np.repeat(1 / np.sqrt(counts), counts), np.concatenate(there), ends), shape=(self.rows, inputs))

    def check_for(self, features: Features, file: Path) -> None:
        """SplitError where a filter sees something else of a row."""
        if (features.of, features.layers) != (self.of, self.layers):
            raise SplitError(f"the filter is over {_words(features.of, features.layers)}, {file} has {_words(self.of, self.layers)}")
        if self.of is not Of.TOKENS and self.inputs != features.inputs:
            raise SplitError(f"the filter takes {features.inputs} values a row, {file} has {self.inputs}")


def _words(of: Of, layers: int) -> str:
    return f"{of.value} behind {layers} layers" if of is Of.LAYERS else of.value


def read_labelled(file: Path) -> Labelled:
    """Inputs (`x`, `input_ids` or `features`), and `outputs` (what the model gave, [rows, classes]) or `y` (the class of each row).

    Raises:
        SplitError: the file is none, or has other arrays.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise SplitError(f"{file} cannot be read as a .npz file of numbers: {error}") from error
    named = [name for name in _NAMES if name in arrays]
    if len(named) != 1 or not {"y", "outputs"} & arrays.keys():
        has = ", ".join(sorted(arrays)) or "none"
        raise SplitError(f"{file} has the arrays {has}; one of x, input_ids and features is needed, and outputs or y")
    of = _NAMES[named[0]]
    x = _tokens(file, arrays) if of is Of.TOKENS else _values(file, named[0], arrays[named[0]])
    return Labelled(of, x, _outputs(file, arrays, len(x)), _layers(file, arrays) if of is Of.LAYERS else 0)


def check_classes(data: Labelled, useless: int, file: Path) -> None:
    """SplitError where there is no such class, or too few rows of it or of others."""
    if not 0 <= useless < data.outputs.shape[1]:
        raise SplitError(f"class {useless} does not exist: {file} has the classes 0 to {data.outputs.shape[1] - 1}")
    hits = int((data.classes == useless).sum())
    if data.rows < LEAST_ROWS or min(hits, data.rows - hits) < LEAST_OF_A_CLASS:
        raise SplitError(
            f"a filter needs both classes: {file} has {hits} rows of class {useless} and {data.rows - hits} of others; at least "
            f"{LEAST_OF_A_CLASS} of each and {LEAST_ROWS} in all are needed"
        )


def check_varied(data: Labelled, file: Path) -> None:
    """SplitError where the model nearly always says the same: then nothing shows which rows are alike."""
    counts = np.sort(np.bincount(data.classes, minlength=2))[::-1]
    if data.rows < LEAST_ROWS or counts[1] < LEAST_OF_A_CLASS:
        raise SplitError(
            f"reuse needs two classes at least: the most frequent classes in {file} have {counts[0]} and {counts[1]} rows; at least "
            f"{LEAST_OF_A_CLASS} of each and {LEAST_ROWS} rows in all are needed"
        )


def _values(file: Path, name: str, x: Any) -> Any:
    if x.dtype.kind not in "fiu" or x.ndim < 2 or not np.isfinite(x).all():
        raise SplitError(f"{file}: {name} must be finite numbers of shape [rows, …], and is {x.dtype} of shape {list(x.shape)}")
    return x.reshape(len(x), -1).astype(np.float32)


def _tokens(file: Path, arrays: dict[str, Any]) -> list[Any]:
    ids = arrays["input_ids"]
    if ids.dtype.kind not in "iu" or ids.ndim != 2 or ids.min(initial=0) < 0:
        raise SplitError(f"{file}: input_ids must be whole numbers from 0 of shape [rows, tokens], and is {ids.dtype} of {list(ids.shape)}")
    mask = arrays.get("attention_mask", np.ones(ids.shape, dtype=np.int64))
    if mask.shape != ids.shape or mask.dtype.kind not in "iub" or (mask.astype(bool).sum(axis=1) == 0).any():
        raise SplitError(f"{file}: attention_mask must be of shape {list(ids.shape)}, with at least one token in each row")
    return [row[kept.astype(bool)].astype(np.int64) for row, kept in zip(ids, mask, strict=True)]


def _layers(file: Path, arrays: dict[str, Any]) -> int:
    told = arrays.get("layers", np.array(0))
    if told.dtype.kind not in "iu" or told.size != 1 or not 1 <= int(told.reshape(-1)[0]) <= MOST_LAYERS:
        raise SplitError(f"{file}: with features, layers must be one whole number from 1: behind how many layers they are")
    return int(told.reshape(-1)[0])


def _outputs(file: Path, arrays: dict[str, Any], rows: int) -> Any:
    if "outputs" in arrays:
        outputs = arrays["outputs"]
        if (
            outputs.dtype.kind not in "fiu"
            or outputs.ndim != 2
            or len(outputs) != rows
            or outputs.shape[1] < 2
            or not np.isfinite(outputs).all()
        ):
            raise SplitError(f"{file}: outputs must be finite numbers of shape [{rows}, 2 or more], and has {list(outputs.shape)}")
        return outputs
    y = arrays["y"]
    if y.dtype.kind not in "iu" or y.shape != (rows,) or y.min(initial=0) < 0:
        raise SplitError(f"{file}: y must be {rows} whole numbers from 0, and is {y.dtype} of shape {list(y.shape)}")
    return np.eye(max(2, int(y.max(initial=0)) + 1))[y]
