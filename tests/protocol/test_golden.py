"""The bytes of the protocol's version 1. A change here is another version: peers of the version before could not read it."""

import json
from datetime import UTC, datetime

import pytest

from splitinference_protocol import VERSION, answers, frames, leb128
from splitinference_protocol.answers import Timing
from splitinference_protocol.meta import ALONG_A_ROUTE, OPS, Hop, Prefix, Request, TensorMeta, encoded, forwarded, parse
from splitinference_protocol.report import Failing, GatewayReport, ObservedTraffic, Percentiles, RouteState, StageTimes
from splitinference_protocol.route import RouteDocument, withdrawn
from splitinference_protocol.sampling import Sampling

ROUTE = (Hop("chat-3-7-b", "seg-ab-3-7"), Hop("chat-7-9-c", "seg-ab-7-9"))
STEP = Request(
    "step",
    sequence="s1",
    position=17,
    tensor=TensorMeta("int64", (1,)),
    route=ROUTE,
    sample=True,
    sampling=Sampling(temperature=0.5, seed=7),
    targets="BA==",
    deadline_ms=1500.0,
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    prefix=Prefix(64, ("5d41", "9b74")),
)
HEAD = bytes.fromhex("01 00 0000 00 00 01 00 0000000000709740 1100000000000000 01000000")
BODY = (
    b'{"route":[{"segment":"chat-3-7-b","model":"seg-ab-3-7"},{"segment":"chat-7-9-c","model":"seg-ab-7-9"}],"sequence":"s1",'
    b'"prefix":{"block":64,"hashes":["5d41","9b74"]},"sample":true,'
    b'"sampling":{"temperature":0.5,"top_p":1.0,"seed":7,"logprobs":0},"targets":"BA==",'
    b'"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}'
)


def test_the_version() -> None:
    assert VERSION == 1


def test_frames_and_greetings() -> None:
    assert frames.greeting("seg-1") == b"SIW1\x05\x00seg-1"
    assert (frames.YES, frames.ANOTHER_MODEL) == (b"SIW1\0", b"SIW1\1")
    assert frames.frame(258, b"{}", b"abc") == bytes.fromhex("0201000000000000 02000000 03000000") + b"{}abc"


def test_operations_and_their_numbers() -> None:
    assert OPS[:8] == ("step", "infer", "echo", "release", "probe", "stats", "kv_pull", "kv_export")
    assert {"step", "infer", "echo", "release"} <= ALONG_A_ROUTE


def test_a_step() -> None:
    assert encoded(STEP) == HEAD + BODY


def test_a_step_at_the_second_hop_has_another_head_and_the_very_body() -> None:
    onward = forwarded(parse(HEAD + BODY), TensorMeta("bfloat16", (1, 64), "int8"), 1000.0)
    assert onward == bytes.fromhex("01 00 0100 02 01 02 00 0000000000408f40 1100000000000000 01000000 40000000") + BODY


@pytest.mark.parametrize(
    ("request_", "meta"),
    [
        (Request("echo", route=ROUTE[:1], deadline_ms=1.0), "01 02 0000 ff 00 00 00 000000000000f03f 0000000000000000"),
        (Request("release", "s1", route=ROUTE[:1], deadline_ms=1.0), "01 03 0000 ff 00 00 00 000000000000f03f 0000000000000000"),
        (
            Request("infer", tensor=TensorMeta("float32", (2, 3)), route=ROUTE[:1], deadline_ms=1.0),
            "01 01 0000 01 00 02 00 000000000000f03f 0000000000000000 02000000 03000000",
        ),
    ],
)
def test_the_head_of_other_operations(request_: Request, meta: str) -> None:
    head = bytes.fromhex(meta)
    assert encoded(request_)[: len(head)] == head
    assert encoded(request_)[len(head) :].startswith(b'{"route":[{"segment":"chat-3-7-b"')


ANSWER = (
    bytes.fromhex("01 00 0100 0100 0200 000000000000e03f 0000000000002440 0000000000000000 0000000000002840 000000000000f03f")
    + b"cn1"
    + b'{"token":260}'
)


def test_an_answer() -> None:
    assert answers.timed(Timing("c", 0.5, 10.0, 0.0, 12.0, 1.0, "n1"), {"token": 260}) == ANSWER


def test_an_answer_one_hop_back() -> None:
    relayed = answers.relayed(Timing("b", 0.0, 2.0, 13.0, 15.0, None, ""), ANSWER)
    own = bytes.fromhex("0100 0000 0000000000000000 0000000000000040 0000000000002a40 0000000000002e40 000000000000f87f") + b"b"
    assert relayed == bytes.fromhex("01 00 0200") + own + ANSWER[4:]


def test_an_error() -> None:
    meta = answers.error(answers.SegmentError("kv_full", "no room"), "chat-0-3-a")
    assert json.loads(meta) == {"v": 1, "error": {"code": "kv_full", "message": "no room", "segment": "chat-0-3-a"}}


def test_numbers_in_leb128() -> None:
    assert leb128.pack([0, 127, 128, 300]) == "AH+AAawC"
    assert leb128.pack_ids([9, 3, 9]) == "AwY="
    assert leb128.pack_counts({9: 2, 3: 1}) == "AwEGAg=="


def test_a_route() -> None:
    text = RouteDocument(revision="r1", pipelines=(ROUTE,), drain_seconds=2.5).text()
    assert text == (
        '{"drainSeconds": 2.5, "pipelines": [[{"model": "seg-ab-3-7", "segment": "chat-3-7-b"}, '
        '{"model": "seg-ab-7-9", "segment": "chat-7-9-c"}]], "revision": "r1", "v": 1}'
    )
    assert RouteDocument.parse(text).pipelines == (ROUTE,)
    assert withdrawn().text() == '{"drainSeconds": 0, "pipelines": [], "revision": "stopped", "v": 1}'


REPORT = {
    "revision": "r1",
    "routes": {"r1": {"inFlight": 2, "state": "serving"}},
    "segments": {"chat-0-3-a": 2},
    "queued": 1,
    "observed": {
        "windowSeconds": 60.0,
        "requests": 3,
        "failed": 1,
        "replays": 0,
        "timePerOutputTokenMs": {"p50": 20.0, "p95": 30.0},
        "longestTokenGapMs": 31.0,
        "ingressMs": 0.4,
        "tokensPerSecond": 12.5,
        "kvReserved": 0.25,
        "stages": {
            "chat-0-3-a": {"computeMs": 9.0, "queueMs": 0.1, "linkMs": 0.5, "steps": 40, "batch": 1.5, "aloneMs": 8.0, "aloneSteps": 4}
        },
    },
    "failing": {"chat-3-7-b": {"since": "2026-11-01T10:00:00Z", "code": "next_hop_failed"}},
}


def test_a_report_is_written_and_read() -> None:
    stage = StageTimes(compute_ms=9, queue_ms=0.1, link_ms=0.5, steps=40, batch=1.5, alone_ms=8, alone_steps=4)
    observed = ObservedTraffic(
        requests=3,
        failed=1,
        time_per_output_token_ms=Percentiles(p50=20, p95=30),
        longest_token_gap_ms=31,
        ingress_ms=0.4,
        tokens_per_second=12.5,
        kv_reserved=0.25,
        stages={"chat-0-3-a": stage},
    )
    made = GatewayReport(
        revision="r1",
        routes={"r1": RouteState(in_flight=2)},
        segments={"chat-0-3-a": 2},
        queued=1,
        observed=observed,
        failing={"chat-3-7-b": Failing(since=datetime(2026, 11, 1, 10, tzinfo=UTC), code="next_hop_failed")},
    )
    assert made.written() == REPORT
    assert GatewayReport.model_validate(REPORT) == made
    assert GatewayReport().written()["revision"] is None
