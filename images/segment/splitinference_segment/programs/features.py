"""segment-features: what the first layers of a model make of inputs, and what the whole model says of them, to train a filter on.

Both are .npz files of numpy: x, or input_ids with attention_mask, become features [rows, n], layers, and outputs [rows, classes].
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from splitinference_segment.layer_filter import features_of
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.loading import load_layers
from splitinference_segment.torch_models.tensor_models.stateless import Stateless

_ROWS = 256


class WrongInputError(Exception):
    """The model or the inputs cannot be used; the message says why."""


def made(layers: Stateless, count: int, arrays: dict[str, Any]) -> tuple[Any, Any]:
    """Features behind `count` layers [rows, n] and outputs [rows, classes], both float32.

    Raises:
        WrongInputError: the arrays are not what the model takes, or it gives no classes.
    """
    tokens = layers.hidden > 0
    if not 1 <= count < layers.count:
        raise WrongInputError(f"--layers must be 1 to {layers.count - 1}, and is {count}")
    if ("input_ids" if tokens else "x") not in arrays:
        raise WrongInputError(f"the inputs have {', '.join(arrays) or 'nothing'}; this model takes {'input_ids' if tokens else 'x'}")
    groups = _by_length(arrays) if tokens else [range(at, min(at + _ROWS, len(arrays["x"]))) for at in range(0, len(arrays["x"]), _ROWS)]
    features: dict[int, Any] = {}
    outputs: dict[int, Any] = {}
    with torch.inference_mode():
        for rows in groups:
            values = torch.from_numpy(_rows_of_ids(arrays, rows)[None] if tokens else arrays["x"][list(rows)].astype(np.float32))
            hidden = layers.run_part(values, 0, count)
            said = layers.outputs(layers.run_part(hidden, count, layers.count)).get(layers.output)
            if said is None or said.dim() != 2:
                raise WrongInputError(
                    f"the model gives {'nothing' if said is None else list(said.shape)}; a filter needs one value a class"
                )
            features.update(zip(rows, features_of(hidden, tokens).numpy(), strict=True))
            outputs.update(zip(rows, said.numpy(), strict=True))
    return np.stack([features[row] for row in sorted(features)]), np.stack([outputs[row] for row in sorted(outputs)])


def _by_length(arrays: dict[str, Any]) -> list[Sequence[int]]:
    """Rows that have as many tokens."""
    mask = arrays.get("attention_mask", np.ones_like(arrays["input_ids"]))
    lengths = mask.astype(bool).sum(axis=1)
    found = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
    return [part.tolist() for rows in found for part in np.array_split(rows, -(-len(rows) // _ROWS))]


def _rows_of_ids(arrays: dict[str, Any], rows: Sequence[int]) -> Any:
    mask = arrays.get("attention_mask", np.ones_like(arrays["input_ids"])).astype(bool)
    return np.stack([arrays["input_ids"][row][mask[row]] for row in rows]).astype(np.int64)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 2 for what cannot be used."""
    parser = argparse.ArgumentParser(prog="segment-features", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="config.json and safetensors")
    parser.add_argument(
        "--layers", type=int, required=True, help="layers that the filter is over; of an encoder the embedding is the first"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="x, or input_ids and attention_mask")
    parser.add_argument("-o", "--output", type=Path, default=Path("features.npz"), help="where to write (default features.npz)")
    given = parser.parse_args(arguments)
    try:
        with np.load(given.data, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files if name in ("x", "input_ids", "attention_mask")}
        config_layers = _whole(given.model)
        features, outputs = made(config_layers, given.layers, arrays)
    except (WrongInputError, UnsupportedModelError, OSError, ValueError) as error:
        print(f"segment-features: {error}", file=sys.stderr)
        return 2
    np.savez(given.output, features=features, layers=given.layers, outputs=outputs)
    print(f"{given.output}: {len(features)} rows, {features.shape[1]} values behind {given.layers} layers, {outputs.shape[1]} classes")
    return 0


def _whole(folder: Path) -> Stateless:
    layers = load_layers(folder, 0, _count(folder), torch.float32)
    if isinstance(layers, Layers):
        raise WrongInputError(f"{folder}: a filter is for classifiers of texts and for generic chains, not for decoders")
    return layers


def _count(folder: Path) -> int:
    """Layers of the model."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return len(config["layers"]) if config.get("model_type") == "sequential" else int(config.get("num_hidden_layers", 0)) + 2


if __name__ == "__main__":
    sys.exit(main())
