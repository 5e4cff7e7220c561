"""Bombs of a few kilobytes, unpacked within bounds."""

import base64
import gzip
import json
import tracemalloc

import pytest

from splitinference.controller.kube_values.bounded_text import TooLargeError, gunzip, parse_json
from splitinference.controller.manifests import profile_pod


def test_what_was_packed_is_unpacked():
    assert gunzip(gzip.compress(b"abc", mtime=0), 3) == b"abc"
    assert parse_json(b'{"a": [1, 2]}', 10) == {"a": [1, 2]}


def test_a_bomb_is_given_up_when_too_much_comes_out():
    bomb = gzip.compress(bytes(200 << 20))
    assert len(bomb) < 300_000
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        gunzip(bomb, 1 << 20)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("data", [b"", b"nonsense", gzip.compress(b"abc", mtime=0)[:-4]])
def test_what_is_damaged_is_said(data: bytes):
    with pytest.raises(ValueError, match="damaged|cut short"):  # noqa: RUF043
        gunzip(data, 100)


@pytest.mark.parametrize("text", [b"[" * 90_000, b"[" + b"[]," * 200_000 + b"[]]", b'{"a":' * 50_000])
def test_json_that_becomes_much_more_than_its_text_is_not_read(text: bytes):
    with pytest.raises(TooLargeError):
        parse_json(text, 100_000)


@pytest.mark.parametrize(
    "content",
    [
        bytes(700 << 20),
        b'{"config": {}, "tensors": {"a": [' + b"[]," * 8_000_000 + b"[]]}}",
        b'{"config": ' + b"[" * 900_000 + b"]" * 900_000 + b', "tensors": {}}',
    ],
    ids=["zeros", "lists", "nested"],
)
def test_a_config_map_that_is_a_bomb_takes_little_memory(content: bytes):
    packed = base64.b64encode(gzip.compress(content, 6, mtime=0)).decode()
    assert len(packed) < 1_000_000, "a ConfigMap holds it"
    del content
    tracemalloc.start()
    assert profile_pod.unpack(packed) is None
    assert tracemalloc.get_traced_memory()[1] < 200 << 20
    tracemalloc.stop()


def test_the_largest_models_are_read():
    tensors = {
        f"model.layers.{n // 1500}.mlp.experts.{n % 1500}.weight_scale_inv": ["F8_E4M3", [7168, 2048], 14_680_064] for n in range(91_000)
    }
    text = json.dumps({"config": {}, "tensors": tensors}).encode()
    found = profile_pod.unpack(base64.b64encode(gzip.compress(text, mtime=0)).decode())
    assert found is not None
    assert len(found.tensors) == 91_000
