"""META: what is read, and what is refused by name."""

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference_protocol.wire import answers
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.meta import encoded, parse
from splitinference_protocol.wire.request import Hop, Prefix, Request, TensorMeta
from splitinference_protocol.wire.sampling import Sampling

STEP: dict[str, Any] = {
    "v": 1,
    "op": "step",
    "sequence": "s",
    "position": 3,
    "tensor": {"dtype": "int64", "shape": [2]},
    "route": [{"segment": "chat-1-2-x", "model": "seg-a-1-2"}, {"segment": "chat-2-3-x", "model": "seg-a-2-3"}],
    "sample": True,
    "sampling": {"temperature": 0.5, "top_p": 0.9, "seed": 7, "logprobs": 2},
    "deadline_ms": 1500,
}


def test_a_step_is_read_whole() -> None:
    request = parse(json.dumps(STEP).encode())
    assert request.tensor == TensorMeta("int64", (2,))
    assert request.route[0] == Hop("chat-1-2-x", "seg-a-1-2")
    assert (request.sampling.temperature, request.sampling.seed, request.sampling.logprobs) == (0.5, 7, 2)
    assert request.deadline_ms == 1500


def test_what_is_forwarded_is_the_same_request_one_hop_further() -> None:
    request = parse(json.dumps(STEP).encode())
    onward = parse(protocol.forwarded(request, TensorMeta("bfloat16", (2, 64)), 1234.5))
    assert onward.route == request.route[1:]
    assert (onward.sequence, onward.position, onward.sample, onward.sampling) == ("s", 3, True, request.sampling)
    assert (onward.tensor, onward.deadline_ms) == (TensorMeta("bfloat16", (2, 64)), 1234.5)


@pytest.mark.parametrize("op", ["step", "infer"])
@pytest.mark.parametrize("tensor", [TensorMeta("bfloat16", (2, 64), "int8"), TensorMeta("float32", (3, 2, 64), "int8")])
def test_how_values_are_packed_is_said_to_the_next_segment(op: str, tensor: TensorMeta) -> None:
    onward = parse(protocol.forwarded(parse(json.dumps({**STEP, "op": op}).encode()), tensor, 1000.0))
    assert (onward.op, onward.tensor) == (op, tensor)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"v": 2}, "version 1"),
        ({"op": "drop"}, "op should be one of"),
        ({"sequence": ""}, "sequence"),
        ({"sequence": 5}, "sequence"),
        ({"position": -1}, "position"),
        ({"position": True}, "position"),
        ({"position": 1.5}, "position"),
        ({"tensor": None}, "tensor"),
        ({"tensor": {"dtype": "int8", "shape": [1]}}, "dtype"),
        ({"tensor": {"dtype": ["int64"], "shape": [1]}}, "dtype"),
        ({"op": ["step"]}, "op should be one of"),
        ({"tensor": {"dtype": "int64", "shape": []}}, "shape"),
        ({"tensor": {"dtype": "int64", "shape": [0]}}, "shape"),
        ({"route": "chat"}, "route"),
        ({"route": [{"segment": "a"}]}, "route.model"),
        ({"sample": 1}, "sample"),
        ({"sampling": {"temperature": -1}}, "temperature"),
        ({"sampling": {"temperature": float("nan")}}, "temperature"),
        ({"sampling": {"top_p": 1.5}}, "top_p"),
        ({"sampling": {"seed": "x"}}, "seed"),
        ({"sampling": {"logprobs": 1000}}, "logprobs"),
        ({"deadline_ms": -5}, "deadline_ms"),
    ],
)
def test_a_wrong_field_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SegmentError, match=said) as caught:
        parse(json.dumps({**STEP, **changes}).encode())
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"op": "record"}, "side"),
        ({"op": "record", "side": "both"}, "side"),
        ({"op": "record", "side": ["input"]}, "side"),
        ({"op": "record", "side": "input", "sequence": ""}, "sequence"),
        ({"op": "recorded", "side": "input", "position": -1}, "position"),
        ({"op": "recorded", "side": "input", "tokens": 1.5}, "tokens"),
        ({"op": "recorded", "side": "input", "last": 1}, "last"),
        ({"op": "verify", "tensor": {"dtype": "int64", "shape": [1]}}, "position"),
        ({"op": "verify", "position": 0}, "tensor"),
        ({"op": "compute", "position": 0}, "tensor"),
        ({"op": "compare", "position": 0}, "tensor"),
        ({"op": "compare", "tensor": {"dtype": "int64", "shape": [1]}}, "position"),
        ({"op": "verify", "position": 0, "tensor": {"dtype": "int64", "shape": [0]}}, "shape"),
    ],
)
def test_a_wrong_field_of_a_spot_check_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SegmentError, match=said) as caught:
        parse(json.dumps({"v": 1, "sequence": "s", **fields}).encode())
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"outputs": "logits"}, "outputs should be a list"),
        ({"outputs": [""]}, "outputs should be texts"),
        ({"outputs": ["a"] * 17}, "outputs should be a list of 16"),
        ({"pooling": "mean"}, "pooling should be"),
        ({"pooling": {"modes": []}}, "pooling should be"),
        ({"pooling": {"modes": ["attention"]}}, "pooling should be"),
        ({"pooling": {"modes": ["mean"] * 7}}, "pooling should be"),
        ({"pooling": {"modes": [["mean"]]}}, "pooling should be"),
        ({"pooling": {"modes": ["mean"], "normalize": 1}}, "pooling should be"),
    ],
)
def test_an_inference_that_wants_what_is_none_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SegmentError, match=said):
        parse(json.dumps({**STEP, "op": "infer", **changes}).encode())


@pytest.mark.parametrize("meta", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_meta_that_is_no_json_object_is_refused(meta: bytes) -> None:
    with pytest.raises(SegmentError) as caught:
        parse(meta)
    assert caught.value.code == "bad_request"


def test_the_trace_of_a_step_is_handed_on_and_what_is_none_is_left_out() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for fields in (STEP, {**STEP, "op": "infer"}):
        request = parse(json.dumps({**fields, "traceparent": trace}).encode())
        assert parse(protocol.forwarded(request, TensorMeta("bfloat16", (2, 64)), 1.0)).traceparent == trace
    for wrong in ("", "x" * 55, 7, None, trace + "0"):
        request = parse(json.dumps({**STEP, "traceparent": wrong}).encode())
        assert request.traceparent == ""


NAMES = st.text(min_size=1, max_size=20)
HOPS = st.builds(Hop, NAMES, NAMES)
TENSORS = st.builds(
    TensorMeta,
    st.sampled_from(["int64", "float32", "bfloat16", "float16"]),
    st.lists(st.integers(1, 2**31), min_size=1, max_size=8).map(tuple),
)
REQUESTS = st.builds(
    Request,
    st.just("step"),
    NAMES,
    st.integers(0, 2**63 - 1),
    TENSORS,
    st.lists(HOPS, max_size=5).map(tuple),
    sample=st.booleans(),
    logits=st.booleans(),
    sampling=st.builds(Sampling, st.floats(0, 100), seed=st.none() | st.integers(-(2**63), 2**63 - 1), logprobs=st.integers(0, 20)),
    deadline_ms=st.floats(0, 86_400_000),
    prefix=st.none() | st.builds(Prefix, st.integers(1, 1 << 20), st.lists(NAMES, min_size=1, max_size=4).map(tuple)),
)


@given(REQUESTS)
def test_any_step_is_read_as_it_was_asked(request_: Request) -> None:
    read = parse(encoded(request_))
    assert replace(read, body=b"") == request_


@given(REQUESTS, st.data())
def test_each_hop_hands_on_the_rest_of_the_route_and_the_very_body(request_: Request, data: st.DataObject) -> None:
    meta, body = encoded(request_), parse(encoded(request_)).body
    for number in range(1, len(request_.route) + 1):
        tensor, left = data.draw(TENSORS), data.draw(st.floats(0, 1000))
        meta = protocol.forwarded(parse(meta), tensor, left)
        assert meta.endswith(body)
        read = parse(meta)
        assert (read.route, read.tensor, read.deadline_ms) == (request_.route[number:], tensor, left)
        assert (read.position, read.sampling, read.sequence, read.prefix) == (
            request_.position,
            request_.sampling,
            request_.sequence,
            request_.prefix,
        )


@given(st.binary(max_size=200))
def test_bytes_that_are_no_meta_are_refused_and_nothing_else(content: bytes) -> None:
    for meta in (content, b"\x01" + content, encoded(parse(json.dumps(STEP).encode()))[:30] + content):
        with suppress(SegmentError):
            parse(meta)
        with suppress(ValueError):
            answers.read(meta)
        answers.first_timing(meta)


WHOLE = encoded(parse(json.dumps(STEP).encode()))


def changed(at: int, to: bytes) -> bytes:
    return WHOLE[:at] + to + WHOLE[at + len(to) :]


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (WHOLE[:20], "shorter than its head"),
        (changed(6, b"\xff"), "shorter than its head|1 to 8"),
        (changed(1, b"\x04"), "operation 4 has no head"),
        (changed(1, b"\xc8"), "operation 200 has no head"),
        (changed(2, b"\x03\x00"), "3 hops of a route of 2 are done"),
        (changed(4, b"\x09"), "dtype 9"),
        (changed(4, b"\xff"), "needs a tensor"),
        (changed(5, b"\x01"), "tensor.encoding"),
        (changed(5, b"\x02"), "encoding 2"),
        (changed(8, b"\x00\x00\x00\x00\x00\x00\xf8\x7f"), "deadline_ms"),
        (changed(8, b"\x00\x00\x00\x00\x00\x00\xf0\xbf"), "deadline_ms"),
        (changed(16, b"\xff" * 8), "position"),
        (changed(24, b"\x00" * 4), "shape"),
        (WHOLE[:28], "not JSON"),
        (WHOLE[:28] + b"[]", "JSON object"),
        (WHOLE[:28] + b'{"route":[]}', "sequence"),
    ],
)
def test_a_wrong_head_is_refused_by_name(meta: bytes, said: str) -> None:
    with pytest.raises(SegmentError, match=said) as caught:
        parse(meta)
    assert caught.value.code == "bad_request"


def test_the_same_body_is_read_once() -> None:
    first, second = parse(WHOLE), parse(changed(16, b"\x04"))
    assert (first.position, second.position) == (3, 4)
    assert first.sampling is second.sampling


def test_two_operations_with_one_body_are_not_mixed_up() -> None:
    release = encoded(Request("release", "s", route=(Hop("a", "m"),)))
    as_echo = release[:1] + b"\x02" + release[2:]
    assert (parse(release).sequence, parse(as_echo).sequence) == ("s", "")


def test_the_json_of_a_request_reads_like_the_request() -> None:
    for meta in (json.dumps(STEP).encode(), WHOLE, protocol.forwarded(parse(WHOLE), TensorMeta("float32", (2, 8), "int8"), 5.0)):
        assert replace(parse(json.dumps(protocol.described(meta)).encode()), body=b"") == replace(parse(meta), body=b"", done=0)


@pytest.mark.parametrize("field", range(5))
@pytest.mark.parametrize("value", [float("inf"), -1.0])
def test_an_answer_with_times_that_are_none_is_refused(field: int, value: float) -> None:
    figures = [0.0] * 5
    figures[field] = value
    with pytest.raises(ValueError, match=r"a .* of "):
        answers.read(answers.timed(answers.Timing("a", *figures), {}))


def test_an_answer_in_json_alone_reads_like_the_other() -> None:
    meta = answers.relayed(answers.Timing("a", 1, 2, 3, 4, 0.5, "n"), answers.timed(answers.Timing("b", 1, 2), {"token": 5}))
    assert answers.read(answers.in_json(meta)) == ({"v": 1, "token": 5}, answers.read(meta)[1])
    assert [timing.segment for timing in answers.read(meta)[1]] == ["a", "b"]
