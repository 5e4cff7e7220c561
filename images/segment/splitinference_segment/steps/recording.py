"""What a segment received and sent of sequences that are checked, kept for the gateway until it asks.

The gateway asks for it beside the chain, of the segments before and after the one that is checked: that one does not learn which sequences
are. Everything is bounded: sequences, bytes of all of them, and the time that nobody asks.
"""

import threading
from dataclasses import dataclass, field

from splitinference_protocol.wire.errors import BAD_REQUEST, NOT_RECORDED, OVERLOADED, SegmentError
from splitinference_segment.engine import Arrays, Values

MOST_SEQUENCES = 64
MOST_BYTES = 64 << 20
IDLE_S = 120.0


@dataclass(slots=True)
class _Record:
    used_at: float
    rows: list[tuple[int, Values]] = field(default_factory=list)  # position and hidden states, ascending, without gaps
    lost: str = ""

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for _, values in self.rows)


@dataclass(slots=True)
class Recorder:
    """Records by sequence and side. Safe to use from several threads; knows no clock: `now` is an argument."""

    arrays: Arrays
    most_sequences: int = MOST_SEQUENCES
    most_bytes: int = MOST_BYTES
    idle_seconds: float = IDLE_S
    _records: dict[tuple[str, str], _Record] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, sequence: str, side: str, now: float) -> None:
        """Keep what comes of this sequence from now on, and drop what was kept of it. SegmentError `overloaded` when too many are kept."""
        with self._lock:
            self._forget_idle(now)
            if (sequence, side) not in self._records and len(self._records) >= self.most_sequences:
                raise SegmentError(OVERLOADED, f"{len(self._records)} sequences are recorded, the limit is {self.most_sequences}")
            self._records[sequence, side] = _Record(now)

    def add(self, sequence: str, side: str, position: int, values: Values, now: float) -> None:
        """Hidden states [tokens, hidden] of a step. Nothing happens unless the sequence is recorded."""
        if not self._records:
            return
        with self._lock:
            record = self._records.get((sequence, side))
            if record is None or record.lost:
                return
            record.used_at = now
            # A step that is run again comes with a position that was there before.
            # After drafts that were wrong, the next step begins within the one before.
            record.rows = [(at, rows[: position - at]) for at, rows in record.rows if at < position]
            if record.rows and record.rows[-1][0] + len(record.rows[-1][1]) < position:
                record.rows, record.lost = [], f"what came before position {position} was not seen here"
                return
            kept = sum(each.bytes for each in self._records.values())
            if kept + values.nbytes > self.most_bytes:
                record.rows, record.lost = [], f"{kept} bytes are recorded, the limit is {self.most_bytes}"
                return
            record.rows.append((position, self.arrays.kept(values)))

    def take(self, sequence: str, side: str, position: int, tokens: int, *, last: bool, now: float) -> Values:
        """Hidden states of tokens [position, position + tokens), which are dropped with all before them; with `last` all are.

        SegmentError: `not_recorded` when they are not there.
        """
        with self._lock:
            self._forget_idle(now)
            record = self._records.pop((sequence, side), None)
            if record is None or record.lost:
                raise SegmentError(NOT_RECORDED, record.lost if record else "this sequence is not recorded here")
            if not last:
                record.used_at = now
                self._records[sequence, side] = record
            if not tokens:
                if not last:
                    raise SegmentError(BAD_REQUEST, "at least one token is needed")
                return self.arrays.joined(())
            start = record.rows[0][0] if record.rows else position
            found = self.arrays.joined([rows for _, rows in record.rows])
            if position < start or position + tokens > start + len(found):
                raise SegmentError(
                    NOT_RECORDED, f"tokens {start} to {start + len(found)} are recorded, {position} to {position + tokens} are needed"
                )
            end = position + tokens - start
            record.rows = [(position + tokens, self.arrays.kept(found[end:]))]
            return found[position - start : end]

    def _forget_idle(self, now: float) -> None:
        for key in [key for key, record in self._records.items() if now - record.used_at > self.idle_seconds]:
            del self._records[key]
