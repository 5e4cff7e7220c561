"""Labelled inputs from a file of numpy, and how they are parted."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitinference.cli.errors import SplitError

LEAST_ROWS = 200
LEAST_OF_A_CLASS = 20


@dataclass(frozen=True)
class Labelled:
    """`x` [rows, values] float32; `useless` [rows]: the answer is the useless class; `answer` [classes]: what a skipped row gets."""

    x: Any
    useless: Any
    answer: Any

    @property
    def rows(self) -> int:
        """How many inputs."""
        return len(self.x)

    def take(self, which: Any) -> "Labelled":
        """Some of the rows."""
        return Labelled(self.x[which], self.useless[which], self.answer)


def read_labelled(file: Path, useless_class: int) -> Labelled:
    """`x`, and `outputs` (what the model gave, [rows, classes]) or `y` (the class of each row), from an .npz file.

    Raises:
        SplitError: the file is none, has other arrays, or one of the two classes is missing in it.
    """
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise SplitError(f"{file} cannot be read as a .npz file of numbers: {error}") from error
    if "x" not in arrays or not {"y", "outputs"} & arrays.keys():
        raise SplitError(f"{file} has the arrays {', '.join(sorted(arrays)) or 'none'}; x is needed, and outputs or y")
    x = arrays["x"]
    if x.dtype.kind not in "fiu" or x.ndim < 2 or not np.isfinite(x).all():
        raise SplitError(f"{file}: x must be finite numbers of shape [rows, …], and is {x.dtype} of shape {list(x.shape)}")
    outputs = _outputs(file, arrays, len(x))
    if not 0 <= useless_class < outputs.shape[1]:
        raise SplitError(f"class {useless_class} does not exist: {file} has the classes 0 to {outputs.shape[1] - 1}")
    useless = outputs.argmax(axis=1) == useless_class
    few = min(int(useless.sum()), int((~useless).sum()))
    if len(x) < LEAST_ROWS or few < LEAST_OF_A_CLASS:
        raise SplitError(
            f"a filter needs both classes: {file} has {int(useless.sum())} rows of class {useless_class} and {int((~useless).sum())} of "
            f"others; at least {LEAST_OF_A_CLASS} of each and {LEAST_ROWS} in all are needed"
        )
    return Labelled(x.reshape(len(x), -1).astype(np.float32), useless, outputs[useless].mean(axis=0))


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
