"""Traces, as a real OTLP receiver gets them: a span for the request, for each step, and for each hop; the client's trace goes on."""

import asyncio
import gzip
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_grpc
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from splitinference_gateway.tracing import STEPS, Tracing
from tests.gateway.serving import MODEL, serving
from tests.gateway.test_kserve import BERT, given, written
from tests.gateway.toy_chain import ToySegment, toy_segments

pytestmark = pytest.mark.anyio

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@dataclass
class Receiver:
    """Decodes what is exported."""

    spans: list[Any] = field(default_factory=list)
    resources: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def export(self, request: web.Request) -> web.Response:
        body = await request.read()
        message = ExportTraceServiceRequest.FromString(gzip.decompress(body) if request.headers.get("Content-Encoding") == "gzip" else body)
        for resource in message.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        return web.Response(body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf")

    def below(self, span: Any) -> list[Any]:
        return sorted((each for each in self.spans if each.parent_span_id == span.span_id), key=lambda each: int(each.start_time_unix_nano))

    def requests(self) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(("POST", "GET", "grpc"))]


def attributes(span: Any) -> dict[str, Any]:
    made = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        made[each.key] = [v.int_value for v in each.value.array_value.values] if kind == "array_value" else getattr(each.value, kind)
    return made


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/v1/traces", receiver.export)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    yield receiver
    await runner.cleanup()


async def after(
    folder: Path, model: Path, segments: list[ToySegment], body: dict[str, Any], headers: dict[str, str] | None = None
) -> tuple[Receiver, int]:
    """What the receiver has when the gateway has answered one completion and ended; and the status."""
    async with receiving() as receiver:
        async with serving(folder, model, segments, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}) as world:
            status, _, _ = await world.post("/v1/completions", {"model": MODEL, "temperature": 0, **body}, headers=headers or {})
        return receiver, status


async def test_each_hop_of_each_step_is_a_span_of_the_clients_trace(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b", "c")
    body = {"prompt": "twelve bytes", "max_tokens": 3}
    receiver, status = await after(tmp_path, model_path, segments, body, {"traceparent": TRACEPARENT})
    (request,) = receiver.requests()
    assert (request.name, request.trace_id.hex(), request.parent_span_id.hex()) == ("POST /v1/completions", TRACE, PARENT)
    assert attributes(request)["http.response.status_code"] == status == 200
    steps = receiver.below(request)
    assert [attributes(step)["splitinference.tensor.shape"] for step in steps] == [[8], [4], [1], [1]]
    assert attributes(request)["splitinference.steps"] == 4
    for step in steps:
        (first,) = receiver.below(step)
        (second,) = receiver.below(first)
        (third,) = receiver.below(second)
        assert [attributes(hop)["splitinference.segment"] for hop in (first, second, third)] == ["a", "b", "c"]
        outer: Any = step
        for hop in (first, second, third):
            assert outer.start_time_unix_nano <= hop.start_time_unix_nano <= hop.end_time_unix_nano
            outer = hop
        assert attributes(third)["splitinference.compute_ms"] == 1.0
    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
    assert receiver.resources[0]["service.name"] == f"{MODEL}-gateway"


async def test_every_segment_is_told_the_trace(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    receiver, _ = await after(tmp_path, model_path, segments, {"prompt": "x", "max_tokens": 2}, {"traceparent": TRACEPARENT})
    (request,) = receiver.requests()
    told = [f"00-{TRACE}-{step.span_id.hex()}-01" for step in receiver.below(request)]
    assert segments[0].traces == segments[1].traces == told


async def test_a_replay_shows_as_a_failed_step_and_more_steps(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a", "b")
    segments[1].errors.append("internal")
    receiver, status = await after(tmp_path, model_path, segments, {"prompt": "x", "max_tokens": 2})
    (request,) = receiver.requests()
    steps = receiver.below(request)
    assert status == 200
    assert [bool(step.status.code) for step in steps] == [True, False, False]
    assert "internal from b" in steps[0].status.message


async def test_long_answers_have_spans_for_their_beginning_and_sums_for_the_rest(tmp_path: Path, model_path: Path) -> None:
    segments = await toy_segments("a")
    receiver, _ = await after(tmp_path, model_path, segments, {"prompt": "x", "max_tokens": STEPS + 20})
    (request,) = receiver.requests()
    assert len(receiver.below(request)) == STEPS
    assert attributes(request)["splitinference.steps"] == STEPS + 20
    assert attributes(request)["splitinference.a.compute_ms"] == pytest.approx(STEPS + 20)


async def test_what_is_refused_is_traced_with_its_status(tmp_path: Path, model_path: Path) -> None:
    receiver, status = await after(tmp_path, model_path, await toy_segments("a"), {"prompt": 3})
    (request,) = receiver.requests()
    assert attributes(request)["http.response.status_code"] == status == 400
    assert receiver.below(request) == []


async def test_tensors_over_grpc_are_traced_too_and_requests_do_not_mix(tmp_path: Path) -> None:
    segments = await toy_segments("a", "b")
    async with receiving() as receiver:
        environment = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"{receiver.url}/v1/traces"}
        async with serving(
            tmp_path, written(tmp_path / "model", BERT), segments, environment=environment, kserve_port=0, max_concurrent_sequences=8
        ) as world:
            client = triton_grpc.InferenceServerClient(f"127.0.0.1:{world.kserve_port}")
            rows = [np.ones((1, 1 + n), dtype=np.int64) for n in range(6)]
            await asyncio.gather(*(client.infer(MODEL, given(triton_grpc, input_ids=ids)) for ids in rows))
            await client.close()
    requests = receiver.requests()
    assert [span.name for span in requests] == ["grpc ModelInfer"] * 6
    shapes = sorted(shape(receiver.below(request)) for request in requests)
    assert shapes == [[1, 1, n] for n in range(1, 7)]
    assert len({request.trace_id for request in requests}) == 6


def shape(steps: Sequence[Any]) -> list[int]:
    (step,) = steps
    found: list[int] = attributes(step)["splitinference.tensor.shape"]
    return found


def test_traces_are_off_unless_there_is_somewhere_to_send_them() -> None:
    assert not Tracing.wanted({"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_ENDPOINT": ""})
    assert Tracing.wanted({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})


OPENMETRICS = "application/openmetrics-text; version=1.0.0, text/plain; version=0.0.4; q=0.5"


@pytest.mark.parametrize(("flags", "stream"), [("01", False), ("01", True), ("00", False)])
async def test_times_of_a_kept_trace_lead_to_it_from_the_metrics(tmp_path: Path, model_path: Path, flags: str, stream: bool) -> None:
    segments, body = await toy_segments("a"), {"model": MODEL, "temperature": 0, "prompt": "x", "max_tokens": 3}
    async with receiving() as receiver:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}
        async with serving(tmp_path, model_path, segments, environment=environment) as world:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
            async with world.http.post(f"{world.url}/v1/completions", json={**body, "stream": stream}, headers=headers) as response:
                assert response.status == 200
                await response.read()
            async with world.http.get(f"{world.metrics_url}/metrics", headers={"Accept": OPENMETRICS}) as response:
                kind, text = response.headers["Content-Type"], await response.text()
            async with world.http.get(f"{world.metrics_url}/metrics") as response:
                plain = await response.text()
    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    found = {
        (sample.name, sample.exemplar.labels["trace_id"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    times = ("time_to_first_token_seconds", "time_per_output_token_seconds")
    assert found == ({(f"splitinference_gateway_{name}_bucket", TRACE) for name in times} if flags == "01" else set())
    assert "trace_id" not in plain


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=x.y", "*/*", "", "application/openmetrics-text;version=9"])
async def test_what_a_scraper_accepts_never_breaks_the_metrics(tmp_path: Path, model_path: Path, accept: str) -> None:
    async with (
        serving(tmp_path, model_path, await toy_segments("a")) as world,
        world.http.get(f"{world.metrics_url}/metrics", headers={"Accept": accept}) as response,
    ):
        assert response.status == 200
        assert "splitinference_gateway_running_sequences" in await response.text()
