"""Running steps: one worker thread takes turns from a queue, gives the engine each batch, and hands every result to its caller."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_protocol.wire.errors import DEADLINE_EXCEEDED, FAILED_INSIDE, INTERNAL, OVERLOADED, SegmentError
from splitinference_protocol.wire.request import Request
from splitinference_segment.cache.kv import KvEntry, KvTable
from splitinference_segment.choices import Choice
from splitinference_segment.engine import Engine, Values, Work
from splitinference_segment.steps.gathering import Gathering
from splitinference_segment.steps.queueing import next_turn

MAX_WAITING = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What one step gave: hidden states for the next segment, or (from the last one, when asked to sample) a token. Times in seconds."""

    hidden: Values | None
    choice: Choice | None
    queue_s: float
    compute_s: float
    share: float  # of a batch, this step's share by tokens
    logits: Values | None = None  # of the last position, float32, where they were asked for instead of a token
    scored: Sequence[Choice] = ()  # of the tokens that follow the step's, where these were given
    more: Sequence[Choice] = ()  # after `choice`, one for each draft that was right


@dataclass(frozen=True, slots=True)
class Step:
    """One step in the queue. `done` is called once, on the worker thread, and must not block."""

    request: Request
    values: Values
    received_at: float
    deadline_at: float
    done: Callable[[Result | SegmentError], None]
    adapter: Any = None

    @property
    def sequence(self) -> str:
        """The sequence's name; empty for a probe."""
        return self.request.sequence

    @property
    def tokens(self) -> int:
        """Tokens of this step."""
        return int(self.values.shape[0])

    @property
    def drafted(self) -> int:
        """How many of them are drafts."""
        return len(self.request.drafts)

    @property
    def decodes(self) -> bool:
        """One token of a sequence under way, maybe with drafts behind it."""
        return bool(self.request.sequence) and self.request.position > 0 and self.tokens == 1 + self.drafted


class Execution:
    """The queue and the worker thread of one segment. Clock: time.monotonic."""

    def __init__(self, engine: Engine, table: KvTable, threads: int, max_batch: int, gather_s: float = 0.0) -> None:
        """Start the worker. `gather_s`: how long decode steps may wait for others (gathering.py)."""
        self._engine, self._table, self._threads, self._max_batch = engine, table, threads, max_batch
        self._gathering = Gathering(gather_s)
        self._free_since = 0.0
        self._waiting: list[Step] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._worker = threading.Thread(target=self._run, name="execution", daemon=True)
        self._worker.start()

    def submit(self, step: Step) -> None:
        """Queue a step. SegmentError `overloaded` when too many wait."""
        with self._changed:
            if len(self._waiting) >= MAX_WAITING or self._stopping:
                raise SegmentError(OVERLOADED, f"{len(self._waiting)} steps wait, the limit is {MAX_WAITING}")
            self._waiting.append(step)
            if step.decodes:
                self._gathering.came(step.sequence, step.received_at)
            elif step.sequence:
                self._gathering.ended(step.sequence)
            self._changed.notify()

    def forget(self, sequence: str) -> None:
        """The sequence has ended: nobody waits for its next step."""
        with self._changed:
            self._gathering.ended(sequence)
            self._changed.notify()

    def stop(self) -> None:
        """Refuse what waits, finish what runs, and end the worker."""
        with self._changed:
            self._stopping = True
            left, self._waiting = self._waiting, []
            self._changed.notify()
        for step in left:
            step.done(SegmentError(OVERLOADED, "the segment is stopping"))
        self._worker.join(timeout=10)

    def _run(self) -> None:
        self._engine.use_threads(self._threads)
        passed, prefilled = 0, ""
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                turn = next_turn(self._waiting, self._max_batch, passed, prefilled)
                if (wait_s := self._gather_s(turn.batch)) > 0:
                    self._changed.wait(wait_s)
                    continue
                self._waiting, passed, prefilled = list(turn.rest), turn.passed, turn.prefilled
            self._run_batch(turn.batch)
            self._free_since = time.monotonic()

    def _gather_s(self, batch: Sequence[Step]) -> float:
        """How long the batch should still wait for others; 0: run it."""
        if len(batch) == self._max_batch or not all(step.decodes for step in batch):
            return 0.0
        now = time.monotonic()
        since = max(self._free_since, min(step.received_at for step in batch))
        return self._gathering.wait_s([step.sequence for step in batch], since, now)

    def _left(self, begun: Sequence[tuple[Step, KvEntry]], started: float, ended: float) -> None:
        """Say who is expected back, before anybody is answered."""
        with self._changed:
            if all(step.decodes for step, _ in begun):
                self._gathering.ran(ended - started)
            for step, _ in begun:
                if step.request.sample:
                    self._gathering.left(step.sequence, ended)
            self._gathering.forget(ended)

    def _run_batch(self, steps: Sequence[Step]) -> None:
        begun: list[tuple[Step, KvEntry]] = []
        started = time.monotonic()
        for step in steps:
            try:
                begun.append((step, self._begin(step, started)))
            except SegmentError as failure:
                self.forget(step.sequence)
                step.done(failure)
        if not begun:
            return
        try:
            results = self._compute(begun, started)
        except Exception:  # noqa: BLE001 - the worker must outlive any failure of one batch
            _log.exception("a batch failed")
            for step, entry in begun:
                self._table.end(entry, 0, time.monotonic())
                step.done(SegmentError(INTERNAL, FAILED_INSIDE))
            return
        ended = time.monotonic()
        for step, entry in begun:
            self._table.end(entry, step.tokens, ended)
        self._left(begun, started, ended)
        for (step, _), result in zip(begun, results, strict=True):
            step.done(result)

    def _begin(self, step: Step, now: float) -> KvEntry:
        if now > step.deadline_at:
            raise SegmentError(DEADLINE_EXCEEDED, f"the step waited {(now - step.received_at) * 1e3:.0f} ms, past its deadline")
        if not step.sequence:
            return KvEntry("", self._engine.kv_shape.allocate(step.tokens))
        return self._table.begin(step.sequence, step.request.position, step.tokens, now, step.request.prefix, step.request.drop)

    def _compute(self, begun: Sequence[tuple[Step, KvEntry]], started: float) -> list[Result]:
        rows = sum(step.tokens for step, _ in begun)
        outputs = self._engine.run([Work(step.request, step.values, entry, step.adapter) for step, entry in begun])
        compute_s = time.monotonic() - started
        return [
            Result(out.hidden, out.choice, started - step.received_at, compute_s, step.tokens / rows, out.logits, out.scored, out.more)
            for (step, _), out in zip(begun, outputs, strict=True)
        ]
