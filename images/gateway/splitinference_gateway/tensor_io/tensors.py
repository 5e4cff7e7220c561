"""Typed tensors as KServe v2 clients send and read them: name, datatype, shape, and little-endian bytes in row-major order."""

import array
import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_gateway.errors import invalid

ITEM_BYTES: Mapping[str, int] = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8,
    "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
_TYPECODES: Mapping[str, str] = {"INT32": "i", "INT64": "q", "FP32": "f", "FP64": "d"}
_MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes or gives under one name; -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def check(self, tensor: "Tensor") -> None:
        """Raise ApiError 400 if the tensor is another."""
        accepted = ("INT64", "INT32") if self.datatype == "INT64" else (self.datatype,)
        if tensor.datatype not in accepted:
            raise invalid(f"Input '{self.name}' is {tensor.datatype}, expected {' or '.join(accepted)}.", self.name, "invalid_type")
        fits = len(tensor.shape) == len(self.shape) and all(w in (-1, s) for w, s in zip(self.shape, tensor.shape, strict=True))
        if not fits or 0 in tensor.shape:
            raise invalid(f"Input '{self.name}' has shape {list(tensor.shape)}, expected {list(self.shape)}.", self.name, "invalid_value")


@dataclass(frozen=True)
class Tensor:
    """A tensor's content. `make` checks that there are as many bytes as the shape says."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @classmethod
    def make(cls, name: str, datatype: str, shape: object, data: bytes) -> "Tensor":
        """From bytes.

        Raises:
            ApiError: 400, the datatype is not known, or shape and bytes do not agree.
        """
        sizes = checked_shape(name, shape)
        if datatype not in ITEM_BYTES:
            raise invalid(f"Input '{name}' has datatype {datatype!r:.40}, expected one of {', '.join(ITEM_BYTES)}.", name, "invalid_type")
        needed = math.prod(sizes) * ITEM_BYTES[datatype]
        if len(data) != needed:
            raise invalid(f"Input '{name}' has {len(data)} bytes; {datatype} {list(sizes)} needs {needed}.", name, "invalid_value")
        return cls(name, datatype, sizes, data)

    @classmethod
    def of_numbers(cls, name: str, datatype: str, shape: object, numbers: object) -> "Tensor":
        """From (nested) lists of numbers, as JSON has them.

        Raises:
            ApiError: 400, as for `make`, or for what is no number of this datatype.
        """
        flat: list[Any] = []
        _flatten(numbers, flat)
        if datatype not in _TYPECODES:
            kinds = ", ".join(_TYPECODES)
            raise invalid(f"Input '{name}' is {datatype!r:.40}; as numbers these are accepted: {kinds}.", name, "invalid_type")
        whole = datatype.startswith("INT")
        if any(isinstance(value, bool) or not isinstance(value, int if whole else int | float) for value in flat):
            raise invalid(f"Input '{name}' has a value that is no {datatype}.", name, "invalid_type")
        try:
            packed = array.array(_TYPECODES[datatype], flat)
        except (OverflowError, TypeError) as error:
            raise invalid(f"Input '{name}' has a value that is no {datatype}: {error}.", name, "invalid_value") from error
        return cls.make(name, datatype, shape, _little(packed).tobytes())

    def integers(self) -> "array.array[int]":
        """All values of an INT64 or INT32 tensor."""
        return _little(array.array(_TYPECODES[self.datatype], self.data))

    def numbers(self) -> list[float]:
        """All values of a tensor of numbers, for JSON."""
        if self.datatype == "FP16":
            return list(struct.unpack(f"<{len(self.data) // 2}e", self.data))
        return _little(array.array(_TYPECODES[self.datatype], self.data)).tolist()


def little_endian(values: Sequence[int]) -> bytes:
    """INT64 values as bytes."""
    return _little(array.array("q", values)).tobytes()


def checked_shape(name: str, shape: object) -> tuple[int, ...]:
    """A shape from JSON. ApiError 400 when it is none."""
    good = isinstance(shape, list | tuple) and 1 <= len(shape) <= _MOST_DIMENSIONS
    if not good or not isinstance(shape, list | tuple) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise invalid(f"Input '{name}' has shape {shape!r:.80}, expected a list of whole numbers.", name, "invalid_value")
    return tuple(shape)


def _flatten(numbers: object, into: list[Any]) -> None:
    pending = [numbers]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending.extend(reversed(value))
        else:
            into.append(value)


def _little(values: "array.array[Any]") -> "array.array[Any]":
    if sys.byteorder == "big":
        values.byteswap()
    return values
