"""GGUF files: header, metadata and tensor table, read in pieces, so that a remote file is never fetched whole. Its text also runs in pods.

The format is that of ggml's `docs/gguf.md`, versions 2 and 3, little-endian; the checks are those of its own reader (`gguf.cpp`), and
bounds on what a hostile file may cost. Split models are parts `…-00001-of-0000N.gguf`, of which the first has the metadata.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

GGUF_SUFFIX = ".gguf"
GGUF_HEADER_LIMIT = 64 * 2**20
"""Bytes of all that precedes the tensors' data. The largest known, with 260 thousand tokens, has a quarter of this."""
MOST_GGUF_TENSORS = 65536
MOST_GGUF_KEYS = 4096
MOST_GGUF_VALUES = 3_000_000
"""Values of all lists together. The largest known vocabulary has 1.2 million, with its merges."""
MOST_GGUF_PARTS = 1000
DEFAULT_ALIGNMENT = 32
FIRST_PIECE, LARGEST_PIECE = 1 << 18, 1 << 22
"""Bytes of the first read; each further one is twice as long, up to the largest."""

GGUF_TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""ggml's number of a type → its name, values of one block, bytes of one block."""
QUANTIZED = frozenset(name for name, block, _ in GGUF_TYPES.values() if block > 1)

Reader = Callable[[int, int], bytes]
"""Offset, count → that many bytes of the file, or fewer at its end."""
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes lie: the file, by name, and the offset in it."""

    file: str
    offset: int


@dataclass(frozen=True)
class GgufFile:
    """One file. Shapes have rows before columns, as in torch: the reverse of ggml's order. `data_start`: bytes before the tensors' data."""

    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place]
    data_start: int


class _Cursor:
    """Reads on from where it is, in pieces. ModelRefusedError where the file ends, or where the header is too long."""

    def __init__(self, read: Reader, file: str) -> None:
        self.file = file
        self.at = 0
        self._read = read
        self._data = bytearray()
        self._piece = FIRST_PIECE
        self.values = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.at + count
        if end > GGUF_HEADER_LIMIT:
            raise ModelRefusedError(f"{self.file}: its metadata and tensor table are longer than {GGUF_HEADER_LIMIT} bytes")
        while len(self._data) < end:
            got = self._read(len(self._data), self._piece)
            if not got:
                raise ModelRefusedError(f"{self.file} is cut short: it ends after {len(self._data)} bytes, inside its header")
            self._data += got
            self._piece = min(2 * self._piece, LARGEST_PIECE)
        found = bytes(self._data[self.at : end])
        self.at = end
        return found

    def number(self, form: str) -> Any:
        """One number of this form of `struct`, little-endian."""
        return struct.unpack("<" + form, self.take(struct.calcsize("<" + form)))[0]

    def text(self) -> str:
        """A string with its length before it. Bytes that are no UTF-8 are kept as surrogates: some tokens are no whole characters."""
        return self.take(self.number("Q")).decode("utf-8", "surrogateescape")

    def spend(self, count: int) -> None:
        """Count values of lists. ModelRefusedError where there are too many."""
        self.values += count
        if self.values > MOST_GGUF_VALUES:
            raise ModelRefusedError(f"{self.file}: its metadata has lists of more than {MOST_GGUF_VALUES} values")

    @property
    def header(self) -> bytes:
        """All that was taken so far."""
        return bytes(self._data[: self.at])


def read_gguf(read: Reader, file: str, size: int | None) -> GgufFile:
    """The header of `file`, which has `size` bytes (None: not known). ModelRefusedError says what is wrong."""
    return read_gguf_with_header(read, file, size)[0]


def read_gguf_with_header(read: Reader, file: str, size: int | None) -> tuple[GgufFile, bytes]:
    """The same, and the header's own bytes, without the padding after them."""
    cursor = _Cursor(read, file)
    version, tensors, keys = _start(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(keys):
        key = cursor.text()
        if not key or len(key) > 4096:
            raise ModelRefusedError(f"{file}: a metadata key has {len(key)} characters")
        if key in metadata:
            raise ModelRefusedError(f"{file}: the metadata key {key[:100]!r} occurs twice")
        metadata[key] = _value(cursor, key, cursor.number("I"))
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 65536 or alignment & (alignment - 1):
        raise ModelRefusedError(f"{file}: general.alignment is {str(alignment)[:20]}, expected a power of two from 8 to 65536")
    entries = [_entry(cursor) for _ in range(tensors)]
    data_start = _padded(cursor.at, alignment)
    table, places = _laid_out(entries, file, data_start, alignment)
    end = max((places[name].offset + info.bytes for name, info in table.items()), default=0)
    if size is not None and size < end:
        raise ModelRefusedError(f"{file} is cut short: it has {size} bytes, its tensors end after {end}")
    return GgufFile(version, metadata, table, places, data_start), cursor.header


def _start(cursor: _Cursor) -> tuple[int, int, int]:
    magic = cursor.take(4)
    if magic != b"GGUF":
        raise ModelRefusedError(f"{cursor.file} is not a GGUF file: it begins with {magic!r}")
    version = cursor.number("I")
    if version and not version & 0xFFFF:
        raise ModelRefusedError(f"{cursor.file} is a big-endian GGUF file; little-endian files are served")
    if version not in (2, 3):
        raise ModelRefusedError(f"{cursor.file} has version {version} of GGUF; served are 2 and 3")
    tensors, keys = cursor.number("Q"), cursor.number("Q")
    for count, most, what in ((tensors, MOST_GGUF_TENSORS, "tensors"), (keys, MOST_GGUF_KEYS, "metadata keys")):
        if count > most:
            raise ModelRefusedError(f"{cursor.file} speaks of {count} {what}, more than {most}")
    return version, tensors, keys


def _value(cursor: _Cursor, key: str, kind: int) -> Any:
    if kind == _TEXT:
        return cursor.text()
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind != _LIST:
        raise ModelRefusedError(f"{cursor.file}: the metadata key {key[:100]!r} has the unknown type {kind}")
    inner, count = cursor.number("I"), cursor.number("Q")
    if inner != _TEXT and inner not in _SCALARS:
        raise ModelRefusedError(f"{cursor.file}: the metadata key {key[:100]!r} is a list of the unknown type {inner}")
    cursor.spend(count)
    if inner == _TEXT:
        return [cursor.text() for _ in range(count)]
    form = f"<{count}{_SCALARS[inner]}"
    return list(struct.unpack(form, cursor.take(struct.calcsize(form))))


def _entry(cursor: _Cursor) -> tuple[str, TensorInfo, int]:
    """Name, table entry, and offset in the file's data."""
    name = cursor.text()
    dimensions = cursor.number("I")
    if not name or len(name.encode("utf-8", "surrogateescape")) > 63 or not name.isprintable():
        raise ModelRefusedError(f"{cursor.file}: a tensor's name is {name[:70]!r}, expected 1 to 63 printable characters")
    if not 0 < dimensions <= 4:
        raise ModelRefusedError(f"{cursor.file}: tensor {name} has {dimensions} dimensions, expected 1 to 4")
    sizes = [cursor.number("Q") for _ in range(dimensions)]
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in GGUF_TYPES:
        raise ModelRefusedError(f"{cursor.file}: tensor {name} has ggml's type {number}, which is not known")
    kind, block, size = GGUF_TYPES[number]
    if min(sizes) < 1 or prod(sizes) >= 2**48:
        raise ModelRefusedError(f"{cursor.file}: tensor {name} has the impossible shape {sizes[::-1]}")
    if sizes[0] % block:
        raise ModelRefusedError(
            f"{cursor.file}: tensor {name} of type {kind} has rows of {sizes[0]} values, expected a multiple of {block}"
        )
    return name, TensorInfo(kind, tuple(sizes[::-1]), prod(sizes) // block * size), offset


def _laid_out(
    entries: Sequence[tuple[str, TensorInfo, int]], file: str, data_start: int, alignment: int
) -> tuple[dict[str, TensorInfo], dict[str, Place]]:
    """Table and places. As ggml demands: no name twice, and each tensor begins where the one before it ends, padded."""
    table: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    expected = 0
    for name, info, offset in entries:
        if name in table:
            raise ModelRefusedError(f"{file}: tensor {name} is there twice")
        if offset != expected:
            raise ModelRefusedError(f"{file}: tensor {name} begins at byte {offset} of the data, expected {expected}")
        table[name], places[name] = info, Place(file, data_start + offset)
        expected = _padded(expected + info.bytes, alignment)
    return table, places


def _padded(count: int, alignment: int) -> int:
    return -(-count // alignment) * alignment


# --- models of several files ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GgufModel:
    """A model of one or more files. `files`: their names, the first one first."""

    files: tuple[str, ...]
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    places: Mapping[str, Place]


def parts_of(name: str) -> tuple[str, ...]:
    """The names of all parts of a split model, or the file alone. ModelRefusedError where the name's numbers make no sense."""
    found = _PART.fullmatch(name)
    if found is None:
        return (name,)
    number, count = int(found["number"]), int(found["count"])
    if not 1 <= number <= count <= MOST_GGUF_PARTS:
        raise ModelRefusedError(f"{name} would be part {number} of {count}; expected at most {MOST_GGUF_PARTS} parts")
    return tuple(f"{found['stem']}-{index:05d}-of-{found['count']}.gguf" for index in range(1, count + 1))


def choose_gguf(names: Sequence[str], wanted: str | None) -> tuple[str, ...]:
    """The files of the one GGUF model among these names, or of the one that `wanted` names by any of its parts.

    ModelRefusedError where there is none, where a part is missing, and where there are several and none is named.
    """
    there = sorted(name for name in names if name.endswith(GGUF_SUFFIX))
    models = dict.fromkeys(parts_of(name) for name in there)
    projectors = [files for files in models if files[0].rpartition("/")[2].startswith("mmproj")]
    if wanted is not None:
        if wanted not in there and parts_of(wanted) not in models:
            raise ModelRefusedError(f"there is no file {wanted}; {_named(models)}")
        chosen = parts_of(wanted)
    else:
        able = [files for files in models if files not in projectors]
        if len(able) != 1:
            more = "; name one in spec.model.file" if able else ""
            raise ModelRefusedError(f"{_named(able)}{more}")
        chosen = able[0]
    if missing := [name for name in chosen if name not in there]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelRefusedError(f"part {missing[0]}{more} is missing: the model has {len(chosen)} parts")
    return chosen


def _named(models: Sequence[tuple[str, ...]] | Mapping[tuple[str, ...], None]) -> str:
    first = [files[0] for files in models]
    if not first:
        return "there is no *.gguf file"
    listed = ", ".join(first[:12]) + (f" and {len(first) - 12} more" if len(first) > 12 else "")
    return f"there are {len(first)} GGUF models: {listed}" if len(first) > 1 else f"there is one GGUF model: {listed}"


def joined_gguf(files: Sequence[tuple[str, GgufFile]]) -> GgufModel:
    """One model from its parts, in order. ModelRefusedError where they are not the parts of one model."""
    first_name, first = files[0]
    said = first.metadata.get("split.count", 1) or 1
    if said != len(files):
        more = " Name the parts as llama.cpp does: …-00001-of-0000N.gguf." if len(files) == 1 else ""
        raise ModelRefusedError(f"{first_name} says that the model has {said} parts, its name says {len(files)}.{more}")
    tensors: dict[str, TensorInfo] = {}
    places: dict[str, Place] = {}
    for index, (name, part) in enumerate(files):
        if len(files) > 1 and part.metadata.get("split.no") != index:
            raise ModelRefusedError(f"{name} says that it is part {_counted(part.metadata.get('split.no'))}, its name says {index + 1}")
        if len(files) > 1 and part.metadata.get("split.count") != len(files):
            raise ModelRefusedError(f"{name} says that the model has {part.metadata.get('split.count')} parts, expected {len(files)}")
        for tensor, info in part.tensors.items():
            if tensor in tensors:
                raise ModelRefusedError(f"tensor {tensor} is there twice, in {places[tensor].file} and in {name}")
            tensors[tensor], places[tensor] = info, part.places[tensor]
    count = first.metadata.get("split.tensors.count")
    if len(files) > 1 and count is not None and count != len(tensors):
        raise ModelRefusedError(f"{first_name} says that the model has {count} tensors, its parts have {len(tensors)}")
    if not tensors:
        raise ModelRefusedError(f"{first_name} holds no tensor: it has a vocabulary alone")
    return GgufModel(tuple(name for name, _ in files), first.version, first.metadata, tensors, places)


def _counted(number: object) -> object:
    return number + 1 if type(number) is int else number
