"""Tokens so far, packed by the gateway and read by the last segment: both sides of one form, and what a broken one is told."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference_gateway.pipeline.history import History
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol.wire import leb128
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire import sampling as told
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.leb128 import pack, pack_counts, pack_ids
from splitinference_protocol.wire.request import TensorMeta

TOKENS = st.integers(0, 2**31 - 1)
STEP: dict[str, Any] = {"v": 1, "op": "step", "sequence": "s", "position": 3, "tensor": {"dtype": "int64", "shape": [1]}, "sample": True}
ROUTE = [{"segment": "chat-3-7-b", "model": "seg-ab-3-7"}]


@given(st.lists(TOKENS, max_size=50))
def test_ids_come_back_each_once_in_order(tokens: list[int]) -> None:
    assert leb128.ids(pack_ids(tokens)) == tuple(sorted(set(tokens)))


@given(st.dictionaries(TOKENS, st.integers(1, 2**31), max_size=50))
def test_counts_come_back(counts: dict[int, int]) -> None:
    assert dict(zip(*leb128.counts(pack_counts(counts)), strict=True)) == counts


@given(st.lists(TOKENS, max_size=50))
def test_numbers_come_back(tokens: list[int]) -> None:
    assert leb128.numbers(pack(tokens)) == tokens


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("?", "not base64"),
        ("é", "ASCII|base64"),
        (base64.b64encode(b"\x80").decode(), "ends inside"),
        (base64.b64encode(b"\x80\x80\x80\x80\x80\x01").decode(), "too long"),
        (base64.b64encode(b"\x01\x00").decode(), "twice"),
        ("A" * (leb128.MOST_CHARACTERS + 4), "more than"),
    ],
)
def test_what_cannot_be_read_is_a_value_error(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        leb128.ids(text)


def test_a_count_is_missing() -> None:
    with pytest.raises(ValueError, match="no count"):
        leb128.counts(pack([1]))


def test_a_whole_vocabulary_fits_the_bound() -> None:
    assert len(pack_counts(dict.fromkeys(range(256_000), 127))) < leb128.MOST_CHARACTERS


FULL = Sampling(
    temperature=0.7, top_p=0.9, seed=5, logprobs=2, top_k=40, min_p=0.05, repetition_penalty=1.1, presence_penalty=0.5,
    frequency_penalty=-0.25, bias=((3, -100.0), (9, 1.5)), banned=(256,), min_tokens=2,
)  # fmt: skip


def test_the_segment_reads_what_the_gateway_writes_and_hands_it_on() -> None:
    so_far = History(FULL, [7, 3, 7])
    so_far.add(9)
    meta = {**STEP, "route": ROUTE, "sampling": so_far.sampling.as_json(), "targets": pack([4])}
    request = protocol.parse(json.dumps(meta).encode())
    for read in (request, protocol.parse(protocol.forwarded(request, TensorMeta("bfloat16", (1, 8)), 10.0))):
        told = read.sampling
        assert (told.top_k, told.min_p, told.repetition_penalty, told.presence_penalty, told.frequency_penalty) == (
            40,
            0.05,
            1.1,
            0.5,
            -0.25,
        )
        assert (told.bias, told.banned) == (((3, -100.0), (9, 1.5)), (256,))
        assert leb128.ids(told.prompt) == (3, 7)
        assert leb128.counts(told.generated) == ((9,), (1,))
        assert leb128.numbers(read.targets) == [4]


def test_the_end_is_banned_until_there_are_enough_tokens() -> None:
    so_far = History(FULL, [1])
    told = []
    for token in (5, 5, 5):
        told.append(so_far.sampling.banned)
        so_far.add(token)
    assert told == [(256,), (256,), ()]


def test_without_penalties_nothing_of_the_tokens_is_sent() -> None:
    so_far = History(Sampling(temperature=0.0), [1, 2, 3])
    so_far.add(4)
    assert so_far.sampling.as_json() == {"temperature": 0.0, "top_p": 1.0, "seed": None, "logprobs": 0}
    only_generated = History(Sampling(presence_penalty=1.0), [1, 2, 3])
    only_generated.add(4)
    assert (only_generated.sampling.prompt, leb128.counts(only_generated.sampling.generated)) == ("", ((4,), (1,)))


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": 2},
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"frequency_penalty": None},
        {"bias": {"1": 2}},
        {"bias": [[1]]},
        {"bias": [[1, 101]]},
        {"bias": [[1, 1.0]] * 1025},
        {"banned": [True]},
        {"banned": [1] * 257},
        {"prompt": 5},
        {"generated": "A" * ((1 << 20) + 1)},
    ],
)
def test_a_wrong_sampling_field_is_refused_by_name(sampling: dict[str, Any]) -> None:
    with pytest.raises(SegmentError, match=f"sampling.{next(iter(sampling))}") as caught:
        protocol.parse(json.dumps({**STEP, "sampling": sampling}).encode())
    assert caught.value.code == "bad_request"


@pytest.mark.parametrize(
    "named", [{"bias": ((8, 1.0),)}, {"banned": (8,)}, {"prompt": pack_ids([3, 8])}, {"generated": pack_counts({8: 1})}]
)
def test_a_token_that_the_model_does_not_have_is_told_before_the_step_waits(named: dict[str, Any]) -> None:
    sampling = told.Sampling(**named)
    sampling.check(9)
    with pytest.raises(ValueError, match=f"sampling.{next(iter(named))}: token id 8 is not in the model's vocabulary of 8"):
        sampling.check(8)
