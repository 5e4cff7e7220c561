"""libllama through engine.c: loaded once, and one handle for each model with its context. Arrays are numpy's."""

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.llamacpp.slices import Piece

FOLDER = Path(os.environ.get("SI_LIBLLAMA", "/opt/libllama/lib"))
NAME = "libsplitinference-llama.so"


class LlamaError(RuntimeError):
    """libllama refuses or fails; the message is its own."""


class _Extent(ctypes.Structure):
    _fields_ = (
        ("at", ctypes.c_uint64), ("length", ctypes.c_uint64), ("offset", ctypes.c_uint64), ("memory", ctypes.c_char_p),
        ("fd", ctypes.c_int64),
    )  # fmt: skip


_loaded: list[Any] = []


def library() -> Any:
    """The C library, initialised. LlamaError where it is missing, has another ABI, or knows no CPU like this one."""
    if not _loaded:
        try:
            made = ctypes.CDLL(str(FOLDER / NAME))
        except OSError as error:
            raise LlamaError(f"libllama cannot be loaded: {error}") from error
        _declare(made)
        if made.si_init(str(FOLDER).encode()):
            raise LlamaError(made.si_problem().decode(errors="replace"))
        _loaded.append(made)
    return _loaded[0]


def _declare(made: Any) -> None:
    pointer, number, size = ctypes.c_void_p, ctypes.c_int32, ctypes.c_size_t
    results = {
        "si_problem": ctypes.c_char_p, "si_version": ctypes.c_char_p, "si_open": pointer, "si_close": None, "si_logits": pointer,
        "si_vocabulary": ctypes.c_int64, "si_width": ctypes.c_int64, "si_bytes": ctypes.c_int64, "si_share": None,
        "si_state_bytes": size, "si_state": size, "si_set_state": size,
    }  # fmt: skip
    arguments: dict[str, Sequence[Any]] = {
        "si_init": (ctypes.c_char_p,), "si_close": (pointer,), "si_logits": (pointer, number), "si_vocabulary": (pointer,),
        "si_open": (pointer, size, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, number, ctypes.c_int),
        "si_decode": (pointer, number, *(pointer,) * 6), "si_width": (pointer,), "si_bytes": (pointer,),
        "si_truncate": (pointer, number, number), "si_share": (pointer, number, number, number, number), "si_last": (pointer, number),
        "si_state_bytes": (pointer, number), "si_state": (pointer, number, pointer, size), "si_set_state": (pointer, number, pointer, size),
        "si_dequantize": (number, pointer, pointer, ctypes.c_int64),
    }  # fmt: skip
    for name, given in arguments.items():
        getattr(made, name).argtypes = given
    for name, result in results.items():
        getattr(made, name).restype = result


def version() -> str:
    """libllama's own."""
    return str(library().si_version().decode())


def dequantized(data: np.ndarray, kind: int, values: int) -> np.ndarray:
    """So many values of this ggml type, float32. LlamaError for a type that has none."""
    made = np.empty(values, np.float32)
    data = np.ascontiguousarray(data)
    if library().si_dequantize(kind, data.ctypes.data, made.ctypes.data, values):
        raise LlamaError(f"ggml does not read values of its type {kind}")
    return made


class Model:
    """One model in memory with its context. Not safe to use from several threads at once."""

    def __init__(
        self, folder: Path, pieces: Sequence[Piece], *, cells: int, sequences: int, rows: int, outputs: int, threads: int, boundary: bool
    ) -> None:
        """Load the file that the pieces are. ModelRefusedError in libllama's words where it refuses it."""
        self._library = library()
        files: dict[str, int] = {}
        extents = (_Extent * len(pieces))()
        try:
            for extent, piece in zip(extents, pieces, strict=True):
                extent.at, extent.length, extent.fd = piece.at, piece.length, -2
                if piece.memory is not None:
                    extent.memory, extent.fd = piece.memory, -1
                elif piece.place is not None:
                    if piece.place.file not in files:
                        files[piece.place.file] = os.open(folder / piece.place.file, os.O_RDONLY | os.O_CLOEXEC)
                    extent.fd, extent.offset = files[piece.place.file], piece.place.offset
            self._handle = self._library.si_open(extents, len(pieces), cells, sequences, rows, outputs, threads, int(boundary))
            why = self._library.si_problem().decode(errors="replace")
        finally:
            for descriptor in files.values():
                os.close(descriptor)
        if not self._handle:
            raise ModelRefusedError(f"libllama does not load the model: {why}")
        self.width = int(self._library.si_width(self._handle))
        self.vocabulary = int(self._library.si_vocabulary(self._handle))
        self.weight_bytes = int(self._library.si_bytes(self._handle))

    def decode(
        self, rows: int, *, tokens: np.ndarray | None, hidden: np.ndarray | None, positions: np.ndarray, sequences: np.ndarray,
        wanted: np.ndarray, out: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Run rows: token ids int32 [rows], or hidden states float32 [rows, width]. `wanted`, int8 [rows]: which give logits, or, with
        `out` float32 [rows, width], all. LlamaError when libllama fails; then some of the rows may be in the KV cache."""
        arrays = (tokens, hidden, positions, sequences, wanted, out)
        addresses = [None if array is None else array.ctypes.data for array in arrays]
        if self._library.si_decode(self._handle, rows, *addresses):
            raise LlamaError(self._library.si_problem().decode(errors="replace"))

    def logits(self, row: int) -> np.ndarray:
        """Behind this row of the last batch, float32 [vocabulary]; a copy."""
        address = self._library.si_logits(self._handle, row)
        if not address:
            raise LlamaError(f"no logits for row {row}")
        return np.ctypeslib.as_array((ctypes.c_float * self.vocabulary).from_address(address)).copy()

    def truncate(self, sequence: int, position: int) -> None:
        """Forget this sequence's tokens from `position` on."""
        if self._library.si_truncate(self._handle, sequence, position):
            raise LlamaError(f"libllama cannot cut a sequence at {position}")

    def share(self, source: int, target: int, tokens: range) -> None:
        """Let `target` have these tokens of `source`, in the same memory."""
        self._library.si_share(self._handle, source, target, tokens.start, tokens.stop)

    def length(self, sequence: int) -> int:
        """Tokens held."""
        return int(self._library.si_last(self._handle, sequence)) + 1

    def state(self, sequence: int) -> bytes:
        """A sequence's KV as libllama writes it."""
        size = self._library.si_state_bytes(self._handle, sequence)
        made = np.empty(size, np.uint8)
        if not size or self._library.si_state(self._handle, sequence, made.ctypes.data, size) != size:
            raise LlamaError(self._library.si_problem().decode(errors="replace") or "libllama does not write a sequence's KV")
        return made.tobytes()

    def set_state(self, sequence: int, data: bytes) -> None:
        """Put such KV into a sequence, in place of what it has."""
        array = np.frombuffer(data, np.uint8)
        if self._library.si_set_state(self._handle, sequence, array.ctypes.data, len(data)) != len(data):
            raise LlamaError(self._library.si_problem().decode(errors="replace") or "libllama does not take a sequence's KV")

    def close(self) -> None:
        """Free everything."""
        if self._handle:
            self._library.si_close(self._handle)
            self._handle = None
