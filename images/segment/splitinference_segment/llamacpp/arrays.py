"""numpy's arrays for the llama.cpp engine. Hidden states are float32 with values that the wire's data type has, so that segments on both
sides of a link, and a record of it, agree; token ids are int64."""

from collections.abc import Sequence

import numpy as np

from splitinference_protocol.wire.errors import BAD_REQUEST, SegmentError
from splitinference_protocol.wire.request import INT8, INT8_BLOCK, TensorMeta
from splitinference_segment.verdicts import LARGEST, LEAST, WRONG, Verdict


class NumpyArrays:
    """Arrays for one data type of the wire: float32, bfloat16 or float16."""

    def __init__(self, dtype: str) -> None:
        """`dtype` as in SI_DTYPE."""
        self._dtype = dtype

    def received(self, tensor: TensorMeta, data: memoryview) -> np.ndarray:
        """Ids as they are, hidden states as float32."""
        if tensor.byte_size != len(data):
            raise SegmentError(BAD_REQUEST, f"DATA has {len(data)} bytes, the tensor needs {tensor.byte_size}")
        if tensor.encoding == INT8:
            return rounded(decoded(data, tensor.shape), self._dtype)
        if tensor.dtype == "int64":
            return np.frombuffer(data, np.int64).reshape(tensor.shape)
        return widened(data, tensor.dtype).reshape(tensor.shape)

    def data(self, values: np.ndarray, encoding: str) -> bytes:
        """In the wire's data type, or in int8 with scales."""
        return encoded(values) if encoding == INT8 else narrowed(values, self._dtype)

    def float32(self, values: np.ndarray) -> bytes:
        """As they are."""
        return np.ascontiguousarray(values, np.float32).tobytes()

    def name(self, values: np.ndarray) -> str:
        """Such as bfloat16."""
        return "int64" if values.dtype == np.int64 else self._dtype

    def kept(self, values: np.ndarray) -> np.ndarray:
        """A copy."""
        return values.copy()

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """One after the other."""
        return np.concatenate(list(parts)) if parts else np.empty(0, np.float32)

    def finite(self, values: np.ndarray) -> bool:
        """Neither infinite nor no number."""
        return bool(np.isfinite(values).all())

    def verdict(self, expected: np.ndarray, received: np.ndarray, position: int) -> Verdict:
        """The rule of comparison.py, in numpy."""
        found = errors(expected, received)
        at = int(found.argmax())
        return Verdict(len(found), float(found.mean()), float(found[at]), position + at)


def narrowed(values: np.ndarray, dtype: str) -> bytes:
    """float32 in the bytes of another float type, rounded to nearest even."""
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "float32":
        return values.tobytes()
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).tobytes()
    bits = values.view(np.uint32)
    upper = bits >> np.uint32(16)
    up = (bits + ((upper & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    if (special := np.isnan(values)).any():
        up = np.where(special, upper | np.uint32(0x40), up)
    return up.astype(np.uint16).tobytes()


def widened(data: bytes | memoryview, dtype: str) -> np.ndarray:
    """The inverse: float32 [values]."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype)).astype(np.float32)


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 with values that the data type has."""
    return values if dtype == "float32" else widened(narrowed(values, dtype), dtype).reshape(values.shape)


def encoded(hidden: np.ndarray) -> bytes:
    """[tokens, hidden] in 8 bits, with a float32 scale for each block of neighbours: all scales, then all values (as encoding.py)."""
    rows, width = hidden.shape
    values = np.pad(hidden.astype(np.float32), ((0, 0), (0, -width % INT8_BLOCK))).reshape(rows, -1, INT8_BLOCK)
    scales = np.abs(values).max(axis=-1) / np.float32(127.0)
    whole = np.where(scales > 0, scales, np.float32(1.0))[..., None]
    with np.errstate(invalid="ignore"):
        steps = np.nan_to_num(np.rint(values / whole), nan=0.0, posinf=0.0, neginf=0.0).astype(np.int8)
    data: bytes = scales.astype(np.float32).tobytes() + steps.tobytes()
    return data


def decoded(data: memoryview, shape: Sequence[int]) -> np.ndarray:
    """The inverse, float32 of this shape. What was not finite makes its block not finite."""
    rows, width = shape
    blocks = -(-width // INT8_BLOCK)
    scales = np.frombuffer(data[: rows * blocks * 4], np.float32).reshape(rows, blocks, 1)
    steps = np.frombuffer(data[rows * blocks * 4 :], np.int8).reshape(rows, blocks, INT8_BLOCK)
    return np.ascontiguousarray((steps.astype(np.float32) * scales).reshape(rows, -1)[:, :width])


def errors(expected: np.ndarray, received: np.ndarray) -> np.ndarray:
    """Relative error of each token, float32 [tokens]; comparison.errors says how."""
    count = min(LARGEST, expected.shape[1] // 2)
    large = np.zeros(expected.shape, bool)
    if count:
        np.put_along_axis(large, np.argpartition(-np.abs(expected), count - 1, axis=1)[:, :count], True, axis=1)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = received - expected
        found = np.maximum(*(_relative(np.where(part, difference, 0.0), np.where(part, expected, 0.0)) for part in (large, ~large)))
    found = np.where(np.isfinite(found) & np.isfinite(received).all(axis=1), found, WRONG)
    return np.minimum(found, WRONG).astype(np.float32)


def _relative(difference: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    norms: np.ndarray = np.linalg.norm(difference, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), LEAST)
    return norms
