"""One segment at work: takes parsed requests, runs steps, forwards along the route, and answers. Knows nothing of Triton."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from splitinference_protocol.wire import answers
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.errors import BAD_REQUEST, DEADLINE_EXCEEDED, INTERNAL, WRONG_SEGMENT, SegmentError
from splitinference_protocol.wire.operations import BESIDE, INPUT, LOCAL, OUTPUT, check_role
from splitinference_protocol.wire.request import Hop, Request, TensorMeta
from splitinference_segment.adapter_parts import AdapterParts
from splitinference_segment.beside import Beside
from splitinference_segment.cache.kv import KvLimits, KvTable
from splitinference_segment.cache.kv_transfer import KvTransfer
from splitinference_segment.engine import Arrays, Engine, Values
from splitinference_segment.logs import RequestLog
from splitinference_segment.peers.hops import Hops, Reply, address_of
from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.links import Links
from splitinference_segment.peers.wire_server import Bounds, WireServer
from splitinference_segment.request_checks import bounds_of, check_drafts, check_sampling, most_answer
from splitinference_segment.settings import Settings
from splitinference_segment.steps.execution import Execution, Result, Step
from splitinference_segment.steps.recording import Recorder

MODEL_NAME = re.compile(r"seg-(?P<digest>[0-9a-f]+)-(?P<start>\d+)-(?P<end>\d+)")


Send = Callable[[bytes, bytes], None]  # META and DATA of the one answer


class Counting(Protocol):
    """Where counts go."""

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""


@dataclass(slots=True)
class Totals:
    """What `stats` tells, besides the KV table's own numbers."""

    steps: int = 0
    tokens: int = 0


class Segment:
    """Layers, KV and hops of one segment. `handle` never blocks; answers come from the worker's and the wires' threads."""

    def __init__(self, settings: Settings, engine: Engine, meters: Counting, arrays: Arrays | None = None) -> None:
        """Start the worker. The engine has its layers already. `arrays`: where they are not the engine's own."""
        self._settings, self._engine, self._meters = settings, engine, meters
        self._arrays = engine.arrays if arrays is None else arrays
        limits = KvLimits(settings.max_sequences, settings.kv_bytes, settings.max_context_tokens, settings.kv_idle_seconds)
        self.table = KvTable(engine.kv_shape, limits)
        self._execution = self._executes()
        identity = Identity(settings.tls_folder, settings.identity) if settings.tls_folder is not None else None
        self._hops = Hops(settings, identity)
        first = engine.first_block if engine.kv_shape.blocks else 0
        self._transfer = KvTransfer(self.table, settings.model_name, first, engine.count, send=self._hops.send, meters=meters)
        self.links = Links(settings.node)
        self._log = RequestLog(settings.segment)
        self._totals = Totals()
        self._recorder = Recorder(self._arrays)
        self._beside = Beside(
            settings,
            engine,
            self._arrays,
            self._recorder,
            meters,
            values=self._values,
            submit=self._execution.submit,
            fail=self._fail,
        )
        self.adapters = AdapterParts(getattr(engine, "adapters", None))
        self._wire = WireServer(
            settings.wire_port,
            settings.model_name,
            self._from_wire,
            identity=identity,
            refuse=lambda sentence: answers.error(SegmentError(BAD_REQUEST, sentence), settings.segment),
            bounds=self._bounds(),
            count=lambda name, reason: meters.add(f"wire_{name}_total", 1, reason=reason),
        )

    def handle(self, meta: bytes, data: memoryview, send: Send, role: str = LOCAL) -> None:
        """Answer one request of a peer of this role by calling `send` once, now or later. `data` may be kept."""
        received_at = time.monotonic()
        send = _in_the_form_of(meta, send)
        request: Request | None = None
        try:
            request = protocol.parse(meta)
            check_role(request.op, role)
            self._log.came(request)
            match request.op:
                case "step":
                    self._step(request, data, received_at, send)
                case "infer":
                    self._infer(request, data, received_at, send)
                case "echo":
                    self._echo(request, data, received_at, send)
                case "release":
                    self._release(request, received_at, send)
                case "kv_pull" | "kv_export":
                    self._transfer.handle(request, send, lambda failure: self._fail(failure, send))
                case "probe":
                    self._probe(request, received_at, send)
                case op if op in BESIDE:
                    self._beside.handle(request, data, received_at, send)
                case "adapter_load" | "adapters":
                    send(answers.answer({"ok": True, **self.adapters.handle(request, data, received_at)}), b"")
                case _:
                    send(answers.answer(self._stats()), b"")
        except SegmentError as failure:
            self._fail(failure, send, request)

    def stop(self) -> None:
        """Finish what runs, refuse what waits, close the wires."""
        self._transfer.stop()
        self._execution.stop()
        self._wire.close()
        self._hops.close()

    def forget_idle(self) -> int:
        """Forget sequences that were not used for the idle time; returns how many."""
        return self.table.forget_idle(time.monotonic())

    def _executes(self) -> Any:
        settings = self._settings
        return Execution(self._engine, self.table, settings.threads, settings.max_batch, settings.gather_ms / 1e3)

    def _bounds(self) -> Bounds:
        return bounds_of(self._settings, self._engine.hidden)

    def _ended(self, sequence: str) -> None:
        self._execution.forget(sequence)

    def _from_wire(self, role: str, meta: bytes, data: bytearray, send: Send) -> None:
        self.handle(meta, memoryview(data), send, role)

    def _stats(self) -> dict[str, Any]:
        use = self.table.use()
        counts = {"steps": self._totals.steps, "tokens": self._totals.tokens, "wires": self._hops.wires}
        return {"sequences": use.sequences, "kv_bytes": use.total_bytes, **counts}

    def _fail(self, failure: SegmentError, send: Send, request: Request | None = None) -> None:
        if request is not None:
            self._log.failed(request, failure)
        self._meters.add("errors_total", 1, code=failure.code)
        send(answers.error(failure, self._settings.segment), b"")

    def _step(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        self._check_route(request.route)
        values = self._values(request, data)
        if self._engine.is_last:
            check_sampling(request, self._engine.vocabulary)
        check_drafts(request, values if self._engine.is_first else None)
        adapter = self.adapters.get(request.adapter) if request.adapter else None
        self._recorder.add(request.sequence, INPUT, request.position, values, received_at)

        def done(result: Result | SegmentError) -> None:
            if isinstance(result, SegmentError):
                self._fail(result, send, request)
            else:
                self._after_step(request, result, received_at, send)
                self._count(request, values.shape[0], result)  # when the next stage has the step

        self._execution.submit(Step(request, values, received_at, received_at + request.deadline_ms / 1e3, done, adapter))

    def _infer(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        raise SegmentError(WRONG_SEGMENT, "this model's layers keep sequences: they take steps")

    def _check_route(self, route: tuple[Hop, ...]) -> None:
        if self._engine.is_last:
            if route:
                raise SegmentError(WRONG_SEGMENT, f"this is the last segment, but the route goes on to {route[0].segment}")
            return
        if not route:
            raise SegmentError(WRONG_SEGMENT, f"the route ends before layer {self._engine.end} of {self._engine.count}")
        for hop in route:
            address_of(hop.segment, self._settings)
        following, own = MODEL_NAME.fullmatch(route[0].model), MODEL_NAME.fullmatch(self._settings.model_name)
        if following is None:
            raise SegmentError(BAD_REQUEST, f"{route[0].model!r:.100} is not a model's name")
        if int(following["start"]) != self._engine.end or (own is not None and own["digest"] != following["digest"]):
            raise SegmentError(WRONG_SEGMENT, f"{self._settings.model_name} ends before layer {self._engine.end}, next is {route[0].model}")

    def _values(self, request: Request, data: memoryview) -> Values:
        """The step's tensor, of its own dtype and shape, checked against what this segment's layers take."""
        tensor = request.tensor
        if tensor is None:
            raise SegmentError(BAD_REQUEST, "a step needs a tensor")
        engine = self._engine
        expected = "int64" if engine.is_first else self._settings.dtype
        shape_fits = len(tensor.shape) == 1 if engine.is_first else len(tensor.shape) == 2 and tensor.shape[1] == engine.hidden
        if tensor.dtype != expected or not shape_fits:
            takes = "int64 [tokens]" if engine.is_first else f"{expected} [tokens, {engine.hidden}]"
            raise SegmentError(WRONG_SEGMENT, f"layers {engine.start}:{engine.end} take {takes}, got {tensor.dtype} {list(tensor.shape)}")
        values = self._arrays.received(tensor, data)
        if tensor.tokens > self._settings.max_step_tokens:
            raise SegmentError(BAD_REQUEST, f"{tensor.tokens} tokens in one step; at most {self._settings.max_step_tokens} are run at once")
        if request.position + tensor.tokens > self._settings.max_context_tokens:
            raise SegmentError(
                BAD_REQUEST,
                f"position {request.position} and {tensor.tokens} tokens are beyond the longest context, "
                f"{self._settings.max_context_tokens}",
            )
        if engine.is_first and (int(values.min()) < 0 or int(values.max()) >= engine.vocabulary):
            raise SegmentError(BAD_REQUEST, f"token ids should be 0 to {engine.vocabulary - 1}, got {values.min()}..{values.max()}")
        return values

    def _count(self, request: Request, tokens: int, result: Result) -> None:
        phase = "decode" if tokens == 1 + len(request.drafts) and request.position else "prefill"
        self._totals.steps += 1
        self._totals.tokens += tokens
        self._meters.add("steps_total", 1, phase=phase)
        self._meters.add("tokens_total", tokens, phase=phase)
        self._meters.add("batches_total", result.share, phase=phase)
        self._meters.add("compute_seconds_total", result.compute_s * result.share, phase=phase)
        self._meters.add("queue_seconds_total", result.queue_s)

    def _after_step(self, request: Request, result: Result, received_at: float, send: Send) -> None:
        timing = self._timing(result.queue_s, result.compute_s)
        timing.share = result.share
        if result.hidden is None:
            fields: dict[str, Any] = {}
            if result.choice is not None:
                choice = result.choice
                fields |= {
                    "token": choice.token,
                    "logprob": choice.logprob,
                    "top_logprobs": [[token, logprob] for token, logprob in choice.top_logprobs],
                }
            if request.drafts:
                fields["more"] = [[each.token, each.logprob, [list(pair) for pair in each.top_logprobs]] for each in result.more]
            if result.scored:
                fields["scored"] = [[each.logprob, [list(pair) for pair in each.top_logprobs]] for each in result.scored]
            for each in (*([result.choice] if result.choice else ()), *result.scored):
                if each.logprob != each.logprob:
                    self._fail(SegmentError(INTERNAL, "the layers give numbers that are not finite"), send)
                    return
            timing.held_ms = _ms(time.monotonic() - received_at)
            if result.logits is None:
                send(answers.timed(timing, fields), b"")
            else:
                send(answers.timed(timing, fields | outputs_meta(named := {"logits": result.logits})), outputs_data(named, self._arrays))
            return
        self._recorder.add(request.sequence, OUTPUT, request.position, result.hidden, received_at)
        self._send_on(request, result.hidden, self._settings.link_encoding, received_at=received_at, timing=timing, send=send)

    def _timing(self, queue_s: float = 0.0, compute_s: float = 0.0) -> Timing:
        return Timing(self._settings.segment, _ms(queue_s), _ms(compute_s), node=self._settings.node)

    def _send_on(self, request: Request, hidden: Values, encoding: str, *, received_at: float, timing: Timing, send: Send) -> None:
        data = self._arrays.data(hidden, encoding)
        tensor = TensorMeta(self._settings.dtype, tuple(hidden.shape), encoding)
        self._forward(request, tensor, data, received_at=received_at, timing=timing, send=send)

    def _forward(self, request: Request, tensor: TensorMeta | None, data: bytes, *, received_at: float, timing: Timing, send: Send) -> None:
        hop = request.route[0]
        sent_at = time.monotonic()
        left_s = request.deadline_ms / 1e3 - (sent_at - received_at)
        if left_s <= 0:
            failure = SegmentError(DEADLINE_EXCEEDED, f"{request.deadline_ms:.0f} ms are over after this segment")
            self._fail(failure, send, request)
            return

        def done(reply: Reply | SegmentError) -> None:
            hop_s = time.monotonic() - sent_at
            if tensor is not None:
                self._meters.add("hops_total", 1, to=hop.segment)
                self._meters.add("hop_bytes_total", len(data), to=hop.segment)
                self._meters.add("hop_seconds_total", hop_s, to=hop.segment)
            if isinstance(reply, SegmentError):
                self._fail(reply, send, request)
                return
            following = answers.first_timing(reply[0])
            if following is None:  # such as an error
                send(*reply)
                return
            self._measure_link(hop.segment, following, len(data), hop_s)
            timing.hop_ms = _ms(hop_s)
            timing.held_ms = _ms(time.monotonic() - received_at)
            send(answers.relayed(timing, reply[0]), reply[1])

        try:
            self._hops.send(hop, protocol.forwarded(request, tensor, left_s * 1e3), data, left_s, done, most=most_answer(request))
        except SegmentError as failure:
            self._fail(failure, send, request)

    def _measure_link(self, to: str, following: Timing, sent_bytes: int, hop_s: float) -> None:
        """What the next segment did not take of a hop is the link's."""
        link_s = max(0.0, hop_s - following.held_ms / 1e3)
        self._meters.add("link_seconds_total", link_s, to=to)
        self.links.hop(to, following.node, sent_bytes, link_s)

    def _echo(self, request: Request, data: memoryview, received_at: float, send: Send) -> None:
        """Pass DATA on along the route as a step would, without layers or KV: what is left is the cost of a hop."""
        for hop in request.route:
            address_of(hop.segment, self._settings)
        timing = self._timing()
        if request.route:
            self._forward(request, None, bytes(data), received_at=received_at, timing=timing, send=send)
        else:
            timing.held_ms = _ms(time.monotonic() - received_at)
            send(answers.timed(timing, {}), b"")

    def _release(self, request: Request, received_at: float, send: Send) -> None:
        known = self.table.release(request.sequence, request.prefix)
        self._ended(request.sequence)
        if not request.route:
            send(answers.answer({"ok": True, "known": known}), b"")
            return
        for hop in request.route:
            address_of(hop.segment, self._settings)
        self._forward(request, None, b"", received_at=received_at, timing=self._timing(), send=send)

    def _probe(self, request: Request, received_at: float, send: Send) -> None:
        def done(result: Result | SegmentError) -> None:
            if isinstance(result, SegmentError):
                self._fail(result, send)
            elif (result.hidden is not None and not self._arrays.finite(result.hidden)) or (
                result.choice is not None and result.choice.logprob != result.choice.logprob
            ):
                self._fail(SegmentError(INTERNAL, "the layers give numbers that are not finite"), send)
            else:
                send(answers.answer({"ok": True, "ms": round((time.monotonic() - received_at) * 1e3, 3)}), b"")

        probe = Request(op="probe", sample=True, deadline_ms=request.deadline_ms)
        self._execution.submit(Step(probe, self._engine.example(), received_at, received_at + request.deadline_ms / 1e3, done))


def outputs_meta(outputs: Mapping[str, Values]) -> dict[str, Any]:
    """The field `tensors` of an answer that carries outputs: what DATA holds, one after the other."""
    return {"tensors": [{"name": name, "dtype": "float32", "shape": list(tensor.shape)} for name, tensor in outputs.items()]}


def outputs_data(outputs: Mapping[str, Values], arrays: Arrays) -> bytes:
    """DATA of such an answer: float32, little-endian."""
    return b"".join(map(arrays.float32, outputs.values()))


def _in_the_form_of(asked: bytes, send: Send) -> Send:
    """Who asks in JSON alone reads no other answer."""
    return (lambda meta, data: send(answers.in_json(meta), data)) if asked[:1] == b"{" else send


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
