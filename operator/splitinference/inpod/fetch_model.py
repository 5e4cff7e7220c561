"""Fetch from the Hugging Face hub what one pod needs of a model: configuration and tokenizer, and the weights of its layers.

Runs as init container. Plain HTTP as the hub documents it: the list of files with their digests from the API, each file from `resolve/`.
A file that is there with the right size is kept, an interrupted one is continued, and a finished one has the digest that the hub states.
Files appear under their names only when whole, so pods that share a cache folder on a node do not see halves.

Usage: fetch_model.py <endpoint> <repository> <revision> <folder> <start:end/count of layers, or `none` for no weights>.
Token: HF_TOKEN. What is wrong goes to stderr in one line, exit 1.
"""
# ruff: noqa: T201

import hashlib
import json
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

Files = dict[str, tuple[int | None, str | None]]

SMALL = (".json", ".txt", ".model", ".jinja")
WEIGHTS = ".safetensors"
INDEX = "model.safetensors.index.json"
BLOCK = re.compile(r"(?:^|\.)(?:layers|h|encoder\.layer)\.(\d+)\.")
EMBEDDINGS = re.compile(r"(?:embed_tokens|wte|wpe)\.weight$|(?:^|\.)embeddings\.")
CHAIN = re.compile(r"^(\d+)\.")
TRIES = 5
CHUNK = 1 << 20
TIMEOUT_SECONDS = 30


class TokenStaysHere(urllib.request.HTTPRedirectHandler):
    """The hub sends large files elsewhere: the token is for the hub only."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:  # noqa: PLR0917
        """As the base class, without the token where the host differs."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            request.remove_header("Authorization")
        return request


OPENER = urllib.request.build_opener(TokenStaysHere)


def get(url: str, token: str, first_byte: int = 0) -> Any:
    """Open `url`, from `first_byte` on."""
    headers = {"User-Agent": "splitinference"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if first_byte:
        headers["Range"] = f"bytes={first_byte}-"
    return OPENER.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)


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


def fetch(url: str, token: str, target: str, size: int | None, sha256: str | None) -> bool:
    """Fetch one file; False if it was there. ValueError: what came is not what the hub states."""
    if os.path.exists(target) and (size is None or os.path.getsize(target) == size):
        return False
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = f"{target}.{os.uname().nodename}.part"
    have = os.path.getsize(part) if os.path.exists(part) else 0
    with get(url, token, have) as answer, open(part, "ab" if have and answer.status == 206 else "wb") as file:
        while block := answer.read(CHUNK):
            file.write(block)
    if size is not None and os.path.getsize(part) != size:
        if os.path.getsize(part) > size:
            os.unlink(part)
        raise ValueError(f"{url}: got {os.path.getsize(part) if os.path.exists(part) else 'too many'} of {size} bytes")
    if sha256:
        digest = hashlib.sha256()
        with open(part, "rb") as file:
            while block := file.read(CHUNK):
                digest.update(block)
        if digest.hexdigest() != sha256:
            os.unlink(part)
            raise ValueError(f"{url}: its SHA-256 is not the one that the hub states")
    os.replace(part, target)
    return True


def patiently(action: Callable[..., Any], *arguments: Any) -> Any:
    """Call it, again after what may pass. Refusals (401, 403, 404) are final."""
    for attempt in range(1, TRIES + 1):
        try:
            return action(*arguments)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404) or attempt == TRIES:
                raise
        except (OSError, ValueError):
            if attempt == TRIES:
                raise
        time.sleep(min(2**attempt, 20))
    raise AssertionError("unreachable")


def listing(endpoint: str, repository: str, revision: str, token: str) -> tuple[str, Files]:
    """The commit that `revision` means, and its files: {path: (size, sha256 or None)}."""
    url = f"{endpoint}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
    with get(url, token) as answer:
        about = json.load(answer)
    files: Files = {}
    for entry in about["siblings"]:
        large = entry.get("lfs") or {}
        files[entry["rfilename"]] = (large.get("size", entry.get("size")), large.get("sha256"))
    return about["sha"], files


def inside(folder: str, path: str) -> str:
    """The target of a file of the repository; ValueError where it would lie elsewhere."""
    target = os.path.normpath(os.path.join(folder, path))
    if not target.startswith(os.path.normpath(folder) + os.sep):
        raise ValueError(f"the repository names a file outside of its folder: {path}")
    return target


def main(endpoint: str, repository: str, revision: str, folder: str, layers: str) -> int:
    """Fetch what is needed into `folder`; return the exit status."""
    token = os.environ.get("HF_TOKEN", "")
    try:
        commit, files = patiently(listing, endpoint, repository, revision, token)
        base = f"{endpoint}/{repository}/resolve/{commit}/"
        wanted = [path for path in files if path.endswith(SMALL) and "/" not in path]
        for path in wanted:
            patiently(fetch, base + urllib.parse.quote(path), token, inside(folder, path), *files[path])
        weights: list[str] = []
        if layers != "none":
            weights = [path for path in files if path.endswith(WEIGHTS) and "/" not in path]
            if INDEX in files:
                start, end, count = (int(part) for part in re.split("[:/]", layers))
                with open(inside(folder, INDEX), encoding="utf-8") as file:
                    weights = sorted(wanted_weights(json.load(file)["weight_map"], start, end, count))
                if missing := [path for path in weights if path not in files]:
                    raise ValueError(f"{INDEX} names {missing[0]}, which the repository does not have")
            for path in weights:
                patiently(fetch, base + urllib.parse.quote(path), token, inside(folder, path), *files[path])
    except urllib.error.HTTPError as error:
        hint = " (is the token right, and has its owner accepted the model's terms?)" if error.code in (401, 403) else ""
        print(f"{error.url}: the hub says {error.code} {error.reason}{hint}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"{repository} at {revision}: {error}", file=sys.stderr)
        return 1
    print(f"{repository} at {commit}: {len(wanted)} small files, {len(weights)} weight files")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:6]))
