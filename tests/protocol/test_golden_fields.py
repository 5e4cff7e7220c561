"""The bytes of each field of version 1, those that came later included; and that none is without them.

Who adds a field adds the bytes here: a peer of the release before must still read, and write, the others as they are.
"""

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel

from splitinference_protocol.report import (
    FailedCheck,
    Failing,
    Filtered,
    GatewayReport,
    RouteState,
    Verified,
)
from splitinference_protocol.route import Check, NamedAdapter, RouteDocument, Sleep, Verification, asleep
from splitinference_protocol.wire import answers
from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.meta import encoded, forwarded, parse, question
from splitinference_protocol.wire.operations import OPS
from splitinference_protocol.wire.pooling import Pooling
from splitinference_protocol.wire.request import AdapterPiece, AskedFilter, Hop, Prefix, Request, TensorMeta
from splitinference_protocol.wire.sampling import GREEDY, Sampling

ROUTE = (Hop("chat-3-7-b", "seg-ab-3-7"),)
ROUTE_BYTES = b'{"route":[{"segment":"chat-3-7-b","model":"seg-ab-3-7"}]'
DIGEST, SHA256 = "0123456789abcdef" * 2, "0123456789abcdef" * 4
LATER = datetime(2026, 11, 1, 10, tzinfo=UTC)
GREEDILY = b'"sample":false,"sampling":{"temperature":0.0,"top_p":1.0,"seed":null,"logprobs":0}'
TOKENS = TensorMeta("int64", (3,))


def step(**more: Any) -> Request:
    return Request("step", sequence="s1", position=17, tensor=TOKENS, route=ROUTE, deadline_ms=1.0, **more)


def infer(**more: Any) -> Request:
    return Request("infer", tensor=TensorMeta("float32", (2, 3)), route=ROUTE, deadline_ms=1.0, **more)


STEP_HEAD = bytes.fromhex("01 00 0000 00 00 01 00 000000000000f03f 1100000000000000 03000000")
INFER_HEAD = bytes.fromhex("01 01 0000 01 00 02 00 000000000000f03f 0000000000000000 02000000 03000000")
RELEASE_HEAD = bytes.fromhex("01 03 0000 ff 00 00 00 000000000000f03f 0000000000000000")
OF_STEP = ROUTE_BYTES + b',"sequence":"s1",' + GREEDILY

ALONG_THE_ROUTE = [
    (step(), STEP_HEAD + OF_STEP + b"}"),
    (step(logits=True), STEP_HEAD + OF_STEP + b',"logits":true}'),
    (step(drafts=(9, 3), drop=2), STEP_HEAD + OF_STEP + b',"drafts":"CQM=","drop":2}'),
    (step(adapter=DIGEST), STEP_HEAD + OF_STEP + b',"adapter":"' + DIGEST.encode() + b'"}'),
    (step(targets="BA=="), STEP_HEAD + OF_STEP + b',"targets":"BA=="}'),
    (
        step(sample=True, sampling=Sampling(temperature=0.5, seed=7)),
        STEP_HEAD + ROUTE_BYTES + b',"sequence":"s1","sample":true,"sampling":{"temperature":0.5,"top_p":1.0,"seed":7,"logprobs":0}}',
    ),
    (
        step(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        STEP_HEAD + OF_STEP + b',"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}',
    ),
    (
        Request("release", "s1", route=ROUTE, deadline_ms=1.0, prefix=Prefix(64, ("5d41",))),
        RELEASE_HEAD + ROUTE_BYTES + b',"sequence":"s1","prefix":{"block":64,"hashes":["5d41"]}}',
    ),
    (infer(filter=AskedFilter("layers.json", 0.25)), INFER_HEAD + ROUTE_BYTES + b',"filter":{"file":"layers.json","sample":0.25}}'),
    (
        infer(outputs=("sentence_embedding",), pooling=Pooling(("mean",), normalize=True)),
        INFER_HEAD + ROUTE_BYTES + b',"outputs":["sentence_embedding"],"pooling":{"modes":["mean"],"normalize":true}}',
    ),
]

BESIDE = [
    (
        ("adapter_load", {"adapter": DIGEST, "piece": {"offset": 65536, "total": 70000, "sha256": SHA256}}),
        b'{"v": 1, "op": "adapter_load", "adapter": "' + DIGEST.encode() + b'", '
        b'"piece": {"offset": 65536, "total": 70000, "sha256": "' + SHA256.encode() + b'"}}',
        Request("adapter_load", adapter=DIGEST, piece=AdapterPiece(65536, 70000, SHA256)),
    ),
    (("adapters", {}), b'{"v": 1, "op": "adapters"}', Request("adapters")),
    (
        ("adapters", {"keep": [DIGEST]}),
        b'{"v": 1, "op": "adapters", "keep": ["' + DIGEST.encode() + b'"]}',
        Request("adapters", keep=(DIGEST,)),
    ),
    (("adapters", {"keep": []}), b'{"v": 1, "op": "adapters", "keep": []}', Request("adapters", keep=())),
    (
        ("kv_pull", {"sequence": "s1", "position": 0, "tokens": 64, "sources": [ROUTE[0].as_json]}),
        b'{"v": 1, "op": "kv_pull", "sequence": "s1", "position": 0, "tokens": 64, '
        b'"sources": [{"segment": "chat-3-7-b", "model": "seg-ab-3-7"}]}',
        Request("kv_pull", sequence="s1", tokens=64, sources=ROUTE),
    ),
    (
        ("kv_export", {"sequence": "s1", "position": 8, "tokens": 64, "blocks": [3, 7]}),
        b'{"v": 1, "op": "kv_export", "sequence": "s1", "position": 8, "tokens": 64, "blocks": [3, 7]}',
        Request("kv_export", sequence="s1", position=8, tokens=64, blocks=(3, 7)),
    ),
    (
        ("recorded", {"sequence": "s1", "side": "input", "position": 64, "tokens": 32, "last": True}),
        b'{"v": 1, "op": "recorded", "sequence": "s1", "side": "input", "position": 64, "tokens": 32, "last": true}',
        Request("recorded", sequence="s1", side="input", position=64, tokens=32, last=True),
    ),
]


@pytest.mark.parametrize(("request_", "meta"), ALONG_THE_ROUTE)
def test_what_goes_along_a_route(request_: Request, meta: bytes) -> None:
    assert encoded(request_) == meta
    read = parse(meta)
    assert dataclasses.replace(read, body=b"") == request_
    onward = forwarded(read, read.tensor, 1.0)
    assert onward[2:4] == bytes.fromhex("0100"), "one more hop is done"
    assert onward.endswith(read.body), "the very body goes on"


@pytest.mark.parametrize(("asked", "meta", "request_"), BESIDE)
def test_what_is_asked_beside_it(asked: tuple[str, dict[str, Any]], meta: bytes, request_: Request) -> None:
    op, fields = asked
    assert question(op, **fields) == meta
    assert parse(meta) == request_


def test_the_numbers_of_later_operations() -> None:
    assert OPS[13:15] == ("adapter_load", "adapters")


def test_what_the_first_segment_skipped_comes_back_in_the_body() -> None:
    """As `layer_filter` of the segment writes it."""
    body = {"tensors": [{"name": "logits", "dtype": "float32", "shape": [2, 3]}], "filtered": {"skipped": 2, "compared": 1, "agreed": 1}}
    told = answers.with_body(answers.timed(Timing("c", node="n1"), {"tensors": []}), body)
    assert told.endswith(
        b'cn1{"tensors":[{"name":"logits","dtype":"float32","shape":[2,3]}],"filtered":{"skipped":2,"compared":1,"agreed":1}}'
    )
    assert answers.read(told)[0] == body


# --- the route and the report ---------------------------------------------------------------------------------------------------------

CHECK = Check(segments=("chat-3-7-b",), after=Hop("chat-0-3-a", "seg-ab-0-3"), before=ROUTE[0], verifier=ROUTE[0], referee=ROUTE[0])
ROUTES = [
    (
        RouteDocument(revision="r1", pipelines=(ROUTE,), drain_seconds=2.5, adapters=(NamedAdapter(name="fr", digest=DIGEST),)),
        '{"adapters": [{"digest": "' + DIGEST + '", "name": "fr"}], "drainSeconds": 2.5, '
        '"pipelines": [[{"model": "seg-ab-3-7", "segment": "chat-3-7-b"}]], "revision": "r1", "v": 1}',
    ),
    (
        asleep(20, 60),
        '{"asleep": {"holdSeconds": 60.0, "wakesInSeconds": 20.0}, "drainSeconds": 30.0, "pipelines": [], "revision": "asleep", "v": 1}',
    ),
    (
        RouteDocument(
            revision="r1",
            pipelines=(ROUTE,),
            drain_seconds=2.5,
            verification=Verification(sample_percent=5, tolerance=0.016, checks=(CHECK,), distrusted=("chat-3-7-x",)),
        ),
        '{"drainSeconds": 2.5, "pipelines": [[{"model": "seg-ab-3-7", "segment": "chat-3-7-b"}]], "revision": "r1", "v": 1, '
        '"verification": {"checks": [{"after": {"model": "seg-ab-0-3", "segment": "chat-0-3-a"}, '
        '"before": {"model": "seg-ab-3-7", "segment": "chat-3-7-b"}, "referee": {"model": "seg-ab-3-7", "segment": "chat-3-7-b"}, '
        '"segments": ["chat-3-7-b"], "verifier": {"model": "seg-ab-3-7", "segment": "chat-3-7-b"}}], '
        '"distrusted": ["chat-3-7-x"], "samplePercent": 5.0, "tolerance": 0.016}}',
    ),
]


@pytest.mark.parametrize(("made", "text"), ROUTES)
def test_what_a_route_says(made: RouteDocument, text: str) -> None:
    assert made.text() == text
    assert RouteDocument.parse(text) == made


REPORT = GatewayReport(
    revision="r1",
    routes={"r1": RouteState(in_flight=2)},
    segments={"chat-3-7-b": 2},
    queued=1,
    held=4,
    failing={"chat-3-7-b": Failing(since=LATER, code="next_hop_failed")},
    verification=Verified(
        sampled=3,
        checked_tokens=192,
        skipped=1,
        failed={"x": FailedCheck(since=LATER, sequence="s1", position=64, tokens=64, error=0.035, limit=0.02)},
    ),
    filter=Filtered(
        rows=10, skipped=4, mode="Reuse", pass_rate=0.5, problem="no such file", compared=3, agreement=0.75, floor=0.99, open=True
    ),
    adapters={DIGEST: 2},
)


def test_what_a_report_says_of_filter_adapters_and_held_requests() -> None:
    written = REPORT.written()
    assert written["held"] == 4
    assert written["adapters"] == {DIGEST: 2}
    assert written["filter"] == {
        "rows": 10,
        "skipped": 4,
        "mode": "Reuse",
        "passRate": 0.5,
        "problem": "no such file",
        "compared": 3,
        "agreement": 0.75,
        "floor": 0.99,
        "open": True,
    }
    assert GatewayReport.model_validate(written) == REPORT


# --- that none is without them --------------------------------------------------------------------------------------------------------

INTERNAL = {"body", "done"}
"""Of a request that was read; they are no fields of META."""


def defaults(cls: type[BaseModel]) -> dict[str, Any]:
    return {name: info.get_default(call_default_factory=True) for name, info in cls.model_fields.items()}


def test_each_field_of_a_request_has_bytes() -> None:
    requests = [request for request, _ in ALONG_THE_ROUTE] + [request for *_, request in BESIDE]
    fields = {field.name: field.default for field in dataclasses.fields(Request)}
    unsaid = {name for name, default in fields.items() if all(getattr(request, name) == default for request in requests)}
    assert unsaid == INTERNAL, "a field of META without bytes: add a request that has it to this file"
    assert any(request.sampling != GREEDY for request in requests)


@pytest.mark.parametrize(
    ("cls", "made"),
    [
        (RouteDocument, [made for made, _ in ROUTES]),
        (Verification, [ROUTES[2][0].verification]),
        (Check, [CHECK]),
        (NamedAdapter, [NamedAdapter(name="fr", digest=DIGEST)]),
        (Sleep, [ROUTES[1][0].asleep]),
        (GatewayReport, [REPORT]),
        (Verified, [REPORT.verification]),
        (FailedCheck, [REPORT.verification.failed["x"]]),
        (Filtered, [REPORT.filter]),
    ],
)
def test_so_has_each_field_of_a_route_and_of_a_report(cls: type[BaseModel], made: list[BaseModel]) -> None:
    unsaid = {name for name, default in defaults(cls).items() if all(getattr(each, name) == default for each in made)}
    elsewhere = {RouteDocument: {"v"}, GatewayReport: {"observed"}}
    assert unsaid == elsewhere.get(cls, set()), "a field without bytes: say it in this file"
