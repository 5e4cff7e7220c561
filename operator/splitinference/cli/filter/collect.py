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
    try:
        with np.load(data, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files if name in _DATATYPES}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise SplitError(f"{data} cannot be read as a .npz file of numbers: {error}") from error
    if ("x" in arrays) == ("input_ids" in arrays):
        raise SplitError(f"{data} must have either x or input_ids")
    first = arrays.get("x", arrays.get("input_ids"))
    rows = len(first) if first is not None else 0
    if not rows or any(len(each) != rows for each in arrays.values()):
        raise SplitError(f"{data} must have at least one row, and as many in each array")
    name = _input_name(url, model, key) if "x" in arrays else ""
    outputs = []
    for start in range(0, rows, _ROWS):
        given = {name if each == "x" else each: (each, values[start : start + _ROWS]) for each, values in arrays.items()}
        outputs.append(_asked(url, model, key, given))
    made = np.concatenate(outputs)
    kept = {each: values for each, values in arrays.items() if each != "x"} | ({"x": first} if "x" in arrays else {})
    np.savez(output, outputs=made, **kept)
    return f"{output}: {rows} rows with the {made.shape[1]} outputs of {model}"


def _asked(url: str, model: str, key: str | None, given: dict[str, tuple[str, Any]]) -> Any:
    inputs = []
    for name, (kind, values) in given.items():
        datatype, dtype = _DATATYPES[kind]
        inputs.append({"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.astype(dtype).ravel().tolist()})
    told = _sent(f"{url.rstrip('/')}/v2/models/{model}/infer", key, json.dumps({"inputs": inputs}).encode())
    rows = next(iter(given.values()))[1].shape[0]
    fitting = [each for each in told.get("outputs", []) if len(each.get("shape", ())) == 2 and each["shape"][0] == rows]
    if len(told.get("outputs", [])) != 1 or not fitting:
        shapes = ", ".join(f"{each.get('name')} {each.get('shape')}" for each in told.get("outputs", []))
        raise SplitError(f"{model} gives {shapes or 'nothing'}; a filter needs one output with one value for each class")
    return np.array(fitting[0]["data"], dtype=np.float32).reshape(fitting[0]["shape"])


def _input_name(url: str, model: str, key: str | None) -> str:
    told = _sent(f"{url.rstrip('/')}/v2/models/{model}", key, None)
    try:
        return str(told["inputs"][0]["name"])
    except (KeyError, IndexError, TypeError) as error:
        raise SplitError(f"{url} does not say what {model} takes") from error


def _sent(url: str, key: str | None, body: bytes | None) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"} | ({"Authorization": f"Bearer {key}"} if key else {})
    if not url.startswith(("http://", "https://")):
        raise SplitError(f"--url must begin with http:// or https://, and is {url:.80}")
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=_SECONDS) as answer:
            told = json.load(answer)
    except urllib.error.HTTPError as error:
        raise SplitError(f"{url}: {error.code} {error.read(500).decode(errors='replace')}") from error
    except (OSError, ValueError) as error:
        raise SplitError(f"{url} cannot be asked: {error}") from error
    return dict(told)
