"""OpenTelemetry traces: a span for each request, below it one for each step through the chain, and below that one for each hop.

Segments export nothing: each answer carries what every stage took, and of that the gateway makes the spans of hops. So no stage needs a way
to a collector, and no clock but the gateway's is in a trace; where in a hop the link's time lies is not known, half is put on each way.
Off unless OTEL_EXPORTER_OTLP_ENDPOINT (or …_TRACES_ENDPOINT) is set; then the libraries' own OTEL_* variables count.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.request import Request

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
STEPS = 64  # of one request that have spans of their own; the rest is summed up in the request's span
_TRACED = ("/v1/", "/v2/models/")
_PREFIX = "splitinference."
_MS = 1_000_000  # ns


class StepTrace(Protocol):
    """One step under way. `traceparent` goes into its META; empty: nothing does."""

    traceparent: str

    def answered(self, timings: Sequence[Timing]) -> None:
        """What the stages say that they took."""


class _Nothing:
    traceparent = ""

    def answered(self, timings: Sequence[Timing]) -> None:
        pass


class RequestTrace:
    """The span of one request, and what is below it."""

    traceparent = ""

    def __init__(self, tracer: Any, span: Any) -> None:
        self._tracer, self._span = tracer, span
        self._steps = 0
        self._sums: dict[str, float] = defaultdict(float)

    def exemplar(self) -> dict[str, str] | None:
        """Labels that lead from a sample of a metric to this trace; None where the trace is not kept."""
        context = self._span.get_span_context()
        if not context.is_valid or not context.trace_flags.sampled:
            return None
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}

    def status(self, code: int) -> None:
        """The HTTP status of the answer."""
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("http.response.status_code", code)
        if code >= 500:
            self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        """Nothing more is below it."""
        self._span.set_attribute(f"{_PREFIX}steps", self._steps)
        for name, value in self._sums.items():
            self._span.set_attribute(name, round(value, 3))

    @contextmanager
    def step(self, asked: Request) -> Iterator[StepTrace]:
        """A span for one step or infer."""
        from opentelemetry.propagate import inject
        from opentelemetry.trace import SpanKind

        self._steps += 1
        if self._steps > STEPS or not self._span.is_recording():
            yield self
            return
        attributes: dict[str, Any] = {f"{_PREFIX}op": asked.op}
        if asked.tensor is not None:
            attributes[f"{_PREFIX}tensor.shape"] = list(asked.tensor.shape)
        if asked.sequence:
            attributes |= {f"{_PREFIX}sequence": asked.sequence, f"{_PREFIX}position": asked.position}
        with self._tracer.start_as_current_span(asked.op, kind=SpanKind.CLIENT, attributes=attributes) as span:
            carrier: dict[str, str] = {}
            inject(carrier)  # the field is W3C's: traceparent
            yield _RecordedStep(self, self._tracer, span, carrier.get("traceparent", ""))

    def answered(self, timings: Sequence[Timing]) -> None:
        """Of a step without a span of its own: only the sums."""
        for timing in timings:
            self._sums[f"{_PREFIX}{timing.segment}.queue_ms"] += timing.queue_ms
            self._sums[f"{_PREFIX}{timing.segment}.compute_ms"] += timing.compute_ms


class _RecordedStep:
    def __init__(self, request: RequestTrace, tracer: Any, span: Any, traceparent: str) -> None:
        self._request, self._tracer, self._span, self.traceparent = request, tracer, span, traceparent
        self._began = time.time_ns()

    def answered(self, timings: Sequence[Timing]) -> None:
        """Make the hops' spans, each below the one that called it."""
        self._request.answered(timings)
        with suppress(ValueError, OverflowError):  # of times that are no numbers no span is made
            self._hops(timings)

    def _hops(self, timings: Sequence[Timing]) -> None:
        from opentelemetry.trace import SpanKind, set_span_in_context

        began, whole_ns, parent = self._began, time.time_ns() - self._began, self._span
        for index, timing in enumerate(timings):
            queue, compute, hop = (int(part * _MS) for part in (timing.queue_ms, timing.compute_ms, timing.hop_ms))
            took = queue + compute + hop
            began += max(0, whole_ns - took) // 2  # the link's time, half on each way
            attributes = {
                f"{_PREFIX}segment": timing.segment,
                f"{_PREFIX}stage": index,
                f"{_PREFIX}queue_ms": queue / _MS,
                f"{_PREFIX}compute_ms": compute / _MS,
                f"{_PREFIX}link_ms": max(0, whole_ns - took) / _MS,
            }
            span = self._tracer.start_span(
                f"stage {index}", set_span_in_context(parent), kind=SpanKind.SERVER, attributes=attributes, start_time=began
            )
            span.end(began + took)
            began, whole_ns, parent = began + queue + compute, hop, span


_CURRENT: ContextVar[RequestTrace | None] = ContextVar("request_trace", default=None)
_NOTHING = _Nothing()


@contextmanager
def step(asked: Request) -> Iterator[StepTrace]:
    """Around one call to the chain that runs layers: a span, if its client's request is traced."""
    request = _CURRENT.get()
    if request is None:
        yield _NOTHING
        return
    with request.step(asked) as traced:
        yield traced


def exemplar() -> dict[str, str] | None:
    """For an observation that is about the request which this runs for; None unless its trace is kept."""
    request = _CURRENT.get()
    return request.exemplar() if request is not None else None


class Tracing:
    """Where spans go. `close` sends what is left."""

    def __init__(self, environment: Mapping[str, str], name: str, namespace: str) -> None:
        """For the resource `name`; to the endpoint of the environment."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        attributes = {"service.name": environment.get("OTEL_SERVICE_NAME") or f"{name}-gateway", "service.namespace": namespace}
        self._provider = TracerProvider(resource=Resource.create(attributes))
        endpoint = environment.get(ENDPOINTS[1]) or environment[ENDPOINTS[0]].rstrip("/") + "/v1/traces"
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        self._tracer = self._provider.get_tracer("splitinference_gateway")

    @staticmethod
    def wanted(environment: Mapping[str, str]) -> bool:
        """Whether the environment names an endpoint."""
        return any(environment.get(variable) for variable in ENDPOINTS)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str]) -> Iterator[RequestTrace]:
        """A span around one request; it continues the client's trace if the headers carry one."""
        from opentelemetry.propagate import extract
        from opentelemetry.trace import SpanKind

        with self._tracer.start_as_current_span(name, extract(headers), kind=SpanKind.SERVER) as span:
            made = RequestTrace(self._tracer, span)
            token = _CURRENT.set(made)
            try:
                yield made
            finally:
                _CURRENT.reset(token)
                made.end()

    def close(self) -> None:
        """Send what is left; blocks for as long as the collector takes."""
        self._provider.shutdown()


class TracedApp:
    """Puts a span around each request of clients."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or not scope["path"].startswith(_TRACED):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        with self._tracing.request(f"{scope['method']} {_route(scope['path'])}", headers) as traced:

            async def sent(message: Message) -> None:
                if message["type"] == "http.response.start":
                    traced.status(message["status"])
                await send(message)

            await self._app(scope, receive, sent)


def _route(path: str) -> str:
    """The path without what names a model, so that spans of one kind have one name."""
    if path.startswith("/v2/models/"):
        return "/v2/models/{model}" + ("/infer" if path.endswith("/infer") else "")
    return "/v1/models" if path.startswith("/v1/models") else path
