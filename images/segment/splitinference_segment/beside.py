"""What the gateway asks of a segment beside the chain, to verify others: keep what passes, run a step again, compare two outputs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from splitinference_protocol.wire import answers
from splitinference_protocol.wire.errors import BAD_REQUEST, WRONG_SEGMENT, SegmentError
from splitinference_protocol.wire.request import Request, TensorMeta
from splitinference_segment.engine import Arrays, Engine, Values
from splitinference_segment.settings import Settings
from splitinference_segment.steps.execution import Result, Step
from splitinference_segment.steps.recording import Recorder
from splitinference_segment.verdicts import Verdict

Send = Callable[[bytes, bytes], None]  # META and DATA of the one answer


class _Counting(Protocol):
    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""


@dataclass(frozen=True, slots=True)
class Beside:
    """`values` reads a step's tensor and checks it; `submit` queues a step; `fail` answers with an error."""

    settings: Settings
    engine: Engine
    arrays: Arrays
    recorder: Recorder
    meters: _Counting
    values: Callable[[Request, memoryview], Values]
    submit: Callable[[Step], None]
    fail: Callable[[SegmentError, Send], None]

    def handle(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        """Answer one of the operations BESIDE. SegmentError where it cannot be done."""
        match request.op:
            case "record" | "recorded":
                self._record(request, send)
            case "compare":
                self._compare(request, data, send)
            case _:
                self._run(request, data, received_at, send)

    def _record(self, request: Request, send: Send) -> None:
        """Keep what a sequence sends or receives here; or give it to the gateway."""
        now = time.monotonic()
        if request.op == "record":
            self.recorder.begin(request.sequence, request.side, now)
            send(answers.answer({"ok": True}), b"")
            return
        rows = self.recorder.take(request.sequence, request.side, request.position, request.tokens, last=request.last, now=now)
        self._give(rows, send)

    def _run(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        """Run a step that ran elsewhere.

        DATA of `verify`: its input, then its output [tokens, hidden]; the answer says how far that is from ours.
        DATA of `compute`: its input alone; the answer is our output. Who is asked so cannot repeat what another has said.
        """
        if self.engine.is_last:
            raise SegmentError(WRONG_SEGMENT, "a verifier's layers end before the head: there is no output to compare")
        tensor = _uncoded(request)
        values = self.values(request, data[: tensor.byte_size])
        claimed, rest = TensorMeta(self.settings.dtype, (tensor.tokens, self.engine.hidden)), data[tensor.byte_size :]
        if request.op == "compute" and rest.nbytes:
            raise SegmentError(BAD_REQUEST, f"compute takes an input alone, {rest.nbytes} bytes follow on it")
        received = self.arrays.received(claimed, rest) if request.op == "verify" else None

        def done(result: Result | SegmentError) -> None:
            if isinstance(result, SegmentError):
                self.fail(result, send)
            elif result.hidden is not None:
                self.meters.add("verified_tokens_total", tensor.tokens)
                if received is None:
                    self._give(result.hidden, send)
                else:
                    send(answers.answer(_told(self.arrays.verdict(result.hidden, received, request.position))), b"")

        self.submit(Step(request, values, received_at, received_at + request.deadline_ms / 1e3, done))

    def _compare(self, request: Request, data: memoryview, send: Send) -> None:
        """How far apart two outputs of the same tokens are. DATA: what is expected, then what is compared, each as `tensor` says."""
        tensor, hidden = _uncoded(request), self.engine.hidden
        if (tensor.dtype, tensor.shape[1:]) != (self.settings.dtype, (hidden,)):
            raise SegmentError(BAD_REQUEST, f"compare needs two tensors [tokens, {hidden}] of {self.settings.dtype}")
        parts = data[: tensor.byte_size], data[tensor.byte_size :]
        expected, received = (self.arrays.received(tensor, part) for part in parts)
        send(answers.answer(_told(self.arrays.verdict(expected, received, request.position))), b"")

    def _give(self, rows: Values, send: Send) -> None:
        tensor = {"dtype": self.arrays.name(rows), "shape": list(rows.shape)}
        send(answers.answer({"ok": True, "tensor": tensor}), self.arrays.data(rows, "none"))


def _uncoded(request: Request) -> TensorMeta:
    if request.tensor is None or request.tensor.encoding != "none":
        raise SegmentError(BAD_REQUEST, f"{request.op} needs a tensor that is not encoded")
    return request.tensor


def _told(found: Verdict) -> dict[str, Any]:
    return {"ok": True, "tokens": found.tokens, "mean": found.mean, "worst": found.worst, "worst_at": found.worst_at}
