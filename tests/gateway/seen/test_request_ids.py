"""One ID for each request: in the answer, in the log, and in what every segment to the last one is sent."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway import logs
from tests.gateway.seen.test_tracing import PARENT, TRACE, TRACEPARENT, receiving
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio

ASKED = {"model": MODEL, "prompt": "x", "max_tokens": 2, "temperature": 0}
ENDED = "splitinference_gateway.request_ids"


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """What is logged as JSON from here on; read when the test looks at it."""
    stream, root = io.StringIO(), logging.getLogger()
    before, level = root.handlers[:], root.level

    class Lines(list[dict[str, Any]]):
        def __iter__(self) -> Iterator[dict[str, Any]]:
            return iter([json.loads(line) for line in stream.getvalue().splitlines()])

    logs.configure({"SI_LOG_FORMAT": "json"})
    (handler,) = root.handlers
    handler.setStream(stream)  # type: ignore[attr-defined]
    yield Lines()
    root.handlers[:] = before
    root.setLevel(level)


async def test_the_answer_the_log_and_every_segment_have_the_same_id(tmp_path: Path, model_path: Path, lines: list[dict[str, Any]]):
    segments = await toy_segments("a", "b", "c")
    async with serving(tmp_path, model_path, segments) as world:
        _, _, answered = await world.post("/v1/completions", ASKED, headers={"X-Request-Id": "order-17"})
        _, _, again = await world.post("/v1/completions", ASKED, headers={})
    one, other = answered["X-Request-Id"], again["X-Request-Id"]
    assert len({one, other}) == 2
    for segment in segments:
        assert {trace.split("-")[1] for trace in segment.traces} == {one, other}
        assert {trace.split("-")[3] for trace in segment.traces} == {"00"}, "nothing is sampled"
    ended = [line for line in lines if line["logger"] == ENDED]
    assert [line["request_id"] for line in ended] == [one, other]
    assert [line.get("client_request_id") for line in ended] == ["order-17", None]
    assert {line["status"] for line in ended} == {200}


async def test_steps_of_a_request_have_the_same_body_so_that_segments_parse_it_once(tmp_path: Path, model_path: Path):
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        await world.post("/v1/completions", {**ASKED, "max_tokens": 5}, headers={})
    assert len(segments[0].traces) > 3
    assert len(set(segments[0].traces)) == 1


async def test_a_clients_trace_is_the_id(tmp_path: Path, model_path: Path):
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        _, _, answered = await world.post("/v1/completions", ASKED, headers={"traceparent": TRACEPARENT})
    assert answered["X-Request-Id"] == TRACE


@pytest.mark.parametrize("wrong", [f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{PARENT}-01", "x" * 300])
async def test_what_is_no_trace_gets_an_id_of_ours(tmp_path: Path, model_path: Path, wrong: str):
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        _, _, answered = await world.post("/v1/completions", ASKED, headers={"traceparent": wrong})
    assert len(answered["X-Request-Id"]) == 32
    assert answered["X-Request-Id"] != TRACE
    assert all(trace.split("-")[1] == answered["X-Request-Id"] for trace in segments[0].traces)


async def test_with_traces_the_id_is_the_traces(tmp_path: Path, model_path: Path):
    segments = await toy_segments("a")
    async with receiving() as receiver:
        async with serving(tmp_path, model_path, segments, environment={"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url}) as world:
            _, _, answered = await world.post("/v1/completions", ASKED, headers={})
        (request,) = receiver.requests()
    assert answered["X-Request-Id"] == request.trace_id.hex()


@pytest.mark.parametrize("given", ["with space", "a" * 129, "ünicode", ""])
async def test_a_clients_id_that_is_odd_is_not_logged(tmp_path: Path, model_path: Path, lines: list[dict[str, Any]], given: str):
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        await world.post("/v1/completions", ASKED, headers={"X-Request-Id": given})
    assert [line for line in lines if "client_request_id" in line] == []


async def test_refused_requests_have_an_id_too_and_probes_have_none(tmp_path: Path, model_path: Path, lines: list[dict[str, Any]]):
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        status, _, answered = await world.post("/v1/completions", {**ASKED, "temperature": -1}, headers={})
        async with world.http.get(f"{world.url}/healthz") as healthy:
            assert "X-Request-Id" not in healthy.headers
    assert status == 400
    assert [(line["request_id"], line["status"]) for line in lines if line["logger"] == ENDED] == [(answered["X-Request-Id"], 400)]


async def test_requests_at_once_keep_their_ids_apart(tmp_path: Path, model_path: Path):
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        answers = await asyncio.gather(*(world.post("/v1/completions", ASKED, headers={}) for _ in range(6)))
    ids = {answered["X-Request-Id"] for _, _, answered in answers}
    assert len(ids) == 6
    assert {trace.split("-")[1] for trace in segments[1].traces} == ids


def test_a_line_stays_one_line_and_says_what_failed(lines: list[dict[str, Any]]):
    log = logging.getLogger("splitinference_gateway.some")
    log.warning("two\nlines: %r", 'a"\n{"level": "CRITICAL"}')
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        log.exception("it failed")
    first, second = lines
    assert (first["level"], first["logger"]) == ("WARNING", "splitinference_gateway.some")
    assert first["message"].startswith("two\nlines")
    assert "request_id" not in first
    assert "RuntimeError: broken" in second["exception"]
    assert first["time"].endswith("+00:00")


def test_a_format_that_is_none_is_refused():
    with pytest.raises(ValueError, match="SI_LOG_FORMAT is 'xml', but should be one of plain, json"):
        logs.configure({"SI_LOG_FORMAT": "xml"})
