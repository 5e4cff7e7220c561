"""Fetch from the Hugging Face hub the part of a GGUF model that one segment needs: the header, and the tensors of its layers.

Runs as init container. Each file is written with its full length and every tensor at its own place, so that it is read as
the whole file is; what the segment does not need is a hole, which takes no space on the disk. Bytes come by ranges, from one commit.
The hub states a digest of whole files alone, so a part is not checked against it.
An interrupted file is continued. A file appears under its name only when it is whole.

Usage: fetch_gguf.py <endpoint> <repository> <revision> <folder> <start:end/count of layers> <file>
       [<folder of the node's cache> <GiB that it may have; 0: any number>].
Token: HF_TOKEN. What is wrong goes to stderr in one line, exit 1.
"""
# ruff: noqa: T201

import hashlib
import os
import re
import sys
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from splitinference.inpod.hub_client import (
    FAULTS,
    Files,
    Stated,
    blocks,
    check_access,
    get,
    in_words,
    listing,
    patiently,
    token_of_the_environment,
)
from splitinference.inpod.hub_gguf import hub_reader
from splitinference.inpod.model_cache import GIB, blob_path, make_room, place
from splitinference.inpod.packed import complain
from splitinference_modelfiles.gguf_files.gguf import GgufFile, GgufModel, choose_gguf, joined_gguf, read_gguf_with_header
from splitinference_modelfiles.gguf_files.gguf_models import layers_of_tensor

LARGEST_GAP = 1 << 16
"""Bytes between two tensors that are fetched with them rather than by another request."""
Run = tuple[int, int]
"""From the first byte to the one after the last."""


class Source(NamedTuple):
    """A file of the hub, and the token for it."""

    url: str
    token: str


class Layers(NamedTuple):
    """The layers [start, end) of a model of so many."""

    start: int
    end: int
    whole: int


def needed_tensors(model: GgufModel, layers: Layers) -> list[str]:
    """The tensors that these layers need."""
    tied = "output.weight" not in model.tensors
    found = ((name, layers_of_tensor(name, layers.whole - 2, tied)) for name in model.tensors)
    return [name for name, by in found if any(layers.start <= layer < layers.end for layer in by)]


def runs(model: GgufModel, names: Iterable[str], file: str) -> list[Run]:
    """The ranges of bytes of a file that hold these of its tensors."""
    begins = [(model.places[name].offset, model.tensors[name].bytes) for name in names if model.places[name].file == file]
    found: list[Run] = []
    for first, last in sorted((begin, begin + size) for begin, size in begins):
        if found and first - found[-1][1] <= LARGEST_GAP:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def fetch_runs(source: Source, target: str, header: bytes, size: int, wanted: Sequence[Run]) -> None:
    """Write the header and these ranges into `target`, a file of `size` bytes. OSError, ValueError: a range could not be had."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = f"{target}.{os.uname().nodename}.part"
    noted = f"{target}.{os.uname().nodename}.noted.part"
    for path in (part, noted):
        if os.path.islink(path):
            os.unlink(path)
    done = _noted(noted) if os.path.exists(part) and os.path.getsize(part) == size else set()
    with open(part, "r+b" if done else "w+b") as file, open(noted, "a" if done else "w", encoding="utf-8") as notes:
        file.truncate(size)
        file.write(header)
        for first, last in wanted:
            if (first, last) not in done:
                patiently(_fetch_run, source, file, (first, last))
                file.flush()
                os.fsync(file.fileno())
                notes.write(f"{first} {last}\n")
                notes.flush()
    os.replace(part, target)
    os.unlink(noted)


def _fetch_run(source: Source, file: BinaryIO, run: Run) -> None:
    url, (first, last) = source.url, run
    file.seek(first)
    got = first
    with get(url, source.token, first, last - 1) as answer:
        if answer.status != 206:
            raise ValueError(f"the server of {url.rpartition('/')[2]} sends whole files alone, not ranges of bytes")
        for block in blocks(answer):
            got += len(block)
            if got > last:
                raise ValueError(f"{url}: got more than bytes {first} to {last}")
            file.write(block)
    if got != last:
        raise ValueError(f"{url}: got bytes {first} to {got} of {first} to {last}")


def _noted(path: str) -> set[Run]:
    """The ranges that were fetched before; a line that was cut off counts as none."""
    try:
        with open(path, encoding="utf-8") as notes:
            lines = [line.split() for line in notes if line.endswith("\n")]
    except OSError:
        return set()
    return {(int(first), int(last)) for first, last in lines}


def part_name(stated: Stated, name: str, commit: str, layers: Layers) -> str:
    """Names a file's content and the layers that it has here: the cache's key."""
    what = stated.sha256 or f"{commit} {name}"
    return hashlib.sha256(f"gguf {what} {layers.start}-{layers.end}".encode()).hexdigest()


class Parts(NamedTuple):
    """The model's files at one commit: what they hold, and each one's header as it is stored."""

    base: str
    commit: str
    files: Files
    model: GgufModel
    headers: Mapping[str, bytes]

    @classmethod
    def of(cls, endpoint: str, repository: str, revision: str, wanted: str, token: str) -> "Parts":
        """Read from the hub, headers alone. OSError, ValueError: what is missing or wrong."""
        commit, files = patiently(listing, endpoint, repository, revision, token)
        base = f"{endpoint}/{repository}/resolve/{commit}/"
        names = choose_gguf(sorted(files), wanted)
        patiently(check_access, base, names[0], token)
        read: dict[str, tuple[GgufFile, bytes]] = {}
        for name in names:
            size = files[name].size
            if size is None:
                raise ValueError(f"the hub does not state the size of {name}")
            read[name] = read_gguf_with_header(hub_reader(base + urllib.parse.quote(name), token), name, size)
        model = joined_gguf([(name, found) for name, (found, _) in read.items()])
        return cls(base, commit, files, model, {name: header for name, (_, header) in read.items()})


def fetch_parts(parts: Parts, token: str, folder: str, own: Layers, cache: Sequence[str]) -> int:
    """Have what these layers need of each file in `folder`; how many bytes were fetched for that. `cache` as `cached` of `main`."""
    needed = needed_tensors(parts.model, own)
    names = parts.model.files
    blobs = {name: blob_path(cache[0], part_name(parts.files[name], name, parts.commit, own)) for name in names} if cache else {}
    fetched = 0
    for name in names:
        ranges, target = runs(parts.model, needed, name), os.path.join(folder, name.rpartition("/")[2])
        kept = blobs.get(name, target)
        if not os.path.exists(kept):
            length = sum(last - first for first, last in ranges)
            if cache:
                make_room(cache[0], length, int(float(cache[1]) * GIB), frozenset(blobs.values()))
            source = Source(parts.base + urllib.parse.quote(name), token)
            fetch_runs(source, kept, parts.headers[name], parts.files[name].size or 0, ranges)
            fetched += length
        if cache:
            place(kept, target)
    return fetched


def main(endpoint: str, repository: str, revision: str, folder: str, layers: str, *more: str) -> int:
    """Fetch what is needed into `folder`; return the exit status. `more`: the file, then the folder of the node's cache and its limit, or
    nothing."""
    try:
        token = token_of_the_environment()
        own = Layers(*(int(part) for part in re.split("[:/]", layers)))
        parts = Parts.of(endpoint, repository, revision, more[0], token)
        fetched = fetch_parts(parts, token, folder, own, more[1:])
    except (*FAULTS, KeyError, TypeError, AttributeError, RecursionError) as error:
        complain(in_words(error, f"{repository} at {revision}"))
        return 1
    print(f"{repository} at {parts.commit}: {fetched} bytes of {', '.join(parts.model.files)} fetched for layers {layers}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:9]))
