"""A segment of a model without sequences: requests are `infer` instead of `step`; route, hops and times are as for any segment."""

import time
from typing import Any, cast

from splitinference_protocol.wire import answers
from splitinference_protocol.wire.errors import BAD_REQUEST, WRONG_SEGMENT, SegmentError
from splitinference_protocol.wire.request import ENCODINGS, Request
from splitinference_segment.engine import Engine
from splitinference_segment.peers.wire_server import Bounds
from splitinference_segment.request_checks import bounds, bounds_of
from splitinference_segment.segment import Counting, Segment, Send, outputs_data, outputs_meta
from splitinference_segment.settings import Settings
from splitinference_segment.tensor_execution import TensorExecution, TensorResult, TensorStep
from splitinference_segment.torch_models.stateless import Stateless
from splitinference_segment.torch_models.torch_engine import TorchArrays, as_bytes

STATELESS_FRAME = 64 << 20  # tensors of any shape


class TensorSegment(Segment):
    """Layers and hops; no KV is held."""

    def __init__(self, settings: Settings, layers: Stateless, meters: Counting) -> None:
        """Start the worker. Layers are already loaded."""
        self._stateless = layers
        # Of an engine, a segment without sequences asks only for what these layers have, too.
        super().__init__(settings, cast(Engine, layers), meters, TorchArrays())

    def _bounds(self) -> Bounds:
        hidden = self._stateless.hidden
        return bounds_of(self._settings, hidden) if hidden else bounds(self._settings, STATELESS_FRAME + self._stateless.example().nbytes)

    def _executes(self) -> Any:
        return TensorExecution(self._stateless, self._settings.threads)

    def _ended(self, sequence: str) -> None:
        """Nothing is kept between requests, so nobody is expected."""

    def _step(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        raise SegmentError(WRONG_SEGMENT, "this model keeps no sequences: its segments take `infer`")

    def _infer(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        self._check_route(request.route)
        if request.tensor is None:
            raise SegmentError(BAD_REQUEST, "infer needs a tensor")
        if request.pooling is not None and not self._stateless.hidden:
            raise SegmentError(BAD_REQUEST, "this model has no hidden states of tokens, so there is nothing to pool")
        values = self._stateless.values(request.tensor, as_bytes(data), self._settings.max_context_tokens)

        def done(result: TensorResult | SegmentError) -> None:
            if isinstance(result, SegmentError):
                self._fail(result, send)
            else:
                self._after_infer(request, result, received_at, send)

        deadline_at = received_at + request.deadline_ms / 1e3
        self._execution.submit(TensorStep(values, received_at, deadline_at, done, request.outputs, request.pooling))

    def _after_infer(self, request: Request, result: TensorResult, received_at: float, send: Send) -> None:
        self._totals.steps += 1
        self._meters.add("steps_total", 1, phase="infer")
        self._meters.add("compute_seconds_total", result.compute_s, phase="infer")
        self._meters.add("queue_seconds_total", result.queue_s)
        timing = self._timing(result.queue_s, result.compute_s)
        if result.hidden is None:
            timing.held_ms = round((time.monotonic() - received_at) * 1e3, 3)
            send(answers.timed(timing, outputs_meta(result.outputs)), outputs_data(result.outputs, self._arrays))
            return
        encoding = self._settings.link_encoding if self._stateless.hidden else ENCODINGS[0]
        self._send_on(request, result.hidden, encoding, received_at=received_at, timing=timing, send=send)

    def _probe(self, request: Request, received_at: float, send: Send) -> None:
        def done(result: TensorResult | SegmentError) -> None:
            if isinstance(result, SegmentError):
                self._fail(result, send)
            else:
                send(answers.answer({"ok": True, "ms": round((time.monotonic() - received_at) * 1e3, 3)}), b"")

        values = self._stateless.example()
        self._execution.submit(TensorStep(values, received_at, received_at + request.deadline_ms / 1e3, done))
