"""A model's folder without its numbers: the tensor tables of safetensors files, fields of `config.json`, and a digest of both."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BYTES_PER_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2}
_HEADER_LIMIT = 100 * 2**20


class UnreadableModel(Exception):
    """The model's files do not describe a model that can be cut; the message says what is missing or wrong."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its dtype as stored (`F32`, `BF16`, ...), its shape, its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


Tensors = dict[str, TensorInfo]


def parse_safetensors_header(data: bytes) -> dict[str, TensorInfo]:
    """The tensor table at the start of a safetensors file; `data` must hold at least the whole header.

    Raises UnreadableModel if the bytes are not such a header.
    """
    if len(data) < 8:
        raise UnreadableModel(f"safetensors header: {len(data)} bytes, at least 8 are needed")
    length = int.from_bytes(data[:8], "little")
    if length > _HEADER_LIMIT or length + 8 > len(data):
        raise UnreadableModel(f"safetensors header says {length} bytes of table, {len(data) - 8} are there")
    try:
        table = json.loads(data[8 : 8 + length])
        return {name: _tensor(name, entry) for name, entry in table.items() if name != "__metadata__"}
    except (ValueError, AttributeError, UnicodeDecodeError) as error:
        raise UnreadableModel(f"safetensors header is not a JSON object of tensors: {error}") from error


def safetensors_header_bytes(first_eight: bytes) -> int:
    """How many bytes from the start of the file `parse_safetensors_header` needs, told by the file's first eight."""
    if len(first_eight) < 8:
        raise UnreadableModel(f"safetensors file of {len(first_eight)} bytes has no header")
    length = int.from_bytes(first_eight[:8], "little")
    if length > _HEADER_LIMIT:
        raise UnreadableModel(f"safetensors header says {length} bytes of table; not a safetensors file")
    return 8 + length


def whole(config: Mapping[str, Any], *names: str) -> int:
    """A positive whole number of config.json, under the first of these names that is there. UnreadableModel otherwise."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        if value is not None:
            raise UnreadableModel(f"config.json: {name} is {value!r}, expected a positive whole number")
    raise UnreadableModel(f"config.json: {' or '.join(names)} is missing")


def elements(tensors: Mapping[str, TensorInfo]) -> int:
    """Numbers in all of them."""
    return sum(tensor.elements for tensor in tensors.values())


def content_digest(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """What names the model's content: configuration and tensor table."""
    table = {name: [t.dtype, list(t.shape), t.bytes] for name, t in tensors.items()}
    content = json.dumps([dict(config), table], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def _tensor(name: str, entry: Mapping[str, Any]) -> TensorInfo:
    try:
        begin, end = entry["data_offsets"]
        shape = tuple(int(n) for n in entry["shape"])
        if min((int(begin), int(end) - int(begin), *shape)) < 0:
            raise ValueError("negative shape or offsets")
        return TensorInfo(dtype=str(entry["dtype"]), shape=shape, bytes=int(end) - int(begin))
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableModel(f"safetensors header: tensor {name!r} is malformed: {error!r}") from error
