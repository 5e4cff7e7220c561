"""The bytes of the protocol's version 1. A change here is another version: peers of the version before could not read it."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from splitinference_protocol import VERSION
from splitinference_protocol.report import (
    FailedCheck,
    Failing,
    GatewayReport,
    ObservedTraffic,
    Percentiles,
    RouteState,
    StageTimes,
    Verified,
)
from splitinference_protocol.route import Check, RouteDocument, Verification, withdrawn
from splitinference_protocol.wire import answers, frames, leb128
from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.meta import encoded, forwarded, parse
from splitinference_protocol.wire.operations import ALONG_A_ROUTE, GATEWAY, LOCAL, MAY, OPS, ROLES
from splitinference_protocol.wire.pooling import Pooling
from splitinference_protocol.wire.request import Hop, Prefix, Request, TensorMeta
from splitinference_protocol.wire.sampling import Sampling

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
    assert OPS[8:] == ("record", "recorded", "verify", "compute", "compare", "adapter_load", "adapters")
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


def test_an_inference_that_wants_an_embedding() -> None:
    body = (
        b'{"route":[{"segment":"chat-3-7-b","model":"seg-ab-3-7"}],"outputs":["sentence_embedding"],'
        b'"pooling":{"modes":["mean"],"normalize":true}}'
    )
    head = bytes.fromhex("01 01 0000 00 00 03 00 000000000000f03f 0000000000000000 01000000 02000000 03000000")
    tensor, pooling = TensorMeta("int64", (1, 2, 3)), Pooling(("mean",), normalize=True)
    asked = Request("infer", tensor=tensor, route=ROUTE[:1], deadline_ms=1.0, outputs=("sentence_embedding",), pooling=pooling)
    assert encoded(asked) == head + body
    read = parse(head + body)
    assert (read.outputs, read.pooling) == (asked.outputs, asked.pooling)


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


SPOT_CHECKS = [
    ("record", {"side": "output"}, b'{"v": 1, "op": "record", "sequence": "s1", "deadline_ms": 1000, "side": "output"}'),
    (
        "recorded",
        {"side": "input", "position": 64, "tokens": 32},
        b'{"v": 1, "op": "recorded", "sequence": "s1", "deadline_ms": 1000, "side": "input", "position": 64, "tokens": 32}',
    ),
    (
        "recorded",
        {"side": "input", "last": True},
        b'{"v": 1, "op": "recorded", "sequence": "s1", "deadline_ms": 1000, "side": "input", "last": true}',
    ),
    (
        "verify",
        {"position": 64, "tensor": {"dtype": "bfloat16", "shape": [32, 576]}},
        b'{"v": 1, "op": "verify", "sequence": "s1", "deadline_ms": 1000, "position": 64, '
        b'"tensor": {"dtype": "bfloat16", "shape": [32, 576]}}',
    ),
    *(
        (
            op,
            {"position": 0, "tensor": {"dtype": "bfloat16", "shape": [32, 576]}},
            b'{"v": 1, "op": "' + op.encode() + b'", "sequence": "s1", "deadline_ms": 1000, "position": 0, '
            b'"tensor": {"dtype": "bfloat16", "shape": [32, 576]}}',
        )
        for op in ("compute", "compare")
    ),
]


@pytest.mark.parametrize(("op", "fields", "meta"), SPOT_CHECKS)
def test_spot_checks_are_json_alone_and_go_along_no_route(op: str, fields: dict[str, Any], meta: bytes) -> None:
    assert answers.question(op, sequence="s1", deadline_ms=1000, **fields) == meta
    read = parse(meta)
    assert (read.op, read.sequence, read.deadline_ms, read.route) == (op, "s1", 1000.0, ())
    assert (read.side, read.position, read.tokens, read.last) == (
        fields.get("side", ""),
        fields.get("position", 0),
        fields.get("tokens", 0),
        fields.get("last", False),
    )
    assert read.tensor == (TensorMeta("bfloat16", (32, 576)) if "tensor" in fields else None)
    with pytest.raises(ValueError, match="does not go along a route"):
        encoded(read)


@pytest.mark.parametrize("op", ["record", "recorded", "verify", "compute", "compare"])
def test_only_the_gateway_asks_for_spot_checks(op: str) -> None:
    assert [role for role in (*ROLES, LOCAL) if op in MAY[role]] == [GATEWAY]


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
    assert RouteDocument.parse(text).verification is None
    assert withdrawn().text() == '{"drainSeconds": 0, "pipelines": [], "revision": "stopped", "v": 1}'


def test_what_is_verified_of_a_route() -> None:
    checks = (
        Check(segments=("chat-3-7-b",), before=Hop("chat-0-3-a", "seg-ab-0-3"), after=ROUTE[1], verifier=Hop("chat-v-3-7-d", "seg-ab-3-7")),
        Check(segments=("chat-0-3-x",), after=ROUTE[0], verifier=Hop("chat-v-0-3-d", "seg-ab-0-3")),
    )
    verification = Verification(sample_percent=5, tolerance=0.016, checks=checks, distrusted=("chat-3-7-x",))
    made = RouteDocument(revision="r1", pipelines=(ROUTE,), drain_seconds=2.5, verification=verification)
    assert made.text() == (
        '{"drainSeconds": 2.5, "pipelines": [[{"model": "seg-ab-3-7", "segment": "chat-3-7-b"}, '
        '{"model": "seg-ab-7-9", "segment": "chat-7-9-c"}]], "revision": "r1", "v": 1, "verification": {"checks": ['
        '{"after": {"model": "seg-ab-7-9", "segment": "chat-7-9-c"}, "before": {"model": "seg-ab-0-3", "segment": "chat-0-3-a"}, '
        '"segments": ["chat-3-7-b"], "verifier": {"model": "seg-ab-3-7", "segment": "chat-v-3-7-d"}}, '
        '{"after": {"model": "seg-ab-3-7", "segment": "chat-3-7-b"}, "segments": ["chat-0-3-x"], '
        '"verifier": {"model": "seg-ab-0-3", "segment": "chat-v-0-3-d"}}], '
        '"distrusted": ["chat-3-7-x"], "samplePercent": 5.0, "tolerance": 0.016}}'
    )
    assert RouteDocument.parse(made.text()) == made


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
    "verification": {
        "sampled": 3,
        "checkedTokens": 192,
        "skipped": 1,
        "failed": {
            "chat-7-9-c": {"since": "2026-11-01T10:00:00Z", "sequence": "s1", "position": 64, "tokens": 64, "error": 0.035, "limit": 0.02}
        },
    },
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
    failed = FailedCheck(since=datetime(2026, 11, 1, 10, tzinfo=UTC), sequence="s1", position=64, tokens=64, error=0.035, limit=0.02)
    made = GatewayReport(
        revision="r1",
        routes={"r1": RouteState(in_flight=2)},
        segments={"chat-0-3-a": 2},
        queued=1,
        observed=observed,
        failing={"chat-3-7-b": Failing(since=datetime(2026, 11, 1, 10, tzinfo=UTC), code="next_hop_failed")},
        verification=Verified(sampled=3, checked_tokens=192, skipped=1, failed={"chat-7-9-c": failed}),
    )
    assert made.written() == REPORT
    assert GatewayReport.model_validate(REPORT) == made
    assert GatewayReport().written()["revision"] is None
    before = {name: value for name, value in REPORT.items() if name != "verification"}
    assert GatewayReport.model_validate(before).verification == Verified(), "a gateway that knows no spot checks"
