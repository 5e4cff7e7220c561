"""The KV cache: one growing buffer per sequence, bounded by number, bytes and idle time. Knows no clock: `now` is an argument."""

import threading
from dataclasses import dataclass, field

import torch

from splitinference_segment.protocol import BAD_REQUEST, KV_FULL, KV_MISSING, SegmentError

FIRST_CAPACITY = 128  # tokens; a buffer doubles from here until the longest context


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token of one sequence needs here: blocks, key/value heads, their width."""

    blocks: int
    heads: int
    width: int
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all blocks of this segment."""
        return 2 * self.blocks * self.heads * self.width * int(self.dtype.itemsize)

    def allocate(self, tokens: int) -> torch.Tensor:
        """A buffer [2, blocks, heads, tokens, width], not initialised: what is beyond the length is never read."""
        return torch.empty((2, self.blocks, self.heads, tokens, self.width), dtype=self.dtype, device=self.device)


@dataclass(frozen=True, slots=True)
class KvLimits:
    """Bounds of a table: sequences, bytes of all buffers, tokens of one sequence, seconds without use."""

    sequences: int
    total_bytes: int
    context_tokens: int
    idle_seconds: float


@dataclass(slots=True)
class KvEntry:
    """One sequence's keys and values. `length` tokens are valid; a step writes beyond and then commits."""

    sequence: str
    buffer: torch.Tensor
    length: int = 0
    used_at: float = 0.0
    busy: bool = False

    @property
    def capacity(self) -> int:
        """Tokens that the buffer can hold."""
        return int(self.buffer.shape[3])


@dataclass(frozen=True, slots=True)
class KvUse:
    """What a table holds at one moment."""

    sequences: int
    total_bytes: int


@dataclass(slots=True)
class KvTable:
    """Sequences by name. Safe to use from several threads; an entry given to a step is not evicted until the step ends."""

    shape: KvShape
    limits: KvLimits
    _entries: dict[str, KvEntry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, sequence: str, position: int, tokens: int, now: float) -> KvEntry:
        """The entry for a step of `tokens` at `position`, with room for them.

        SegmentError: `bad_request` beyond the longest context, `kv_missing` when the sequence does not hold exactly `position`
        tokens or is being written by another step, `kv_full` when it does not fit. Position 0 starts the sequence anew.
        """
        if position + tokens > self.limits.context_tokens:
            raise SegmentError(
                BAD_REQUEST, f"position {position} and {tokens} tokens are beyond the longest context, {self.limits.context_tokens}"
            )
        with self._lock:
            entry = self._entries.get(sequence)
            held = entry.length if entry is not None else 0
            if position == 0:
                entry = self._anew(sequence, now)
            elif entry is None or held != position:
                raise SegmentError(KV_MISSING, f"the sequence holds {held} tokens here, the step expects {position}")
            elif entry.busy:
                raise SegmentError(KV_MISSING, f"the sequence is being written beyond its {held} tokens")
            if entry.capacity < position + tokens:
                try:
                    self._grow(entry, position + tokens, now)
                except SegmentError:
                    if entry.length == 0:
                        self._entries.pop(sequence, None)
                    raise
            entry.busy = True
            return entry

    def end(self, entry: KvEntry, tokens: int, now: float) -> None:
        """A step is over: `tokens` more are valid (0 when it failed)."""
        with self._lock:
            entry.busy = False
            entry.length += tokens
            entry.used_at = now

    def read(self, sequence: str, tokens: int) -> torch.Tensor:
        """The buffer [2, blocks, heads, capacity, width] of a sequence that holds at least `tokens`; those stay as they are.

        SegmentError: `kv_missing` when it holds fewer. Steps go on beside it: they write beyond, or into a larger copy.
        """
        with self._lock:
            entry = self._entries.get(sequence)
            if entry is None or entry.length < tokens:
                raise SegmentError(KV_MISSING, f"the sequence holds {entry.length if entry else 0} tokens here, {tokens} are wanted")
            return entry.buffer

    def release(self, sequence: str) -> bool:
        """Forget a sequence. False when it was not known."""
        with self._lock:
            return self._entries.pop(sequence, None) is not None

    def forget_idle(self, now: float) -> int:
        """Forget what has not been used for the idle time; returns how many."""
        with self._lock:
            return self._forget_idle(now)

    def use(self) -> KvUse:
        """Sequences and bytes held now."""
        with self._lock:
            return KvUse(len(self._entries), self._bytes())

    def _anew(self, sequence: str, now: float) -> KvEntry:
        self._entries.pop(sequence, None)
        if len(self._entries) >= self.limits.sequences:
            self._forget_idle(now)
        if len(self._entries) >= self.limits.sequences:
            raise SegmentError(KV_FULL, f"{len(self._entries)} sequences are held, the limit is {self.limits.sequences}")
        entry = KvEntry(sequence, self.shape.allocate(0), used_at=now)
        self._entries[sequence] = entry
        return entry

    def _grow(self, entry: KvEntry, needed: int, now: float) -> None:
        wanted = max(entry.capacity, FIRST_CAPACITY)
        while wanted < needed:
            wanted *= 2
        wanted = min(wanted, self.limits.context_tokens)
        per_token = self.shape.bytes_per_token
        if self._bytes() + (wanted - entry.capacity) * per_token > self.limits.total_bytes:
            entry.used_at = now
            self._forget_idle(now)
        free = self.limits.total_bytes - self._bytes()
        if (wanted - entry.capacity) * per_token > free:
            wanted = entry.capacity + free // per_token  # all that is left, if that is enough
        if wanted < needed:
            raise SegmentError(
                KV_FULL,
                f"{needed} tokens need {needed * per_token} bytes of KV; {self._bytes()} of {self.limits.total_bytes} are held",
            )
        grown = self.shape.allocate(wanted)
        if entry.length:
            grown[:, :, :, : entry.length].copy_(entry.buffer[:, :, :, : entry.length])
        entry.buffer = grown

    def _bytes(self) -> int:
        return sum(entry.capacity for entry in self._entries.values()) * self.shape.bytes_per_token

    def _forget_idle(self, now: float) -> int:
        idle = [e.sequence for e in self._entries.values() if not e.busy and now - e.used_at > self.limits.idle_seconds]
        for sequence in idle:
            del self._entries[sequence]
        return len(idle)
