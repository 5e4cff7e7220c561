"""Print what a model on the Hugging Face hub says about itself: config.json and the tensor tables of its *.safetensors files.

Runs in a pod in the resource's namespace, with the hub's token from a Secret that is mounted there: the operator reads neither. Tables are
read by range requests, never the weights. What is wrong goes to stderr in one line, exit 1.

Usage: read_hub.py <endpoint> <repository> <revision>. Token: HF_TOKEN.
"""

import sys
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from splitinference.inpod.hub_client import (
    FAULTS,
    Files,
    check_access,
    get,
    in_words,
    listing,
    patiently,
    read_all,
    read_json,
    token_of_the_environment,
)
from splitinference.inpod.packed import complain, hand_over
from splitinference_modelfiles.headers import INDEX, TensorInfo, check_named, header_length, joined, parse_header, parse_index, weight_files

CONFIG_LIMIT = 4 * 2**20
INDEX_LIMIT = 64 * 2**20
TABLES_LIMIT = 96 * 2**20
FIRST_BYTES = 1 << 18
MOST_FILES = 4000
MOST_NAMES = 1000
AT_ONCE = 8


class Budget:
    """Bytes that all tables together may have."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._lock = threading.Lock()

    def spend(self, count: int) -> None:
        """ValueError where it is spent."""
        with self._lock:
            self._left -= count
            if self._left < 0:
                raise ValueError(f"the tensor tables together are longer than {TABLES_LIMIT} bytes")


def range_of(url: str, token: str, count: int) -> bytes:
    """The first `count` bytes: no more are read, though a server that ignores ranges sends them."""
    data = bytearray()
    with get(url, token, 0, count - 1) as answer:
        while len(data) < count and (block := answer.read1(count - len(data))):
            data += block
    return bytes(data)


def read_table(url: str, token: str, size: int | None, budget: Budget) -> dict[str, TensorInfo]:
    """The tensor table at the start of one safetensors file. ValueError says what is wrong with it."""
    name = url.rpartition("/")[2]
    start = range_of(url, token, FIRST_BYTES)
    length = header_length(start[:8], name)
    budget.spend(length)
    whole = start if len(start) >= 8 + length else range_of(url, token, 8 + length)
    return parse_header(whole[8 : 8 + length], name, size)


def read_model(endpoint: str, repository: str, revision: str, token: str) -> tuple[dict[str, Any], dict[str, list[Any]], list[str]]:
    """Configuration, tensors, and names of the files in its root. OSError, ValueError: what is missing or wrong."""
    commit, files = patiently(listing, endpoint, repository, revision, token)
    names = sorted(name for name in files if "/" not in name)
    if "config.json" not in files:
        raise ValueError("it has no config.json in its root")
    base = f"{endpoint}/{repository}/resolve/{commit}/"
    file_of = None
    if INDEX in files:
        patiently(check_access, base, INDEX, token)
        file_of = patiently(_index, base, token)
        check_named(file_of, names)
        weights = sorted(set(file_of.values()))
    else:
        weights = weight_files(names)
    if not weights:
        raise ValueError("it has no *.safetensors file in its root")
    if len(weights) > MOST_FILES:
        raise ValueError(f"it has {len(weights)} weight files, more than {MOST_FILES}")
    patiently(check_access, base, weights[0], token)
    config = patiently(_config, base, token)
    found = joined(dict(zip(weights, _tables(base, weights, files, token), strict=True)), file_of)
    return config, {name: [info.dtype, info.shape, info.bytes] for name, info in found.items()}, names[:MOST_NAMES]


def _index(base: str, token: str) -> dict[str, str]:
    with get(base + INDEX, token) as answer:
        return parse_index(read_all(answer, INDEX_LIMIT, INDEX))


def _config(base: str, token: str) -> dict[str, Any]:
    with get(base + "config.json", token) as answer:
        return read_json(answer, CONFIG_LIMIT, "config.json")


def _tables(base: str, weights: list[str], files: Files, token: str) -> list[dict[str, TensorInfo]]:
    budget = Budget(TABLES_LIMIT)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        reading = [pool.submit(patiently, read_table, base + urllib.parse.quote(name), token, files[name].size, budget) for name in weights]
        try:
            return [found.result() for found in reading]
        finally:
            pool.shutdown(cancel_futures=True)


def main(endpoint: str, repository: str, revision: str) -> int:
    """Print the model; return the exit status."""
    try:
        hand_over(*read_model(endpoint, repository, revision, token_of_the_environment()))
    except FAULTS as error:
        complain(in_words(error, f"{repository} at {revision}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))
