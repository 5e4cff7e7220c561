"""Print what a model on the Hugging Face hub says about itself: config.json and the tensor tables of its *.safetensors files.

Runs in a pod in the resource's namespace, with the hub's token from a Secret that is mounted there: the operator reads neither. Tables are
read by range requests, never the weights. What is wrong goes to stderr in one line, exit 1.

With a digest that the model must have, all weights are read once and thrown away: only so can it be told. Of a GGUF model the metadata and
the tensor table are read.

Usage: read_hub.py <endpoint> <repository> <revision> [<digest that the model must have, or empty> [<engine> [<file>]]]. Token: HF_TOKEN.
"""

import sys
import threading
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from splitinference.inpod.hub_client import (
    FAULTS,
    Files,
    blocks,
    check_access,
    get,
    in_words,
    json_of_answer,
    listing,
    patiently,
    range_of,
    read_all,
    token_of_the_environment,
)
from splitinference.inpod.hub_gguf import hub_gguf
from splitinference.inpod.packed import complain, hand_over
from splitinference_modelfiles.gguf_files.gguf_folder import WhatIsAsked, described
from splitinference_modelfiles.stored.digests import CONFIG_MEMBER, MISMATCH, file_digest, listed, places, started
from splitinference_modelfiles.stored.folder import CONFIG_LIMIT, INDEX_LIMIT, MOST_NAMES, TABLES_LIMIT
from splitinference_modelfiles.stored.headers import (
    INDEX,
    TensorInfo,
    check_named,
    header_length,
    joined,
    parse_header,
    parse_index,
    weight_files,
)

FIRST_BYTES = 1 << 18
NOTHING_ASKED = WhatIsAsked()
MOST_FILES = 4000
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


def read_table(url: str, token: str, size: int | None, budget: Budget) -> dict[str, TensorInfo]:
    """The tensor table at the start of one safetensors file. ValueError says what is wrong with it."""
    name = url.rpartition("/")[2]
    start = range_of(url, token, 0, FIRST_BYTES)
    length = header_length(start[:8], name)
    budget.spend(length)
    whole = start if len(start) >= 8 + length else range_of(url, token, 0, 8 + length)
    return parse_header(whole[8 : 8 + length], name, size)


def read_model(
    endpoint: str, repository: str, revision: str, token: str, asked: WhatIsAsked = NOTHING_ASKED
) -> tuple[dict[str, Any], dict[str, list[Any]], list[str], dict[str, Any]]:
    """Configuration, tensors, names of the files in its root, and what names the content: the commit,
    and where a digest is asked for, the digests.
    OSError, ValueError: what is missing or wrong."""
    commit, files = patiently(listing, endpoint, repository, revision, token)
    names = sorted(name for name in files if "/" not in name)
    if asked.takes_gguf(files):
        model = hub_gguf(f"{endpoint}/{repository}/resolve/{commit}/", files, asked.file, token)
        tensors = {name: [info.dtype, info.shape, info.bytes] for name, info in model.tensors.items()}
        return described(model), tensors, names[:MOST_NAMES], {"commit": commit}
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
    content: dict[str, Any] = {"commit": commit}
    if asked.digest:
        content |= _digests(base, weights, file_of, files, token)
        if content["root"] != asked.digest:
            raise ValueError(f"{MISMATCH}: the model's digest is {content['root']}, expected {asked.digest}")
    return config, {name: [info.dtype, info.shape, info.bytes] for name, info in found.items()}, names[:MOST_NAMES], content


def _digests(base: str, weights: list[str], file_of: dict[str, str] | None, files: Files, token: str) -> dict[str, Any]:
    with get(base + "config.json", token) as answer:
        members = {CONFIG_MEMBER: file_digest("config.json", read_all(answer, CONFIG_LIMIT, "config.json"))}
    for name in weights:
        members |= patiently(_of_file, base + urllib.parse.quote(name), name, file_of, files[name].size, token)
    return listed(members).as_json()


def _of_file(url: str, name: str, file_of: dict[str, str] | None, size: int | None, token: str) -> dict[str, str]:
    """The digest of each tensor that the index has in this file. The bytes are read as they come, and not kept."""
    with get(url, token) as answer:
        source = Stream(answer)
        length = header_length(source.take(8), name)
        header = source.take(length)
        table, members = parse_header(header, name, size), {}
        for tensor, left in places(header, table):
            digest = started(tensor, table[tensor].dtype, table[tensor].shape)
            for piece in source.pieces(left):
                digest.update(piece)
            if file_of is None or file_of.get(tensor) == name:
                members[tensor] = digest.hexdigest()
    return members


class Stream:
    """An answer's bytes in pieces of the sizes that are asked for. ValueError where it ends before."""

    def __init__(self, answer: Any) -> None:
        self._blocks = blocks(answer)
        self._rest = memoryview(b"")

    def pieces(self, count: int) -> Iterator[memoryview]:
        """The next `count` bytes, as they come."""
        while count:
            if not self._rest and not (block := next(self._blocks, b"")):
                raise ValueError(f"it ended {count} bytes too early")
            self._rest = self._rest or memoryview(block)
            piece, self._rest = self._rest[:count], self._rest[count:]
            count -= len(piece)
            yield piece

    def take(self, count: int) -> bytes:
        """The next `count` bytes at once."""
        return b"".join(self.pieces(count))


def _index(base: str, token: str) -> dict[str, str]:
    with get(base + INDEX, token) as answer:
        return parse_index(read_all(answer, INDEX_LIMIT, INDEX))


def _config(base: str, token: str) -> dict[str, Any]:
    with get(base + "config.json", token) as answer:
        return json_of_answer(answer, CONFIG_LIMIT, "config.json")


def _tables(base: str, weights: list[str], files: Files, token: str) -> list[dict[str, TensorInfo]]:
    budget = Budget(TABLES_LIMIT)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        reading = [pool.submit(patiently, read_table, base + urllib.parse.quote(name), token, files[name].size, budget) for name in weights]
        try:
            return [found.result() for found in reading]
        finally:
            pool.shutdown(cancel_futures=True)


def main(endpoint: str, repository: str, revision: str, *said: str) -> int:
    """Print the model; return the exit status. `said`: the fields of `WhatIsAsked`."""
    try:
        hand_over(*read_model(endpoint, repository, revision, token_of_the_environment(), WhatIsAsked(*said)))
    except FAULTS as error:
        complain(in_words(error, f"{repository} at {revision}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:7]))
