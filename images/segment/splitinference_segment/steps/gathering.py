"""Whether a batch of decode steps should wait a moment for others that are about to come. Pure but for what it remembers; clocks are given.

A step reads all weights, whatever the number of sequences in it. Those that ran together come back one after the other, a fraction of a
millisecond apart; without a moment's patience the first of them would run alone, and the others behind it. A sequence is expected where it
was seen before: so long after its last step here as it took of late. Waiting for it is worth while if those that wait lose less by it than
those that come gain, which is a step that runs meanwhile:

    waiting × delay  <  coming × (a step's time - delay)

Nobody waits for more than half of a step's time, nor longer than is set, nor for a sequence that has ended; one client never waits.
"""

from collections.abc import Collection
from dataclasses import dataclass

FORGET_S = 60.0  # a sequence that was not seen for so long is expected no more, whatever became of it
_NEW = 0.5  # share of the newest measurement in what is remembered of a sequence's absence
_NEW_STEP = 0.1  # and of a step's time


@dataclass(slots=True)
class _Sequence:
    left_at: float
    away_s: float | None = None  # how long it is away between two steps; None: not seen coming back yet
    here: bool = False
    late_s: float = 0.0  # by how much it came later than expected, when it came last


class Gathering:
    """What is known of the decoding sequences of one segment. Times in seconds, of one monotonic clock; one thread at a time."""

    def __init__(self, most_s: float) -> None:
        """`most_s`: longest time that steps wait for others; 0: they never do."""
        self._most_s = most_s
        self._sequences: dict[str, _Sequence] = {}
        self._step_s: float | None = None

    def came(self, sequence: str, now: float) -> None:
        """The sequence's next decode step is here."""
        known = self._sequences.get(sequence)
        if known is None or known.here:
            return
        known.here = True
        away_s = now - known.left_at
        known.late_s = 0.0 if known.away_s is None else away_s - known.away_s
        known.away_s = away_s if known.away_s is None else known.away_s + _NEW * (away_s - known.away_s)

    def left(self, sequence: str, now: float) -> None:
        """A step of the sequence has run, and the next one will be a decode step."""
        known = self._sequences.setdefault(sequence, _Sequence(now))
        known.left_at, known.here = now, False

    def ended(self, sequence: str) -> None:
        """The sequence comes no more, or not with a decode step."""
        self._sequences.pop(sequence, None)

    def ran(self, step_s: float) -> None:
        """A batch of decode steps took so long."""
        self._step_s = step_s if self._step_s is None else self._step_s + _NEW_STEP * (step_s - self._step_s)

    def wait_s(self, waiting: Collection[str], since: float, now: float) -> float:
        """How long the steps of these sequences should at most wait for others; 0: run. `since`: when they could have run."""
        if self._step_s is None or not self._most_s or not waiting:
            return 0.0
        patience_s = min(self._most_s, self._step_s / 2)
        left_s = since + patience_s - now
        if left_s <= 0:
            return 0.0
        here = [self._sequences[name] for name in waiting if name in self._sequences]
        shared_s = max((max(0.0, known.late_s) for known in here), default=0.0)  # who ran together is late together
        delays = sorted(
            max(0.0, due - now)
            for name, known in self._sequences.items()
            if not known.here and name not in waiting and known.away_s is not None
            if now - (due := known.left_at + known.away_s) <= patience_s + shared_s
        )
        worth = any(
            delay <= left_s and len(waiting) * delay < coming * (self._step_s - delay) for coming, delay in enumerate(delays, start=1)
        )
        return left_s if worth else 0.0

    def forget(self, now: float) -> None:
        """Drop what was not seen for long."""
        self._sequences = {name: known for name, known in self._sequences.items() if now - known.left_at < FORGET_S}
