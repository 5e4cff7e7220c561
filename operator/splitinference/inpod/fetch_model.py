"""Fetch from the Hugging Face hub what one pod needs of a model: configuration and tokenizer, and the weights of its layers.

Runs as init container. Plain HTTP as the hub documents it: the list of files with their digests from the API, each file from `resolve/`.
A file that is there is kept if it has the digest that the hub states, and fetched anew if not; an interrupted one is continued, and a
finished one has that digest too. Whoever may not have the model's files gets none, though the node has them already.
Files appear under their names only when whole, so pods that share a cache folder on a node do not see halves.

Usage: fetch_model.py <endpoint> <repository> <revision> <folder> <start:end/count of layers, `none` for no weights, or `adapter`>
       [<folder of the node's cache> <GiB that it may have; 0: any number>].
Token: HF_TOKEN. What is wrong goes to stderr in one line, exit 1.
"""
# ruff: noqa: T201

import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from splitinference.inpod.hub_client import (
    FAULTS,
    Files,
    Stated,
    as_stated,
    blocks,
    check_access,
    get,
    in_words,
    listing,
    patiently,
    token_of_the_environment,
)
from splitinference.inpod.model_cache import GIB, adopt, blob_path, make_room, place
from splitinference.inpod.packed import complain
from splitinference_modelfiles.stored.headers import INDEX, check_named, parse_index, weight_files

SMALL = (".json", ".txt", ".model", ".jinja")
WEIGHTS = ".safetensors"
BLOCK = re.compile(r"(?:^|\.)(?:layers|h|encoder\.layer)\.(\d+)\.")
EMBEDDINGS = re.compile(r"(?:embed_tokens|wte|wpe)\.weight$|(?:^|\.)embeddings\.")
CHAIN = re.compile(r"^(\d+)\.")
POOLING = re.compile(r"\d{1,2}_[A-Za-z]{1,40}/config\.json")
"""Of sentence-transformers: how the hidden states of a text's tokens become one vector."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SMALL_LIMIT = 128 * 2**20
"""The largest tokenizer.json known has a third of this."""


def layers_of(tensor: str, count: int) -> tuple[int, ...]:
    """The layers (as the operator numbers them) that need a tensor. The last may need the embedding too: heads are often tied to it."""
    block = BLOCK.search(tensor)
    if block:
        return (int(block.group(1)) + 1,)
    if chain := CHAIN.search(tensor):  # a generic chain: its layers are numbered as they are
        return (int(chain.group(1)),)
    return (0, count - 1) if EMBEDDINGS.search(tensor) else (count - 1,)


def wanted_weights(weight_map: Mapping[str, str], start: int, end: int, count: int) -> set[str]:
    """The weight files that hold a tensor of the layers [start, end) of `count`."""
    return {file for tensor, file in weight_map.items() if any(start <= layer < end for layer in layers_of(tensor, count))}


def fetch(url: str, token: str, target: str, stated: Stated) -> bool:
    """Fetch one file; False if it was there. ValueError: what came is not what the hub states."""
    if os.path.exists(target) and not os.path.islink(target) and as_stated(target, stated):
        return False
    if stated.size is None and url.endswith(WEIGHTS):
        raise ValueError(f"the hub does not state the size of {url.rpartition('/')[2]}")
    if url.endswith(SMALL) and (stated.size or 0) > SMALL_LIMIT:
        raise ValueError(f"{url.rpartition('/')[2]} has {stated.size} bytes, more than {SMALL_LIMIT}")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = f"{target}.{os.uname().nodename}.part"
    if os.path.islink(part):
        os.unlink(part)
    have = os.path.getsize(part) if os.path.exists(part) else 0
    limit = SMALL_LIMIT if stated.size is None else stated.size
    with get(url, token, have) as answer:
        goes_on = bool(have) and answer.status == 206
        got = have if goes_on else 0
        with open(part, "ab" if goes_on else "wb") as file:
            for block in blocks(answer):
                got += len(block)
                if got > limit:
                    break
                file.write(block)
    if got > limit:
        os.unlink(part)
        raise ValueError(f"{url}: got too many of {limit} bytes")
    if stated.size is not None and got != stated.size:
        raise ValueError(f"{url}: got {got} of {stated.size} bytes")
    if as_stated(part, stated) is False:
        os.unlink(part)
        raise ValueError(f"{url}: its digest is not the one that the hub states")
    os.replace(part, target)
    return True


class Repository(NamedTuple):
    """Where the files of one commit are, and the token for them."""

    base: str
    token: str

    def url(self, path: str) -> str:
        """Of one file."""
        return self.base + urllib.parse.quote(path)


def fetch_cached(of: Repository, path: str, target: str, stated: Stated, cache: "Cache") -> bool:
    """The same by way of the node's cache. What is there already is given only to those who may read this very file from the hub."""
    if stated.sha256 is None or stated.size is None:
        return fetch(of.url(path), of.token, target, stated)
    blob = blob_path(cache.root, stated.sha256)
    adopt(target, blob)
    if os.path.exists(blob) and as_stated(blob, stated):
        check_access(of.base, path, of.token)
        place(blob, target)
        return False
    make_room(cache.root, stated.size, cache.limit, cache.wanted)
    fetch(of.url(path), of.token, blob, stated)
    place(blob, target)
    return True


class Cache(NamedTuple):
    """The node's cache: its folder, how many bytes it may have, and the files there that this pod needs."""

    root: str
    limit: int
    wanted: frozenset[str]

    @classmethod
    def of(cls, root: str, gib: str, stated: Iterable[Stated]) -> "Cache":
        """ValueError where the limit is no number."""
        return cls(root, int(float(gib) * GIB), frozenset(blob_path(root, one.sha256) for one in stated if one.sha256))


def inside(folder: str, path: str) -> str:
    """The target of a file of the repository; ValueError where it would lie elsewhere."""
    target = os.path.normpath(os.path.join(folder, path))
    if not target.startswith(os.path.normpath(folder) + os.sep):
        raise ValueError(f"the repository names a file outside of its folder: {path}")
    return target


def fetch_weights(of: Repository, weights: list[str], folder: str, files: Files, cache: Cache | None) -> None:
    """Fetch these weight files. OSError, ValueError: one could not be had."""
    if cache is not None:
        for path in weights:
            patiently(fetch_cached, of, path, inside(folder, path), files[path], cache)
        return
    there = [path for path in weights if os.path.exists(inside(folder, path))]
    for path in there[:1]:
        patiently(check_access, of.base, path, of.token)
    for path in weights:
        patiently(fetch, of.url(path), of.token, inside(folder, path), files[path])


def fetch_adapter(of: Repository, folder: str, files: Files) -> None:
    """Fetch an adapter in PEFT's format. OSError, ValueError: it could not be had."""
    for path in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if path not in files:
            raise ValueError(f"it has no {path}: an adapter in PEFT's format has {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}")
    for path in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        patiently(fetch, of.url(path), of.token, inside(folder, path), files[path])


def main(endpoint: str, repository: str, revision: str, folder: str, layers: str, *cached: str) -> int:
    """Fetch what is needed into `folder`; return the exit status. `cached`: the folder of the node's cache and its limit, or nothing."""
    try:
        token = token_of_the_environment()
        commit, files = patiently(listing, endpoint, repository, revision, token)
        base = f"{endpoint}/{repository}/resolve/{commit}/"
        if layers == "adapter":
            fetch_adapter(Repository(base, token), folder, files)
            print(f"{repository} at {commit}: an adapter")
            return 0
        wanted = [path for path in files if path.endswith(SMALL) and "/" not in path]
        wanted += [path for path in files if wanted and POOLING.fullmatch(path)]
        if not wanted:
            raise ValueError("it has no configuration in its root")
        patiently(check_access, base, wanted[0], token)
        for path in wanted:
            patiently(fetch, base + urllib.parse.quote(path), token, inside(folder, path), files[path])
        weights: list[str] = []
        if layers != "none":
            if INDEX in files:
                start, end, count = (int(part) for part in re.split("[:/]", layers))
                with open(inside(folder, INDEX), encoding="utf-8") as file:
                    file_of = parse_index(file.read())
                check_named(file_of, files)
                weights = sorted(wanted_weights(file_of, start, end, count))
            else:
                weights = weight_files(files)
            cache = Cache.of(cached[0], cached[1], [files[path] for path in weights]) if cached else None
            fetch_weights(Repository(base, token), weights, folder, files, cache)
    except (*FAULTS, KeyError, TypeError, AttributeError, RecursionError) as error:
        complain(in_words(error, f"{repository} at {revision}"))
        return 1
    print(f"{repository} at {commit}: {len(wanted)} small files, {len(weights)} weight files")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:8]))
