"""The filter's file: what is read, what is refused, and what the network says."""

import json
import math
from typing import Any

import pytest

from splitinference_protocol.input_filter import FilterError, InputFilter, read_filter

FILTER: dict[str, Any] = {
    "form": 1, "mode": "Skip", "mean": [1.0, 0.0], "scale": [2.0, 1.0], "hidden": [[1.0, 0.0], [0.0, -1.0]], "hiddenBias": [0.0, 1.0],
    "weight": [3.0, -1.0], "bias": 0.5, "threshold": 0.9, "uselessClass": 1, "answer": [0.0, 2.0, 1.0],
}  # fmt: skip


def made(**changes: Any) -> InputFilter:
    return read_filter(json.dumps({**FILTER, **changes}))


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


def test_what_is_written_is_read_again() -> None:
    assert read_filter(json.dumps(made().as_json())) == made()


def test_the_model_agrees_where_its_largest_output_is_the_useless_class() -> None:
    assert made().agrees([0.0, 0.5, 0.25])
    assert not made().agrees([0.6, 0.5, 0.25])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"form": 2}, "form 1 and mode Skip are expected"),
        ({"mode": "Reuse"}, "form 1 and mode Skip are expected"),
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
