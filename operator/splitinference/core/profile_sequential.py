"""Layers of a generic chain: what each of torch's own layers costs for one row, from its parameters and the shape that reaches it.

A row is what the cost model calls a token: a request of `promptTokens` rows.
"""

import math
from collections.abc import Mapping
from typing import Any

from splitinference.core.model_files import TensorInfo, Tensors, UnreadableModel, elements
from splitinference.core.profile import Layer, LayerKind

SEQUENTIAL = "sequential"
_SAME_SHAPE = frozenset(
    {"LayerNorm", "BatchNorm1d", "BatchNorm2d", "ReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "Softmax", "Identity"}
)  # fmt: skip
Shape = tuple[int, ...]


def sequential_layers(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], size: int) -> list[Layer]:
    """Every layer of the chain may be cut before; `size` is bytes per element. Raises UnreadableModel."""
    try:
        given, shape = list(config["layers"]), tuple(int(n) for n in config["input"]["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableModel(f"config.json: layers and input.shape are needed: {error!r}") from error
    if not given:
        raise UnreadableModel("config.json: layers is empty")
    own: list[Tensors] = [{} for _ in given]
    for name, tensor in tensors.items():
        number = name.partition(".")[0]
        if not number.isdigit() or int(number) >= len(given):
            raise UnreadableModel(f"tensor {name} belongs to none of the {len(given)} layers of config.json")
        own[int(number)][name] = tensor
    layers = []
    for index, layer in enumerate(given):
        kind = str(layer.get("type")) if isinstance(layer, Mapping) else str(layer)
        try:
            after = _shape_after(kind, layer, shape)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            raise UnreadableModel(f"config.json: layers[{index}] ({kind}) on rows of shape {list(shape)}: {error!r}") from error
        matrices = sum(tensor.elements for tensor in own[index].values() if len(tensor.shape) >= 2)
        places = math.prod(after[1:]) if kind.startswith("Conv") else math.prod(after[:-1])
        layers.append(
            Layer(
                index=index,
                name=f"{index} {kind}",
                kind=LayerKind.GENERIC,
                weight_bytes=elements(own[index]) * size,
                flops_per_token=2.0 * matrices * places if matrices else float(math.prod(shape)),
                boundary_bytes_per_token=math.prod(after) * (4 if index == len(given) - 1 else size),
            )
        )
        shape = after
    return layers


def _shape_after(kind: str, layer: Mapping[str, Any], shape: Shape) -> Shape:
    if kind in _SAME_SHAPE:
        return shape
    if kind == "Linear":
        return (*shape[:-1], int(layer["out_features"]))
    if kind == "Flatten":
        return (math.prod(shape),)
    if kind in ("Conv1d", "Conv2d", "MaxPool2d", "AvgPool2d"):
        sizes, kernel = shape[1:], layer["kernel_size"]
        stride = layer.get("stride", 1 if kind.startswith("Conv") else kernel)
        padding, dilation = layer.get("padding", 0), layer.get("dilation", 1)
        after = [(n + 2 * _at(padding, i) - _at(dilation, i) * (_at(kernel, i) - 1) - 1) // _at(stride, i) + 1 for i, n in enumerate(sizes)]
        if min(after) < 1:
            raise ValueError("nothing is left")
        return (int(layer["out_channels"]) if kind.startswith("Conv") else shape[0], *after)
    raise ValueError("this type of layer is not served")


def _at(value: Any, index: int) -> int:
    """One number for all dimensions, or one for each."""
    return int(value[index] if isinstance(value, list) else value)
