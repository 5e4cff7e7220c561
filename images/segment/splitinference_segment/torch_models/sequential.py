"""Generic chains of tensors: layers in a row, each of one of PyTorch's own modules, as `torch.nn.Sequential` runs them.

`config.json` lists them (`model_type` is `sequential`); the weights are the chain's own `state_dict`, named `<index>.<tensor>`. No code of
the model's runs: a layer is a name of the list below and plain numbers.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from splitinference_modelfiles.stored.digests import Digests
from splitinference_protocol.wire.request import TensorMeta
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.stateless import NO_KV, as_tensor, not_taken
from splitinference_segment.torch_models.weights import Weights, fill

MODEL_TYPE = "sequential"
LAYER_TYPES: Mapping[str, type[nn.Module]] = {
    made.__name__: made
    for made in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten,
        nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softmax, nn.Identity,
    )
}  # fmt: skip


def build(config: Mapping[str, Any]) -> list[nn.Module]:
    """All layers of the chain, in order. UnsupportedModelError names the one that is not understood."""
    made = []
    for index, layer in enumerate(config["layers"]):
        arguments = dict(layer)
        kind = arguments.pop("type", None)
        if kind not in LAYER_TYPES:
            raise UnsupportedModelError(f"layers[{index}].type {kind!r} is not served; these are: {', '.join(LAYER_TYPES)}")
        try:
            made.append(LAYER_TYPES[kind](**arguments))
        except (TypeError, ValueError) as error:
            raise UnsupportedModelError(f"layers[{index}] ({kind}): {error}") from error
    return made


class SequentialLayers:
    """Layers [start, end) of the chain. Tensors between segments are [rows, …] in the serving dtype; the first takes float32."""

    def __init__(
        self, folder: Path, start: int, end: int, dtype: torch.dtype, *, device: str = "cpu", digests: Digests | None = None
    ) -> None:
        """Build and load. UnsupportedModelError, MissingWeightsError or MismatchError say why not."""
        config = json.loads((folder / "config.json").read_text())
        with torch.device("meta"):
            whole = nn.Sequential(*build(config)).to(dtype).eval().requires_grad_(False)
            shapes = [tuple(int(size) for size in config["input"]["shape"])]
            values = torch.empty((1, *shapes[0]), dtype=dtype)
            for module in whole:
                values = module(values)
                shapes.append(tuple(values.shape[1:]))
        count = len(whole)
        if not 0 <= start < end <= count:
            raise UnsupportedModelError(f"layers {start}:{end} are not in this model, which has 0:{count}")
        self.start, self.end, self.count = start, end, count
        self.kv_shape, self.hidden = NO_KV, 0
        self.is_first, self.is_last = start == 0, end == count
        self.dtype, self.device = dtype, torch.device(device)
        self._takes = shapes[start]
        self._output = str(config.get("output", {}).get("name", "output"))
        self._modules = list(whole[start:end])
        own = {str(start + offset): module for offset, module in enumerate(self._modules) if module.state_dict()}
        if own:
            fill(own, Weights(folder, digests), "", {}, dtype=dtype, device=self.device)

    def weight_bytes(self) -> int:
        """Bytes of weights held."""
        return sum(p.nbytes for module in self._modules for p in module.parameters())

    def values(self, tensor: TensorMeta, data: torch.Tensor, most_tokens: int) -> torch.Tensor:
        """[rows, …], of the shape that the first of these layers takes."""
        expected = "float32" if self.is_first else str(self.dtype).removeprefix("torch.")
        if tensor.dtype != expected or tensor.shape[1:] != self._takes:
            raise not_taken(self, f"{expected} [rows, {', '.join(map(str, self._takes))}]", tensor)
        return as_tensor(tensor, data)

    def example(self) -> torch.Tensor:
        """One row of zeros."""
        return torch.zeros((1, *self._takes), dtype=self.dtype)

    def run(self, values: torch.Tensor) -> torch.Tensor:
        """Run the layers on all rows."""
        values = values.to(self.device, self.dtype)
        for module in self._modules:
            values = module(values)
        return values

    def outputs(self, hidden: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The chain's one output."""
        return {self._output: hidden.float()}
