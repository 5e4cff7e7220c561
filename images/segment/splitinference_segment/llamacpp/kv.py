"""KV of the llama.cpp engine: cells of one pool in libllama's context, which sequences share.

The KV table (kv.py) decides who may have how many tokens. Here a buffer is a number that libllama knows a sequence by. What the table does
to buffers waits in a queue until the next step or hand-over, because libllama's context is used by one thread at a time and the table must
not wait for a step.

Hand-over: for each block its keys [tokens, key width], then its values [tokens, value width], float16. libllama reads and writes them in
its format for a sequence's state, of which this file knows the layout: `state_write` of llama-kv-cache.cpp, and of -iswa.cpp, where blocks
with a window have a cache of their own. Tests compare what comes out with the unsplit model, and the library is pinned.
"""

import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitinference_protocol.wire.errors import KV_FULL, SegmentError
from splitinference_segment.cache.kv import KvPiece
from splitinference_segment.llamacpp.library import LlamaError, Model

MOST_SLOTS = 256
"""Sequences that libllama knows in one context."""
SPARE = 4
"""Slots for probes, and for sequences that begin anew while their old step still runs."""
_TRANSFER_TOKENS = 128
"""Tokens that are read or written at once, with the context locked: steps wait for it."""
_F16 = 1


class Cells:
    """One sequence's place. Its slot is free once nobody holds it."""

    __slots__ = ("_freed", "capacity", "slot")

    def __init__(self, slot: int, capacity: int, freed: Callable[[int], None]) -> None:
        self.slot, self.capacity, self._freed = slot, capacity, freed

    def __del__(self) -> None:
        self._freed(self.slot)


@dataclass(frozen=True, slots=True)
class CellShape:
    """Of each block's keys and values in bytes for a token; of each block 1 where it attends to a window of so many tokens."""

    blocks: int
    key_bytes: int
    value_bytes: int
    windows: Sequence[int] | None = None
    window: int = 0

    @property
    def bytes_per_token(self) -> int:
        """In all blocks."""
        return self.blocks * (self.key_bytes + self.value_bytes)

    def caches(self) -> list[list[int]]:
        """libllama's caches, in its order: blocks that attend to everything, then those with a window; or all in one."""
        if self.windows is None:
            return [list(range(self.blocks))]
        return [[block for block in range(self.blocks) if self.windows[block] == kind] for kind in (0, 1)]


class CellStore:
    """Slots of one context."""

    def __init__(self, model: Model, shape: CellShape, sequences: int) -> None:
        """`sequences`: how many the context was made for; two of them are for hand-over."""
        self._model, self._shape = model, shape
        self.lock = threading.Lock()  # of the context
        self._most = sequences - 1
        self._scratch = sequences - 1
        self._free = deque(range(self._most))
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._start = b""

    @property
    def blocks(self) -> int:
        """Of this segment."""
        return self._shape.blocks

    @property
    def bytes_per_token(self) -> int:
        """In all blocks."""
        return self._shape.bytes_per_token

    @property
    def most_sequences(self) -> int:
        """But for the spare ones."""
        return self._most - SPARE

    def allocate(self, tokens: int) -> Cells:
        """A slot. SegmentError `kv_full` where all are taken."""
        try:
            slot = self._free.popleft()
        except IndexError:
            raise SegmentError(KV_FULL, f"all {self._most} sequences of libllama's context are taken") from None
        return Cells(slot, tokens, self._freed)

    def capacity(self, buffer: Cells) -> int:
        """What the table counts: cells are taken from the pool as tokens come."""
        return buffer.capacity

    def grown(self, buffer: Cells, tokens: int, length: int) -> Cells:
        """The same slot."""
        buffer.capacity = tokens
        return buffer

    def copy(self, source: Cells, target: Cells, tokens: int) -> None:
        """Both have the same cells then."""
        self._waiting.append((self._model.share, source.slot, target.slot, range(tokens)))

    def trimmed(self, buffer: Cells, tokens: int) -> Cells:
        """The same slot without what is behind."""
        buffer.capacity = tokens
        self._waiting.append((self._model.truncate, buffer.slot, tokens))
        return buffer

    def _freed(self, slot: int) -> None:
        self._waiting.append((self._model.truncate, slot, 0))
        self._free.append(slot)

    def settle(self) -> None:
        """Do what waits. The caller holds the lock."""
        while self._waiting:
            do, *arguments = self._waiting.popleft()
            do(*arguments)

    def hold(self, buffer: Cells, tokens: int) -> None:
        """Make the slot hold exactly the first `tokens`: a step that failed may have left more. The caller holds the lock."""
        held = self._model.length(buffer.slot)
        if held > tokens:
            self._model.truncate(buffer.slot, tokens)
        elif held < tokens:
            raise LlamaError(f"the context holds {held} tokens of a sequence, the table {tokens}")

    def layout(self, blocks: int, tokens: int) -> dict[str, Any]:
        """float16; the name of the engine keeps others from taking it for theirs."""
        return {"dtype": "float16", "shape": [blocks, tokens, (self._shape.key_bytes + self._shape.value_bytes) // 2], "engine": "llamacpp"}

    def exported(self, buffer: Cells, blocks: range, tokens: range) -> bytes:
        """A few tokens at a time, so that steps come in between."""
        shape = self._shape
        keys = np.empty((len(blocks), len(tokens), shape.key_bytes), np.uint8)
        values = np.empty((len(blocks), len(tokens), shape.value_bytes), np.uint8)
        for some in self._parts(tokens):
            with self.lock:
                self.settle()
                self._model.share(buffer.slot, self._scratch, some)
                try:
                    state = self._model.state(self._scratch)
                finally:
                    self._model.truncate(self._scratch, 0)
            here = slice(some.start - tokens.start, some.stop - tokens.start)
            for block, key, value in self._read(state, some):
                if block in blocks:
                    keys[block - blocks.start, here], values[block - blocks.start, here] = key, value
        return b"".join(keys[i].tobytes() + values[i].tobytes() for i in range(len(blocks)))

    def taken(self, buffer: Cells, tokens: range, pieces: Sequence[KvPiece]) -> None:
        """SegmentError-free: the table has found room. ValueError where a piece has another size than its form says."""
        shape, count = self._shape, len(tokens)
        per_block = count * (shape.key_bytes + shape.value_bytes)
        found: dict[int, np.ndarray] = {}
        for piece in pieces:
            if len(piece.data) != len(piece.blocks) * per_block:
                raise ValueError(f"{len(piece.data)} bytes of KV for {len(piece.blocks)} blocks of {per_block}")
            for i, block in enumerate(piece.blocks):
                found[block] = np.frombuffer(piece.data, np.uint8)[i * per_block : (i + 1) * per_block]
        border = count * shape.key_bytes
        keys = {block: data[:border].reshape(count, shape.key_bytes) for block, data in found.items()}
        values = {block: data[border:].reshape(count, shape.value_bytes) for block, data in found.items()}
        with self.lock:
            self.settle()
            self.hold(buffer, tokens.start)
        for some in self._parts(tokens):
            here = slice(some.start - tokens.start, some.stop - tokens.start)
            with self.lock:
                state = self._written(some, {b: k[here] for b, k in keys.items()}, {b: v[here] for b, v in values.items()})
                try:
                    self._model.set_state(self._scratch, state)
                    self._model.share(self._scratch, buffer.slot, some)
                finally:
                    self._model.truncate(self._scratch, 0)
                self.hold(buffer, some.stop)

    def _parts(self, tokens: range) -> Iterator[range]:
        """No longer than the window: libllama leaves out what the last token of a sequence does not see."""
        most = min(_TRANSFER_TOKENS, self._shape.window or _TRANSFER_TOKENS)
        for start in range(tokens.start, tokens.stop, most):
            yield range(start, min(tokens.stop, start + most))

    def _read(self, state: bytes, tokens: range) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Block, keys and values [tokens, bytes] of each block, in the order of positions."""
        at, shape = 8, self._shape
        for layers in shape.caches():
            streams, count = struct.unpack_from("<II", state, at)
            at += 8
            if streams != 1 or count != len(tokens):
                raise LlamaError(f"libllama wrote {count} tokens of {streams} streams, expected {len(tokens)} of one")
            cells = np.frombuffer(state, np.int32, 3 * count, at).reshape(count, 3)
            at += cells.nbytes
            order = np.argsort(cells[:, 0])
            if (cells[order, 0] != np.arange(tokens.start, tokens.stop)).any():
                raise LlamaError("libllama wrote other tokens of a sequence than were asked for")
            transposed, own = struct.unpack_from("<II", state, at)
            at += 8
            if transposed or own != len(layers):
                raise LlamaError(f"libllama wrote {own} blocks, expected {len(layers)}")
            parts = []
            for width in (shape.key_bytes, shape.value_bytes):
                for _ in layers:
                    kind, row = struct.unpack_from("<iQ", state, at)
                    at += 12
                    if kind != _F16 or row != width:
                        raise LlamaError(f"libllama wrote rows of {row} bytes of type {kind}, expected {width} of float16")
                    parts.append(np.frombuffer(state, np.uint8, count * row, at).reshape(count, row)[order])
                    at += count * row
            yield from zip(layers, parts[: len(layers)], parts[len(layers) :], strict=True)

    def _written(self, tokens: range, keys: dict[int, np.ndarray], values: dict[int, np.ndarray]) -> bytes:
        if not self._start:
            self._start = self._model.state(self._scratch)[:4]  # what libllama begins with, from an empty sequence
        count, shape = len(tokens), self._shape
        made = [self._start, struct.pack("<i", self._scratch)]
        cells = np.stack([np.arange(tokens.start, tokens.stop), np.ones(count), np.full(count, self._scratch)], axis=1).astype(np.int32)
        for layers in shape.caches():
            made += [struct.pack("<II", 1, count), cells.tobytes(), struct.pack("<II", 0, len(layers))]
            for width, parts in ((shape.key_bytes, keys), (shape.value_bytes, values)):
                for block in layers:
                    made += [struct.pack("<iQ", _F16, width), parts[block].tobytes()]
        return b"".join(made)
