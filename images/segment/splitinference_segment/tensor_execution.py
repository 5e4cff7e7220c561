"""Running requests of models without sequences: one worker thread, first come, first served, each request by itself."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from splitinference_protocol.wire.errors import BAD_REQUEST, DEADLINE_EXCEEDED, FAILED_INSIDE, INTERNAL, OVERLOADED, SegmentError
from splitinference_protocol.wire.pooling import SENTENCE_EMBEDDING, Pooling
from splitinference_segment.steps.execution import MAX_WAITING
from splitinference_segment.torch_models.stateless import Stateless
from splitinference_segment.torch_ops.pooling import pooled

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorResult:
    """The hidden state for the next segment, or from the last one the model's outputs. Times in seconds."""

    hidden: torch.Tensor | None
    outputs: Mapping[str, torch.Tensor]
    queue_s: float
    compute_s: float


@dataclass(frozen=True, slots=True)
class TensorStep:
    """One request in the queue. `done` is called once, on the worker thread, and must not block. Clock: time.monotonic.

    `wanted`: names of outputs, all where it is empty. `pooling`: how the hidden states become a sentence embedding, which is an output too.
    """

    values: torch.Tensor
    received_at: float
    deadline_at: float
    done: Callable[[TensorResult | SegmentError], None]
    wanted: tuple[str, ...] = ()
    pooling: Pooling | None = None


class TensorExecution:
    """The queue and its worker."""

    def __init__(self, layers: Stateless, threads: int) -> None:
        """Start the worker."""
        self._layers, self._threads = layers, threads
        self._waiting: queue.Queue[TensorStep | None] = queue.Queue(MAX_WAITING)
        self._stopping = False
        self._worker = threading.Thread(target=self._run, name="execution", daemon=True)
        self._worker.start()

    def submit(self, step: TensorStep) -> None:
        """Queue a request. SegmentError `overloaded` when too many wait."""
        try:
            if self._stopping:
                raise queue.Full
            self._waiting.put_nowait(step)
        except queue.Full:
            raise SegmentError(OVERLOADED, f"{self._waiting.qsize()} requests wait, the limit is {MAX_WAITING}") from None

    def stop(self) -> None:
        """Refuse what waits, finish what runs, and end the worker."""
        self._stopping = True
        while True:
            try:
                left = self._waiting.get_nowait()
            except queue.Empty:
                break
            if left is not None:
                left.done(SegmentError(OVERLOADED, "the segment is stopping"))
        self._waiting.put(None)
        self._worker.join(timeout=10)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP keeps this number per thread, so it is set where the work is done
        while (step := self._waiting.get()) is not None:
            try:
                result: TensorResult | SegmentError = self._compute(step)
            except SegmentError as failure:
                result = failure
            except Exception:  # noqa: BLE001 - the worker must outlive the failure of one request
                _log.exception("a request failed")
                result = SegmentError(INTERNAL, FAILED_INSIDE)
            step.done(result)

    def _compute(self, step: TensorStep) -> TensorResult:
        started = time.monotonic()
        if started > step.deadline_at:
            waited_ms = (started - step.received_at) * 1e3
            raise SegmentError(DEADLINE_EXCEEDED, f"the request waited {waited_ms:.0f} ms, past its deadline")
        with torch.inference_mode():
            hidden = self._layers.run(step.values)
            outputs = self._outputs(hidden, step) if self._layers.is_last else {}
            for tensor in outputs.values() if self._layers.is_last else (hidden,):
                if not bool(tensor.isfinite().all()):
                    raise SegmentError(INTERNAL, "the layers give numbers that are not finite")
            compute_s = time.monotonic() - started
            return TensorResult(None if self._layers.is_last else hidden.cpu(), outputs, started - step.received_at, compute_s)

    def _outputs(self, hidden: torch.Tensor, step: TensorStep) -> Mapping[str, torch.Tensor]:
        """SegmentError `bad_request` for a wanted output that this model does not give."""
        made: dict[str, torch.Tensor] = {}
        if not step.wanted or set(step.wanted) - {SENTENCE_EMBEDDING}:
            made |= self._layers.outputs(hidden)
        if step.pooling is not None:
            made[SENTENCE_EMBEDDING] = pooled(hidden, step.pooling)
        if unknown := [name for name in step.wanted if name not in made]:
            raise SegmentError(BAD_REQUEST, f"output {unknown[0]!r:.80} is not one of {', '.join(made)}")
        return {name: tensor.cpu() for name, tensor in made.items() if not step.wanted or name in step.wanted}
