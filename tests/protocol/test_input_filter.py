"""The filter's file: what is read, what is refused, and what the network says."""

import json
import math
from typing import Any

import pytest

from splitinference_protocol.input_filter import AnyFilter, FilterError, InputFilter, Of, ReuseFilter, largest, read_filter
from splitinference_protocol.wire import answers, meta
from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.request import AskedFilter, Hop, Request, TensorMeta

FILTER: dict[str, Any] = {
    "form": 1, "mode": "Skip", "mean": [1.0, 0.0], "scale": [2.0, 1.0], "hidden": [[1.0, 0.0], [0.0, -1.0]], "hiddenBias": [0.0, 1.0],
    "weight": [3.0, -1.0], "bias": 0.5, "threshold": 0.9, "uselessClass": 1, "answer": [0.0, 2.0, 1.0],
}  # fmt: skip


TOKENS: dict[str, Any] = {**FILTER, "of": "tokens", "inputs": 5, "mean": [], "scale": [], "hidden": [[1, 2, 0, 0, -3], [0, 0, 0, 4, 1]]}
REUSE: dict[str, Any] = {
    "form": 1, "mode": "Reuse", "mean": [1.0, 0.0], "scale": [2.0, 1.0], "hidden": [], "hiddenBias": [], "distance": 0.5, "entries": 3,
    "classes": 2,
}  # fmt: skip


def read(told: dict[str, Any], **changes: Any) -> AnyFilter:
    return read_filter(json.dumps({**told, **changes}))


def made(**changes: Any) -> InputFilter:
    found = read(FILTER, **changes)
    assert isinstance(found, InputFilter)
    return found


def test_the_network_is_worked_out_as_written() -> None:
    found = made()
    for row in ([1.0, 0.0], [2.0, 5.0], [-3.0, 0.25]):
        first = max(0.0, (row[0] - 1) * 2)
        second = max(0.0, 1 - row[1])
        assert math.isclose(found.probability(row), 1 / (1 + math.exp(-(3 * first - second + 0.5))))
    assert found.skips([3.0, 0.0])
    assert not found.skips([0.0, 0.0])
    straight = made(hidden=[], hiddenBias=[], weight=[1.0, 1.0])
    assert math.isclose(straight.probability([1.0, 0.0]), 1 / (1 + math.exp(-0.5)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e308])
def test_numbers_that_are_none_pass(value: float) -> None:
    assert not made().skips([value, value])
    assert made(weight=[0.0, 0.0], bias=100.0).skips([1e300, 1.0])
    assert not made(weight=[0.0, 0.0], bias=100.0).skips([math.nan, 1.0])


def test_far_numbers_do_not_overflow() -> None:
    assert made(weight=[1e4, 0.0]).probability([1e4, 0.0]) == 1.0
    assert made(weight=[-1e4, 0.0]).probability([1e4, 0.0]) == 0.0


@pytest.mark.parametrize("told", [FILTER, TOKENS, {**FILTER, "of": "layers", "layers": 3}, REUSE])
def test_what_is_written_is_read_again(told: dict[str, Any]) -> None:
    assert read_filter(json.dumps(read(told).as_json())) == read(told)


def test_each_token_counts_once_and_the_vector_has_length_one() -> None:
    found = read(TOKENS)
    assert isinstance(found, InputFilter)
    for row in ([1], [1, 1, 6], [0, 3, 4], [9, 4, 2]):
        there = {token % 5 for token in row}
        size = 1 / math.sqrt(len(there))
        first = max(0.0, size * sum([1, 2, 0, 0, -3][token] for token in there))
        second = max(0.0, 1 + size * sum([0, 0, 0, 4, 1][token] for token in there))
        assert math.isclose(found.probability(row), 1 / (1 + math.exp(-(3 * first - second + 0.5))))
    straight = read(TOKENS, hidden=[], hiddenBias=[], weight=[1.0, 2.0, 4.0, 8.0, 16.0], bias=0.0)
    assert isinstance(straight, InputFilter)
    for row in ([2], [2, 7, 0], [3, 4, 3, 4, 8]):
        units = straight.features.units(row)
        assert math.isclose(sum(unit**2 for unit in units), 1.0)
        logit = sum(weight * unit for weight, unit in zip(straight.weight, units, strict=True))
        assert math.isclose(straight.features.logit(row, straight.weight), logit)


def test_mode_reuse() -> None:
    found = read(REUSE)
    assert isinstance(found, ReuseFilter)
    assert found.features.units([2.0, 3.0]) == [2.0, 3.0]
    assert (found.features.of, found.distance, found.entries, found.classes) == (Of.VALUES, 0.5, 3, 2)


def test_the_class_is_the_largest_output() -> None:
    assert largest([0.0, 0.5, 0.25]) == 1
    assert largest([0.6, 0.5, 0.25]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": 2}, "form 1 and mode Skip or Reuse are expected"),
        ({"mode": "Cache"}, "form 1 and mode Skip or Reuse are expected"),
        ({"mode": ["Skip"]}, "a field is missing or of another type"),
        ({"of": "text"}, "of is 'text', expected one of values, tokens, layers"),
        ({"of": "layers"}, "names 0 layers"),
        ({"layers": 2}, "names 2 layers"),
        ({"layers": 2.5}, "a field is missing or of another type"),
        ({"of": "layers", "layers": 1 << 20}, "names 1048576 layers"),
        ({"inputs": 3}, "do not fit together"),
        ({"inputs": 1 << 20}, "at most"),
        ({"of": "tokens", "inputs": 2}, "do not fit together"),
        ({"mean": []}, "0 inputs"),
        ({"scale": [1.0]}, "do not fit together"),
        ({"hidden": [[1.0], [1.0]]}, "do not fit together"),
        ({"hiddenBias": [1.0]}, "do not fit together"),
        ({"weight": [1.0]}, "do not fit together"),
        ({"threshold": 0}, "the threshold is 0"),
        ({"threshold": 1.1}, "the threshold is 1.1"),
        ({"answer": [1.0]}, "needs both classes"),
        ({"answer": [2.0, 1.0]}, "does not say the useless class 1"),
        ({"uselessClass": 3}, "does not say the useless class 3"),
        ({"uselessClass": -1}, "does not say the useless class -1"),
        ({"uselessClass": 1.5}, "a field is missing or of another type"),
        ({"bias": None}, "is not a finite number"),
        ({"bias": True}, "is not a finite number"),
        ({"mean": [1.0, math.nan]}, "is not a finite number"),
        ({"mean": "12"}, "expected a list"),
        ({"hidden": [[0.0, 0.0]] * 300}, "at most"),
    ],
)
def test_what_is_no_filter_is_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FilterError, match=said):
        made(**changes)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", b"\xff\xfe", '{"form": 1, "mode": "Skip"}', "[" * 100_000, '{"form": 1e999}'])
def test_what_is_no_json_of_a_filter_is_refused(text: str | bytes) -> None:
    with pytest.raises(FilterError):
        read_filter(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"distance": -1}, "the distance is -1"),
        ({"distance": math.inf}, "is not a finite number"),
        ({"entries": 0}, "0 entries are to be kept; with 2 units, 1 to 4096 are"),
        ({"entries": 1 << 20}, "1 to 4096 are"),
        ({"classes": 1}, "at least 2 are needed"),
        ({"of": "tokens", "inputs": 4, "mean": [], "scale": []}, "needs a hidden layer"),
        ({"of": "layers", "layers": 1}, "the gateway runs it"),
        ({"distance": None}, "is not a finite number"),
    ],
)
def test_what_cannot_reuse_is_refused_with_the_reason(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(FilterError, match=said):
        read(REUSE, **changes)


def test_a_request_names_the_filter_and_hands_it_on() -> None:
    asked = AskedFilter("layers.json", 0.25)
    request = Request("infer", tensor=TensorMeta("float32", (2, 3)), route=(Hop("b", "seg-0-1-2"),), filter=asked)
    assert meta.parse(meta.encoded(request)).filter == asked
    assert meta.parse(meta.forwarded(request, request.tensor, 5.0)).filter == asked
    assert meta.described(meta.encoded(request))["filter"] == {"file": "layers.json", "sample": 0.25}
    assert b"filter" not in meta.encoded(Request("infer", tensor=request.tensor))


def test_an_answer_gets_another_body_and_keeps_its_timings() -> None:
    told = answers.relayed(Timing("a", 1.0, node="one"), answers.timed(Timing("b", 2.0), {"tensors": []}))
    fields, timings = answers.read(answers.with_body(told, {"tensors": [1], "filtered": {}}))
    assert fields == {"tensors": [1], "filtered": {}}
    assert [timing.segment for timing in timings] == ["a", "b"]
    for none in (answers.answer({"ok": True}), b"", told[:6]):
        with pytest.raises(ValueError, match="answer"):
            answers.with_body(none, {})
