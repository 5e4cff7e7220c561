"""The KV cache: one growing buffer per sequence, bounded by number, bytes and idle time. Knows no clock: `now` is an argument.

Where the gateway names the blocks of tokens that a sequence begins with, another one that begins with the same blocks takes over their KV,
from a sequence that runs or from one that has ended and was kept for it. What is kept is in nobody's way: it is forgotten first.

When a sequence needs room and there is none, those that were not stepped for a while give way, the longest idle first. Their gateway is
told `kv_missing` at their next step, and runs their tokens again. So nobody keeps others out by holding sequences that it does not use.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from splitinference_protocol.wire.errors import BAD_REQUEST, KV_FULL, KV_MISSING, SegmentError
from splitinference_protocol.wire.request import Prefix

MOST_KEPT = 256  # bounds the search; segments without blocks keep entries of no bytes
EVICT_AFTER_S = 10.0  # a sequence that was stepped more lately is not given up for another: they would take turns in it
FIRST_CAPACITY = 128  # tokens; a buffer doubles from here until the longest context

Buffer = Any
"""Where an engine keeps one sequence's keys and values. It is free when nobody holds it any more."""


@dataclass(frozen=True, slots=True)
class KvPiece:
    """KV that another segment exported: of these of our blocks, counted from this segment's first."""

    blocks: range
    data: bytes


class KvStore(Protocol):
    """An engine's KV. None of these may wait for a step that runs, but `exported` and `taken`, which are called on threads of their own."""

    @property
    def blocks(self) -> int:
        """Blocks of this segment."""

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all blocks of this segment."""

    @property
    def most_sequences(self) -> int | None:
        """How many buffers there may be at once; None: any number."""

    def allocate(self, tokens: int) -> Buffer:
        """A buffer for so many tokens, without any."""

    def capacity(self, buffer: Buffer) -> int:
        """Tokens that the buffer can hold."""

    def grown(self, buffer: Buffer, tokens: int, length: int) -> Buffer:
        """A buffer for more tokens, with the first `length` of this one."""

    def copy(self, source: Buffer, target: Buffer, tokens: int) -> None:
        """The first `tokens` of one buffer into another one that has none."""

    def trimmed(self, buffer: Buffer, tokens: int) -> Buffer:
        """A buffer with the first `tokens` alone, in no more memory than they need."""

    def layout(self, blocks: int, tokens: int) -> dict[str, Any]:
        """The form in which so many tokens of so many blocks are handed over, as META says it. Segments with other forms refuse it."""

    def exported(self, buffer: Buffer, blocks: range, tokens: range) -> bytes:
        """These tokens of these blocks (counted from this segment's first), in that form."""

    def taken(self, buffer: Buffer, tokens: range, pieces: Sequence[KvPiece]) -> None:
        """Add tokens that others exported after those that the buffer has; together the pieces have every block."""


@dataclass(frozen=True, slots=True)
class KvLimits:
    """Bounds of a table: sequences, bytes of all buffers, tokens of one sequence, seconds without use."""

    sequences: int
    total_bytes: int
    context_tokens: int
    idle_seconds: float
    evict_after_seconds: float = EVICT_AFTER_S


@dataclass(slots=True)
class KvEntry:
    """One sequence's keys and values. `length` tokens are valid; a step writes beyond and then commits."""

    sequence: str
    buffer: Buffer
    length: int = 0
    used_at: float = 0.0
    busy: bool = False
    prefix: Prefix | None = None

    def begins_with(self, prefix: Prefix, tokens: int) -> bool:
        """The first `tokens` are held, and are those that `prefix` names."""
        return self.prefix is not None and self.length >= tokens and self.prefix.shares(prefix, tokens)


@dataclass(frozen=True, slots=True)
class KvUse:
    """What a table holds at one moment; `kept_bytes` are of ended sequences, and not among `total_bytes`."""

    sequences: int
    total_bytes: int
    kept_bytes: int = 0
    reused_tokens: int = 0  # since the beginning
    evicted: int = 0  # sequences that gave way to others, since the beginning


@dataclass(slots=True)
class KvTable:
    """Sequences by name. Safe to use from several threads; an entry given to a step is not evicted until the step ends."""

    shape: KvStore
    limits: KvLimits
    _entries: dict[str, KvEntry] = field(default_factory=dict)
    _kept: OrderedDict[str, KvEntry] = field(default_factory=OrderedDict)  # by the name of the last block, least used first
    _reused: int = 0
    _evicted: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(  # noqa: PLR0917 - what a step says of its place
        self, sequence: str, position: int, tokens: int, now: float, prefix: Prefix | None = None, drop: int = 0
    ) -> KvEntry:
        """The entry for a step of `tokens` at `position`, with room for them.

        With a prefix the sequence starts anew, with the KV of its first `position` tokens from another one that begins with the same.
        `drop`: so many tokens behind `position` were drafts that were wrong; where they are held they are dropped.

        SegmentError: `bad_request` beyond the longest context, `kv_missing` when the sequence does not hold exactly `position`
        tokens (or those and `drop` more) or is being written by another step, `kv_full` when it does not fit. Position 0 starts the
        sequence anew.
        """
        if position + tokens > self.limits.context_tokens:
            raise SegmentError(
                BAD_REQUEST, f"position {position} and {tokens} tokens are beyond the longest context, {self.limits.context_tokens}"
            )
        with self._lock:
            entry = self._entries.get(sequence)
            held = entry.length if entry is not None else 0
            donor = None
            if prefix is not None:
                donor = self._donor(prefix, position)
                entry = self._anew(sequence, now)
                entry.prefix = prefix
            elif position == 0:
                entry = self._anew(sequence, now)
            elif entry is None or held not in (position, position + drop):
                raise SegmentError(KV_MISSING, f"the sequence holds {held} tokens here, the step expects {position}")
            elif entry.busy:
                raise SegmentError(KV_MISSING, f"the sequence is being written beyond its {held} tokens")
            else:
                entry.length = position
            if self._capacity(entry) < position + tokens:
                try:
                    self._grow(entry, position + tokens, now)
                except SegmentError:
                    if entry.length == 0:
                        self._entries.pop(sequence, None)
                    raise
            if donor is not None:
                self.shape.copy(donor.buffer, entry.buffer, position)
                entry.length = position
                self._reused += position
            entry.busy = True
            return entry

    def end(self, entry: KvEntry, tokens: int, now: float) -> None:
        """A step is over: `tokens` more are valid (0 when it failed)."""
        with self._lock:
            entry.busy = False
            entry.length += tokens
            entry.used_at = now

    def read(self, sequence: str, tokens: int) -> Buffer:
        """The buffer of a sequence that holds at least `tokens`; those stay as they are.

        SegmentError: `kv_missing` when it holds fewer. Steps go on beside it: they write beyond, or into a larger copy.
        """
        with self._lock:
            entry = self._entries.get(sequence)
            if entry is None or entry.length < tokens:
                raise SegmentError(KV_MISSING, f"the sequence holds {entry.length if entry else 0} tokens here, {tokens} are wanted")
            return entry.buffer

    def release(self, sequence: str, prefix: Prefix | None = None) -> bool:
        """Forget a sequence, but keep the KV of the blocks that `prefix` names for others. False when it was not known."""
        with self._lock:
            entry = self._entries.pop(sequence, None)
            if entry is not None and prefix is not None and not entry.busy:
                self._keep(entry, prefix)
            return entry is not None

    def forget_idle(self, now: float) -> int:
        """Forget what has not been used for the idle time; returns how many."""
        with self._lock:
            return self._forget_idle(now)

    def use(self) -> KvUse:
        """Sequences and bytes held now."""
        with self._lock:
            return KvUse(len(self._entries), self._bytes(self._entries), self._bytes(self._kept), self._reused, self._evicted)

    def _donor(self, prefix: Prefix, position: int) -> KvEntry | None:
        """Who gives the first `position` tokens; None for none of them. A kept one becomes the most recently used."""
        if position == 0:
            return None
        if position % prefix.block or position > prefix.block * len(prefix.hashes):
            raise SegmentError(
                BAD_REQUEST, f"position {position} is not at the end of one of {len(prefix.hashes)} blocks of {prefix.block}"
            )
        for name, entry in (*self._kept.items(), *self._entries.items()):
            if entry.begins_with(prefix, position):
                if name in self._kept:
                    self._kept.move_to_end(name)
                return entry
        raise SegmentError(KV_MISSING, f"no sequence that begins with the same {position} tokens is held")

    def _keep(self, entry: KvEntry, prefix: Prefix) -> None:
        blocks = min(len(prefix.hashes), entry.length // prefix.block)
        if not blocks:
            return
        kept = Prefix(prefix.block, prefix.hashes[:blocks])
        tokens = blocks * prefix.block
        for name, other in list(self._kept.items()):
            if other.begins_with(kept, tokens):
                self._kept.move_to_end(name)
                return
            if other.prefix is not None and other.prefix.shares(kept, other.length):
                del self._kept[name]
        entry.prefix, entry.length = kept, tokens
        entry.buffer = self.shape.trimmed(entry.buffer, tokens)
        self._kept[kept.hashes[-1]] = entry
        most = self.shape.most_sequences
        while len(self._kept) > (MOST_KEPT if most is None else max(0, most - self.limits.sequences)):
            self._kept.popitem(last=False)

    def _anew(self, sequence: str, now: float) -> KvEntry:
        self._entries.pop(sequence, None)
        if len(self._entries) >= self.limits.sequences:
            self._forget_idle(now)
        if len(self._entries) >= self.limits.sequences:
            self._evict(now)
        if len(self._entries) >= self.limits.sequences:
            raise SegmentError(KV_FULL, f"{len(self._entries)} sequences are held, the limit is {self.limits.sequences}")
        entry = KvEntry(sequence, self.shape.allocate(0), used_at=now)
        self._entries[sequence] = entry
        return entry

    def _grow(self, entry: KvEntry, needed: int, now: float) -> None:
        capacity = self._capacity(entry)
        wanted = max(capacity, FIRST_CAPACITY)
        while wanted < needed:
            wanted *= 2
        wanted = min(wanted, self.limits.context_tokens)
        per_token = self.shape.bytes_per_token
        more = (wanted - capacity) * per_token
        while self._kept and more > self._free():
            self._kept.popitem(last=False)
        if more > self._free():
            entry.used_at = now
            self._forget_idle(now)
        while more > self._free() and self._evict(now):
            pass
        free = self._free()
        if (wanted - capacity) * per_token > free:
            wanted = capacity + free // per_token  # all that is left, if that is enough
        if wanted < needed:
            raise SegmentError(
                KV_FULL,
                f"{needed} tokens need {needed * per_token} bytes of KV; all but {free} of {self.limits.total_bytes} are held",
            )
        entry.buffer = self.shape.grown(entry.buffer, wanted, entry.length)

    def _evict(self, now: float) -> bool:
        """Forget the sequence that was not used for longest, if that is long enough. False: there is none."""
        idle = [e for e in self._entries.values() if not e.busy and now - e.used_at > self.limits.evict_after_seconds]
        if not idle:
            return False
        del self._entries[min(idle, key=lambda e: e.used_at).sequence]
        self._evicted += 1
        return True

    def _free(self) -> int:
        return self.limits.total_bytes - self._bytes(self._entries) - self._bytes(self._kept)

    def _bytes(self, entries: Mapping[str, KvEntry]) -> int:
        return sum(map(self._capacity, entries.values())) * self.shape.bytes_per_token

    def _capacity(self, entry: KvEntry) -> int:
        return self.shape.capacity(entry.buffer)

    def _forget_idle(self, now: float) -> int:
        for name in self._idle(self._kept, now):
            del self._kept[name]
        idle = self._idle(self._entries, now)
        for sequence in idle:
            del self._entries[sequence]
        return len(idle)

    def _idle(self, entries: Mapping[str, KvEntry], now: float) -> list[str]:
        return [name for name, e in entries.items() if not e.busy and now - e.used_at > self.limits.idle_seconds]
