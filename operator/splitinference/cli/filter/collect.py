"""Asks a served model for its answers to inputs, so that a filter can be trained on them."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from splitinference.cli.errors import SplitError

_ROWS = 32
_SECONDS = 600
_DATATYPES = {"x": ("FP32", np.float32), "input_ids": ("INT64", np.int64), "attention_mask": ("INT64", np.int64)}


def collected(url: str, model: str, key: str | None, data: Path, output: Path) -> str:
    """Write the inputs and the model's outputs for them; what was done, in words. No filter and no kept answer stands in for the model.

    Raises:
        SplitError: the file has no inputs, or the model does not answer, or not with one value for each class.
    """
    arrays, asking = read_inputs(data), Asking(url, model, key)
    rows = len(next(iter(arrays.values())))
    made = np.concatenate([asking.outputs(arrays, slice(at, at + _ROWS), anew=True) for at in range(0, rows, _ROWS)])
    np.savez(output, outputs=made, **arrays)
    return f"{output}: {rows} rows with the {made.shape[1]} outputs of {model}"


def read_inputs(data: Path) -> dict[str, Any]:
    """`x`, or `input_ids` and perhaps `attention_mask`. SplitError where a file has neither, or rows that do not fit together."""
    try:
        with np.load(data, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files if name in _DATATYPES}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise SplitError(f"{data} cannot be read as a .npz file of numbers: {error}") from error
    if ("x" in arrays) == ("input_ids" in arrays):
        raise SplitError(f"{data} must have either x or input_ids")
    if any(values.ndim < 2 or not len(values) for values in arrays.values()) or len({len(values) for values in arrays.values()}) > 1:
        raise SplitError(f"{data} must have at least one row, and as many in each array")
    return arrays


class Asking:
    """A served model, asked over KServe v2."""

    def __init__(self, url: str, model: str, key: str | None) -> None:
        """SplitError for what is no URL."""
        if not url.startswith(("http://", "https://")):
            raise SplitError(f"--url must begin with http:// or https://, and is {url:.80}")
        self._base, self._model, self._key = f"{url.rstrip('/')}/v2/models/{model}", model, key
        self._input = ""

    def outputs(self, arrays: dict[str, Any], which: slice, *, anew: bool) -> Any:
        """Outputs [rows, classes] of some of the rows; `anew`: the model itself must answer.

        Raises:
            SplitError: it does not answer, or not with one value for each class.
        """
        inputs = []
        for name, values in arrays.items():
            datatype, dtype = _DATATYPES[name]
            rows = values[which].astype(dtype)
            known = self._input_name() if name == "x" else name
            inputs.append({"name": known, "datatype": datatype, "shape": list(rows.shape), "data": rows.ravel().tolist()})
        told = self._sent("/infer", json.dumps({"inputs": inputs}).encode(), anew=anew)
        count, given = inputs[0]["shape"][0], told.get("outputs", [])
        if len(given) != 1 or len(given[0].get("shape", ())) != 2 or given[0]["shape"][0] != count:
            shapes = ", ".join(f"{each.get('name')} {each.get('shape')}" for each in given)
            raise SplitError(f"{self._model} gives {shapes or 'nothing'}; a filter needs one output with one value for each class")
        return np.array(given[0]["data"], dtype=np.float32).reshape(given[0]["shape"])

    def _input_name(self) -> str:
        if not self._input:
            told = self._sent("", None, anew=False)
            try:
                self._input = str(told["inputs"][0]["name"])
            except (KeyError, IndexError, TypeError) as error:
                raise SplitError(f"{self._base} does not say what {self._model} takes") from error
        return self._input

    def _sent(self, path: str, body: bytes | None, *, anew: bool) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Cache-Control": "no-cache"} if anew else {})
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            told = json.loads(_answer(urllib.request.Request(self._base + path, body, headers)))
        except ValueError as error:
            raise SplitError(f"{self._base} cannot be asked: {error}") from error
        return dict(told)


def text_of(url: str) -> str:
    """What is at a URL. SplitError where it cannot be had."""
    if not url.startswith(("http://", "https://")):
        raise SplitError(f"{url:.80} must begin with http:// or https://")
    return _answer(urllib.request.Request(url)).decode(errors="replace")


def _answer(request: urllib.request.Request) -> bytes:
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise SplitError(f"{request.full_url}: {error.code} {error.read(500).decode(errors='replace')}") from error
    except OSError as error:
        raise SplitError(f"{request.full_url} cannot be asked: {error}") from error
