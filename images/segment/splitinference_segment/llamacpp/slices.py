"""A run of a GGUF model's layers as a GGUF file of its own: only its tensors, blocks numbered from 0, read from where they are.

Nothing is copied: a slice is a header in memory and a list of ranges of the model's files. libllama reads them as one file (engine.c);
`write` makes a real one. Of a model with all its parts on a node, or of one whose other tensors are holes, only these ranges are read.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from splitinference_modelfiles.gguf_files.gguf import (
    GGUF_TYPES,
    GgufModel,
    Place,
    choose_gguf,
    joined_gguf,
    parts_of,
    read_gguf,
    read_gguf_with_header,
)
from splitinference_modelfiles.stored.folder import file_names
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo
from splitinference_segment.llamacpp.architectures import EVERYTHING, PER_BLOCK, Architecture, architecture_of, check_cut, windows_of

ALIGNMENT = 32
NO_ROWS = 32
"""Rows of an embedding that nobody looks up: libllama wants one in every file."""
OWN = "splitinference.slice."
"""Keys of a slice that was written to a file: start, end and count of layers."""
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _BOOL, _TEXT, _LIST = 4, 7, 8, 9
_NUMBERS = {name: number for number, (name, _, _) in GGUF_TYPES.items()}
_CHUNK = 8 << 20
_SMALL = (("IQ1_S", 256), ("Q4_0", 32), ("F16", 1))
"""Types in which zeros need little room, and of how many values a row must be a multiple."""


@dataclass(frozen=True)
class Source:
    """A GGUF model on disk: what its headers say, the folder of its files, and its metadata as they stand in the file."""

    folder: Path
    model: GgufModel
    raw: Mapping[str, bytes]  # key → type and value

    @property
    def architecture(self) -> Architecture:
        """How it is cut. ModelRefusedError for one that is not served."""
        return architecture_of(self.model.metadata)

    @property
    def blocks(self) -> int:
        """Of the whole model, also where this file is a slice of it."""
        count = self.model.metadata.get(f"{OWN}count")
        return int(count) - 2 if count is not None else self.own_blocks

    @property
    def own_blocks(self) -> int:
        """Of this file."""
        count = self.model.metadata.get(f"{self.model.metadata['general.architecture']}.block_count")
        if type(count) is not int or not 0 <= count <= 1024:
            raise ModelRefusedError(f"{self.model.files[0]}: block_count is {str(count)[:40]}, expected 1 to 1024")
        return count

    @property
    def layers(self) -> range:
        """Layers of the whole model that this file has."""
        own: list[Any] = [self.model.metadata.get(f"{OWN}{name}") for name in ("start", "end")]
        return range(int(own[0]), int(own[1])) if None not in own else range(self.blocks + 2)


@dataclass(frozen=True)
class Tensor:
    """One tensor of a slice: its name there, and where its bytes are; None: zeros."""

    name: str
    info: TensorInfo
    place: Place | None


@dataclass(frozen=True)
class Piece:
    """A range of a slice's file: bytes in memory, a range of one of the model's files, or zeros."""

    at: int
    length: int
    memory: bytes | None = None
    place: Place | None = None


@dataclass(frozen=True)
class Slice:
    """Layers [start, end) of `count`: the blocks are numbered from 0. `embedding`: the matrix of a first segment that is not the last."""

    start: int
    end: int
    count: int
    hidden: int
    vocabulary: int
    blocks: range
    header: bytes
    tensors: tuple[Tensor, ...]
    embedding: Tensor | None
    embedding_scale: float
    input_scale: float

    def pieces(self) -> Iterator[Piece]:
        """The file from its first to its last byte, without gaps."""
        yield Piece(0, len(self.header), memory=self.header)
        at = len(self.header)
        for tensor in self.tensors:
            yield Piece(at, tensor.info.bytes, place=tensor.place)
            at += tensor.info.bytes
            if pad := -at % ALIGNMENT:
                yield Piece(at, pad)
                at += pad

    def ranges(self) -> Mapping[str, list[tuple[int, int]]]:
        """Of each of the model's files the ranges (offset, bytes) that this segment reads besides headers: what a node has to fetch."""
        found: dict[str, list[tuple[int, int]]] = {}
        for tensor in (*self.tensors, *([self.embedding] if self.embedding else ())):
            if tensor.place is not None:
                found.setdefault(tensor.place.file, []).append((tensor.place.offset, tensor.info.bytes))
        return {file: sorted(set(each)) for file, each in found.items()}


def open_model(path: Path) -> Source:
    """The GGUF model that is this file, one of whose parts this file is, or that is in this folder.

    ModelRefusedError says what is wrong: none or several there, a missing part, a truncated file, an unknown version.
    """
    folder = path if path.is_dir() else path.parent
    files = choose_gguf(file_names(str(folder)), None) if path.is_dir() else parts_of(path.name)
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ModelRefusedError(f"{missing[0]} is missing: the model has {len(files)} file{'s' if len(files) > 1 else ''}")
    found: list[tuple[str, Any]] = []
    header = b""
    for name in files:
        with (folder / name).open("rb") as file:
            size = (folder / name).stat().st_size
            if not found:
                first, header = read_gguf_with_header(_reader(file), name, size)
                found.append((name, first))
            else:
                found.append((name, read_gguf(_reader(file), name, size)))
    return Source(folder, joined_gguf(found), raw_metadata(header))


def _reader(file: BinaryIO) -> Any:
    def read(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    return read


def raw_metadata(header: bytes) -> dict[str, bytes]:
    """Each key's type and value as they stand in a header that was read before."""
    at, found = 24, {}
    (keys,) = struct.unpack_from("<Q", header, 16)
    for _ in range(keys):
        (length,) = struct.unpack_from("<Q", header, at)
        key = header[at + 8 : at + 8 + length].decode("utf-8", "surrogateescape")
        begin = at + 8 + length
        (kind,) = struct.unpack_from("<I", header, begin)
        at = _end(header, begin + 4, kind)
        found[key] = header[begin:at]
    return found


def _end(header: bytes, at: int, kind: int) -> int:
    if kind == _TEXT:
        return at + 8 + int(struct.unpack_from("<Q", header, at)[0])
    if kind != _LIST:
        return at + _SIZES[kind]
    inner, count = struct.unpack_from("<IQ", header, at)
    at += 12
    if inner != _TEXT:
        return at + int(count) * _SIZES[inner]
    for _ in range(count):
        at = _end(header, at, _TEXT)
    return at


def cut(source: Source, start: int, end: int) -> Slice:
    """Layers [start, end) of the model. ModelRefusedError where they are not in it, or cannot be cut there."""
    architecture, count = source.architecture, source.blocks + 2
    if not 0 <= start < end <= count:
        raise ModelRefusedError(f"layers {start}:{end} are not in this model, which has 0:{count}")
    own = source.layers
    if start < own.start or end > own.stop:
        raise ModelRefusedError(f"layers {start}:{end} are not in {source.model.files[0]}, which has {own.start}:{own.stop}")
    blocks = range(max(start, 1) - 1, min(end, count - 1) - 1)
    if not blocks:
        raise ModelRefusedError(f"layers {start}:{end} have no block: a segment of the llama.cpp engine needs at least one")
    check_cut(source.model.metadata["general.architecture"], blocks, source.blocks)
    is_first, is_last = start == 0, end == count
    given, metadata = source.model.tensors, source.model.metadata
    if "token_embd.weight" not in given:
        raise ModelRefusedError("tensor token_embd.weight is missing")
    embedding = Tensor("token_embd.weight", given["token_embd.weight"], source.model.places["token_embd.weight"])
    hidden = embedding.info.shape[1]
    tensors = list(_global(source, embedding, is_first, is_last)) + list(_of_blocks(source, blocks))
    rows = next(tensor.info.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    vocabulary = int(metadata.get(f"{OWN}vocabulary") or _vocabulary(source))
    place = {"start": start, "end": end, "count": count, "vocabulary": vocabulary}
    header = _header(source, blocks, rows, tensors, place)
    root = float(hidden) ** 0.5
    return Slice(
        start, end, count, hidden, vocabulary, blocks, header, tuple(tensors),
        embedding if is_first and not is_last else None,
        root if architecture.scales_embedding else 1.0,
        1.0 / root if architecture.scales_input and not is_first else 1.0,
    )  # fmt: skip


def _vocabulary(source: Source) -> int:
    """Rows of the head, or of the embedding where they are tied."""
    head = source.model.tensors.get("output.weight")
    return (head or source.model.tensors["token_embd.weight"]).shape[0]


def _global(source: Source, embedding: Tensor, is_first: bool, is_last: bool) -> Iterator[Tensor]:
    """What does not belong to a block. The head stands as the embedding where libllama then takes it for both: it reads the file once."""
    given, places = source.model.tensors, source.model.places
    hidden, needs_head = embedding.info.shape[1], source.architecture.needs_head
    nothing = TensorInfo("F32", (NO_ROWS, hidden), 4 * NO_ROWS * hidden)
    head = Tensor("output.weight", given["output.weight"], places["output.weight"]) if "output.weight" in given else None
    if is_first and is_last:
        yield embedding
        if head is not None:
            yield head
    elif not is_last:
        yield Tensor("token_embd.weight", nothing, None)
        if needs_head:
            yield Tensor("output.weight", nothing, None)
    elif head is None:
        yield embedding
    elif needs_head:
        yield Tensor("token_embd.weight", _zeros(head.info), None)
        yield head
    else:
        yield replace(head, name="token_embd.weight")
    for name, info in given.items():
        head_only = name == "output.bias" and not is_last
        if not name.startswith("blk.") and name not in ("token_embd.weight", "output.weight") and not head_only:
            yield Tensor(name, info, places[name])


def _zeros(like: TensorInfo) -> TensorInfo:
    rows, width = like.shape
    kind = next(name for name, multiple in _SMALL if width % multiple == 0)
    _, block, size = GGUF_TYPES[_NUMBERS[kind]]
    return TensorInfo(kind, (rows, width), rows * width // block * size)


def _of_blocks(source: Source, blocks: range) -> Iterator[Tensor]:
    """The blocks' own, renumbered. In a file that is a slice itself they are counted from its first."""
    offset = max(source.layers.start, 1) - 1
    seen: set[int] = set()
    for name, info in source.model.tensors.items():
        if not name.startswith("blk."):
            continue
        _, number, rest = name.split(".", 2)
        if not number.isdigit():
            raise ModelRefusedError(f"tensor {name!r:.80} has no number of a block")
        block = int(number) + offset
        if block in blocks:
            seen.add(block)
            yield Tensor(f"blk.{block - blocks.start}.{rest}", info, source.model.places[name])
    if missing := sorted(set(blocks) - seen):
        raise ModelRefusedError(f"no tensors for block {missing[0]} of {source.blocks}")


def _header(source: Source, blocks: range, rows: int, tensors: Sequence[Tensor], own: Mapping[str, int]) -> bytes:
    """Version, metadata and tensor table, filled up to where the data begins."""
    metadata = source.model.metadata
    name = metadata["general.architecture"]
    offset = max(source.layers.start, 1) - 1
    local = range(blocks.start - offset, blocks.stop - offset)
    window, pattern = f"{name}.attention.sliding_window", f"{name}.attention.sliding_window_pattern"
    left_out = [f"{name}.block_count", f"{name}.vocab_size", "general.alignment"]
    windows = windows_of(source.architecture, metadata, local, source.own_blocks)
    if source.architecture.window_period:
        left_out += [window, pattern]
    if windows is not None and windows.tokens == EVERYTHING:
        left_out += [f"{name}.rope.freq_base_swa"]
    keys: dict[str, bytes] = {}
    for key, raw in source.raw.items():
        if key in left_out or key.startswith(("tokenizer.", "split.", OWN)):
            continue
        per_block = key.removeprefix(f"{name}.") in PER_BLOCK and isinstance(metadata[key], list)
        keys[key] = _sliced(raw, local) if per_block else raw
    if windows is not None:
        keys[window] = struct.pack("<II", _UINT32, windows.tokens)
        keys[pattern] = struct.pack("<IIQ", _LIST, _BOOL, len(windows.blocks)) + bytes(windows.blocks)
    keys |= {
        f"{name}.block_count": struct.pack("<II", _UINT32, len(blocks)),
        f"{name}.vocab_size": struct.pack("<II", _UINT32, rows),
        "tokenizer.ggml.model": struct.pack("<I", _TEXT) + _text("no_vocab"),
        **{f"{OWN}{key}": struct.pack("<II", _UINT32, value) for key, value in own.items()},
    }
    table, at = b"", 0
    for tensor in tensors:
        shape = tensor.info.shape[::-1]
        table += _text(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _NUMBERS[tensor.info.dtype], at)
        at += tensor.info.bytes
        at += -at % ALIGNMENT
    made = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    made += b"".join(_text(key) + raw for key, raw in keys.items()) + table
    return made + bytes(-len(made) % ALIGNMENT)


def _sliced(raw: bytes, blocks: range) -> bytes:
    """The entries of these blocks of a list of numbers."""
    _, inner, _ = struct.unpack_from("<IIQ", raw)
    size = _SIZES[inner]
    return struct.pack("<IIQ", _LIST, inner, len(blocks)) + raw[16 + blocks.start * size : 16 + blocks.stop * size]


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data


def write(source: Source, part: Slice, path: Path) -> None:
    """The slice as a file that `open_model` reads. A first segment's file has the embedding in its own place, too."""
    tensors = part.tensors
    if part.embedding is not None:
        tensors = tuple(part.embedding if tensor.name == "token_embd.weight" else tensor for tensor in tensors)
    rows = next(tensor.info.shape[0] for tensor in tensors if tensor.name == "token_embd.weight")
    own = {"start": part.start, "end": part.end, "count": part.count, "vocabulary": part.vocabulary}
    header = _header(source, part.blocks, rows, tensors, own)
    whole = replace(part, header=header, tensors=tensors, embedding=None)
    with path.open("wb") as target:
        for piece in whole.pieces():
            if piece.memory is not None:
                target.write(piece.memory)
            elif piece.place is None:
                target.write(bytes(piece.length))
            else:
                _copy(source.folder / piece.place.file, piece.place.offset, piece.length, target)


def _copy(path: Path, offset: int, length: int, target: BinaryIO) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        while length:
            if not (data := file.read(min(_CHUNK, length))):
                raise ModelRefusedError(f"{path.name} is cut short")
            target.write(data)
            length -= len(data)
