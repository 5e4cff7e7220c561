"""META: what is read, and what is refused by name."""

import json
from typing import Any

import pytest

from splitinference_segment import protocol
from splitinference_segment.protocol import Hop, SegmentError, TensorMeta, parse

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


@pytest.mark.parametrize("meta", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_meta_that_is_no_json_object_is_refused(meta: bytes) -> None:
    with pytest.raises(SegmentError) as caught:
        parse(meta)
    assert caught.value.code == "bad_request"


def test_the_trace_of_a_step_is_handed_on_and_what_is_none_is_left_out() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for fields in (STEP, {**STEP, "op": "infer"}):
        request = parse(json.dumps({**fields, "traceparent": trace}).encode())
        assert json.loads(protocol.forwarded(request, TensorMeta("bfloat16", (2, 64)), 1.0))["traceparent"] == trace
    for given in ("", "x" * 55, 7, None, trace + "0"):
        request = parse(json.dumps({**STEP, "traceparent": given}).encode())
        assert "traceparent" not in json.loads(protocol.forwarded(request, None, 1.0))
