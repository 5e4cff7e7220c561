"""Answers that are kept: as bytes, in the gateway's memory, within a budget and for a time."""

import json
import struct
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitinference_gateway.answers.generation import Piece, Sampled
from splitinference_gateway.tensor_io.tensors import Tensor

_OVERHEAD = 512  # bytes of an entry's objects besides its content
_LARGEST_SHARE = 8  # one answer may take an eighth of the budget
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Entry:
    """One answer. `stored_at` and `expires_at` in Unix seconds."""

    content: bytes
    stored_at: float
    expires_at: float

    def age(self, now: float) -> float:
        """Seconds since it was made. Another gateway's clock may be ahead: never less than 0."""
        return max(0.0, now - self.stored_at)

    def left(self, now: float) -> float:
        """Seconds that it is still valid."""
        return self.expires_at - now


@dataclass
class Memory:
    """The most recently used answers, in at most `budget` bytes. `clock` gives Unix seconds."""

    budget: int
    clock: Callable[[], float] = time.time
    used: int = 0
    _entries: OrderedDict[bytes, Entry] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def largest(self) -> int:
        """Bytes of the largest answer that is kept."""
        return self.budget // _LARGEST_SHARE

    def get(self, name: bytes) -> Entry | None:
        """The answer of this name, while it is valid."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if entry.left(self.clock()) <= 0:
            self.drop(name)
            return None
        self._entries.move_to_end(name)
        return entry

    def put(self, name: bytes, entry: Entry) -> bool:
        """Keep an answer, and drop those that were not used for the longest time. False: it is too large."""
        self.drop(name)
        if len(entry.content) > self.largest:
            return False
        self._entries[name] = entry
        self.used += len(entry.content) + _OVERHEAD
        while self.used > self.budget:
            self.drop(next(iter(self._entries)))
        return name in self._entries

    def drop(self, name: bytes) -> None:
        """Forget one answer."""
        entry = self._entries.pop(name, None)
        if entry is not None:
            self.used -= len(entry.content) + _OVERHEAD

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self.used = 0


def of_pieces(pieces: Sequence[Piece]) -> bytes:
    """An answer of text, piece by piece, so that it can be streamed again."""
    rows = [
        [piece.index, piece.text, piece.generated, piece.finish, [[t.token, t.logprob, t.top, t.offset] for t in piece.tokens]]
        for piece in pieces
    ]
    return json.dumps(rows, separators=(",", ":")).encode()


def to_pieces(content: bytes) -> list[Piece]:
    """The other way. ValueError, TypeError or KeyError for what is none."""
    return [
        Piece(
            index, text, tuple(Sampled(token, logprob, tuple((i, p) for i, p in top), at) for token, logprob, top, at in tokens), n, finish
        )
        for index, text, n, finish, tokens in json.loads(content)
    ]


def of_tensors(tensors: Sequence[Tensor]) -> bytes:
    """An answer of tensors: a JSON head, then their bytes."""
    head = json.dumps([[tensor.name, tensor.datatype, list(tensor.shape), len(tensor.data)] for tensor in tensors]).encode()
    return b"".join((_LENGTH.pack(len(head)), head, *(tensor.data for tensor in tensors)))


def to_tensors(content: bytes) -> list[Tensor]:
    """The other way. ValueError, TypeError or struct.error for what is none."""
    (length,) = _LENGTH.unpack_from(content)
    at = _LENGTH.size + length
    made = []
    for name, datatype, shape, size in json.loads(content[_LENGTH.size : at]):
        made.append(Tensor(name, datatype, tuple(shape), content[at : at + size]))
        at += size
    return made
