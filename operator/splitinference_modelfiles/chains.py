"""Generic chains of PyTorch's layers: which layers and arguments are served, and what shapes reach each and leave it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

Shape = tuple[int, ...]
ARGUMENTS: Mapping[str, frozenset[str]] = {
    "Linear": frozenset({"in_features", "out_features", "bias"}),
    "Conv1d": frozenset({"in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"}),
    "Conv2d": frozenset({"in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"}),
    "LayerNorm": frozenset({"normalized_shape", "eps", "elementwise_affine", "bias"}),
    "BatchNorm1d": frozenset({"num_features", "eps", "momentum", "affine"}),
    "BatchNorm2d": frozenset({"num_features", "eps", "momentum", "affine"}),
    "MaxPool2d": frozenset({"kernel_size", "stride", "padding", "dilation"}),
    "AvgPool2d": frozenset({"kernel_size", "stride", "padding", "count_include_pad"}),
    "Flatten": frozenset(),
    "ReLU": frozenset({"inplace"}),
    "GELU": frozenset({"approximate"}),
    "SiLU": frozenset({"inplace"}),
    "Tanh": frozenset(),
    "Sigmoid": frozenset(),
    "Softmax": frozenset({"dim"}),
    "Identity": frozenset(),
}


@dataclass(frozen=True)
class ChainLayer:
    """One layer: the shape of a row before and after it, and its tensors."""

    kind: str
    before: Shape
    after: Shape
    tensors: Mapping[str, Shape]


def layers_of(config: Mapping[str, Any]) -> list[ChainLayer]:
    """All layers in order. ModelRefusedError names the one that is not served."""
    try:
        given, shape = list(config["layers"]), tuple(int(n) for n in config["input"]["shape"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelRefusedError(f"config.json: layers and input.shape are needed: {error!r}") from error
    if not given:
        raise ModelRefusedError("config.json: layers is empty")
    if min(shape, default=0) < 1:
        raise ModelRefusedError(f"config.json: input.shape is {list(shape)}, expected positive whole numbers")
    found = []
    for index, layer in enumerate(given):
        kind = str(layer.get("type")) if isinstance(layer, Mapping) else str(layer)[:60]
        try:
            made = _layer(kind, layer, shape)
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
            words = str(error) if isinstance(error, ValueError) else f"{error!r} is missing or of a wrong type"
            raise ModelRefusedError(f"config.json: layers[{index}] ({kind}) on rows of shape {list(shape)}: {words}") from error
        found.append(made)
        shape = made.after
    return found


def used(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo | None]) -> dict[str, str]:
    """The chain's tensors, which are stored under their own names: exactly those that its layers have."""
    expected = {f"{index}.{name}": shape for index, layer in enumerate(layers_of(config)) for name, shape in layer.tensors.items()}
    for name in tensors:
        if name not in expected:
            raise ModelRefusedError(f"tensor {name} belongs to none of the {len(config['layers'])} layers of config.json")
    for name, shape in expected.items():
        if name not in tensors:
            raise ModelRefusedError(f"tensor {name} is missing")
        tensor = tensors[name]
        if tensor is not None and tensor.shape != shape:
            raise ModelRefusedError(f"tensor {name} has shape {list(tensor.shape)}, config.json says {list(shape)}")
        if tensor is not None and tensor.dtype not in ("F64", "F32", "F16", "BF16", "I64"):
            raise ModelRefusedError(f"tensor {name} is stored as {tensor.dtype}; served are BF16, F16, F32, F64")
    return {name: name for name in expected}


def _layer(kind: str, layer: Mapping[str, Any], shape: Shape) -> ChainLayer:
    if kind not in ARGUMENTS:
        raise ValueError(f"this type of layer is not served; these are: {', '.join(ARGUMENTS)}")
    if unknown := sorted(set(layer) - ARGUMENTS[kind] - {"type"}):
        raise ValueError(f"the argument {unknown[0]!r} is not served")
    if kind == "Linear":
        inner, outer = _natural(layer["in_features"]), _natural(layer["out_features"])
        _fits("in_features", inner, shape[-1])
        return ChainLayer(kind, shape, (*shape[:-1], outer), _weights(layer.get("bias", True), (outer, inner)))
    if kind == "Flatten":
        return ChainLayer(kind, shape, (math.prod(shape),), {})
    if kind == "LayerNorm":
        given = layer["normalized_shape"]
        size = tuple(_natural(n) for n in given) if isinstance(given, list) else (_natural(given),)
        _fits("normalized_shape", size, shape[-len(size) :])
        if not layer.get("elementwise_affine", True):
            return ChainLayer(kind, shape, shape, {})
        return ChainLayer(kind, shape, shape, {"weight": size} | ({"bias": size} if layer.get("bias", True) else {}))
    if kind.startswith("BatchNorm"):
        count = _natural(layer["num_features"])
        _fits("num_features", count, shape[0])
        if len(shape) not in ((3,) if kind.endswith("2d") else (1, 2)):
            raise ValueError("the row has another number of dimensions than the layer")
        affine = {"weight": (count,), "bias": (count,)} if layer.get("affine", True) else {}
        return ChainLayer(kind, shape, shape, affine | {"running_mean": (count,), "running_var": (count,), "num_batches_tracked": ()})
    if kind in ("Conv1d", "Conv2d", "MaxPool2d", "AvgPool2d"):
        return _sliding(kind, layer, shape)
    if kind == "GELU" and layer.get("approximate", "none") not in ("none", "tanh"):
        raise ValueError("approximate should be 'none' or 'tanh'")
    return ChainLayer(kind, shape, shape, {})


def _sliding(kind: str, layer: Mapping[str, Any], shape: Shape) -> ChainLayer:
    sizes, kernel, conv = shape[1:], layer["kernel_size"], kind.startswith("Conv")
    if len(sizes) != int(kind[-2]):
        raise ValueError("the row has another number of dimensions than the layer")
    stride = layer.get("stride")
    stride = (1 if conv else kernel) if stride is None else stride
    padding, dilation = layer.get("padding", 0), layer.get("dilation", 1)
    after = [(n + 2 * _at(padding, i) - _at(dilation, i) * (_at(kernel, i) - 1) - 1) // _at(stride, i) + 1 for i, n in enumerate(sizes)]
    if min(after) < 1:
        raise ValueError("nothing is left")
    if not conv:
        return ChainLayer(kind, shape, (shape[0], *after), {})
    inner, outer, groups = _natural(layer["in_channels"]), _natural(layer["out_channels"]), _natural(layer.get("groups", 1))
    _fits("in_channels", inner, shape[0])
    if inner % groups or outer % groups:
        raise ValueError(f"{inner} and {outer} channels cannot be parted in {groups} groups")
    weight = (outer, inner // groups, *(_at(kernel, i) for i in range(len(sizes))))
    return ChainLayer(kind, shape, (outer, *after), _weights(layer.get("bias", True), weight))


def _weights(bias: object, weight: Shape) -> dict[str, Shape]:
    return {"weight": weight} | ({"bias": weight[:1]} if bias else {})


def _fits(name: str, given: object, there: object) -> None:
    if given != there:
        raise ValueError(f"{name} is {given}, the row has {there}")


def _natural(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no positive whole number")
    return value


def _at(value: Any, index: int) -> int:
    """One number for all dimensions, or one for each."""
    return int(value[index] if isinstance(value, list) else value)
