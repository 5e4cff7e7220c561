"""The Hugging Face hub over plain HTTP: bounded answers, and a token that goes nowhere else and is never printed."""

import hashlib
import http.client
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

TRIES = 5
TIMEOUT_SECONDS = 30
FAULTS = (OSError, ValueError, http.client.HTTPException)
"""What a hub, or the way to it, may do to a request."""
CHUNK = 1 << 20
LISTING_LIMIT = 8 * 2**20
FEWEST_BYTES_A_MINUTE = 1 << 16
TOKEN = re.compile(r"[\x21-\x7e]{1,1000}")
COMMIT = re.compile(r"[0-9a-f]{7,64}")


class Stated(NamedTuple):
    """What the hub states of a file: its size, and the SHA-256 of a large file or git's name of the content of a small one."""

    size: int | None
    sha256: str | None
    blob: str | None


Files = dict[str, Stated]


class TokenStaysHere(urllib.request.HTTPRedirectHandler):
    """The hub sends large files elsewhere: the token is for the hub only, and not for a connection that anybody can read."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> Any:  # noqa: PLR0917
        """As the base class, without the token where scheme or host differ."""
        there = urllib.parse.urlsplit(newurl)
        if there.scheme not in ("http", "https"):
            raise ValueError(f"the hub redirects to {there.scheme or 'nowhere'}")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        here = urllib.parse.urlsplit(req.full_url)
        if request is not None and (there.scheme, there.netloc) != (here.scheme, here.netloc):
            request.remove_header("Authorization")
        return request


OPENER = urllib.request.build_opener(TokenStaysHere)


def token_of_the_environment() -> str:
    """HF_TOKEN without the spaces and newlines that editors leave. ValueError, without the token, where it cannot be one."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if token and not TOKEN.fullmatch(token):
        raise ValueError("the token has characters that no token has: its Secret should hold one line of printable ASCII")
    return token


def get(url: str, token: str, first_byte: int = 0, last_byte: int | None = None) -> Any:
    """Open `url`, from `first_byte` to `last_byte`."""
    headers = {"User-Agent": "splitinference", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if first_byte or last_byte is not None:
        headers["Range"] = f"bytes={first_byte}-{'' if last_byte is None else last_byte}"
    return OPENER.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)


def blocks(answer: Any) -> Iterator[bytes]:
    """What comes, as it comes. ValueError where so little comes in a minute that it would never end."""
    since, got = time.monotonic(), 0
    while block := answer.read1(CHUNK):
        yield block
        got += len(block)
        if time.monotonic() - since > 60:
            if got < FEWEST_BYTES_A_MINUTE:
                raise ValueError(f"only {got} bytes came within a minute")
            since, got = time.monotonic(), 0


def read_all(answer: Any, limit: int, what: str) -> bytes:
    """The whole body. ValueError where it is longer than `limit`."""
    data = bytearray()
    for block in blocks(answer):
        data += block
        if len(data) > limit:
            raise ValueError(f"{what} is longer than {limit} bytes")
    return bytes(data)


def json_of_answer(answer: Any, limit: int, what: str) -> dict[str, Any]:
    """A JSON object. ValueError where it is none."""
    try:
        found = json.loads(read_all(answer, limit, what))
    except RecursionError as error:
        raise ValueError(f"{what} is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"{what} is not a JSON object")
    return found


def patiently(action: Callable[..., Any], *arguments: Any) -> Any:
    """Call it, again after what may pass. Refusals (401, 403, 404) are final."""
    for attempt in range(1, TRIES + 1):
        try:
            return action(*arguments)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403, 404) or attempt == TRIES:
                raise
        except FAULTS:
            if attempt == TRIES:
                raise
        time.sleep(min(2**attempt, 20))
    raise AssertionError("unreachable")


def listing(endpoint: str, repository: str, revision: str, token: str) -> tuple[str, Files]:
    """The commit that `revision` means, and its files."""
    url = f"{endpoint}/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"
    with get(url, token) as answer:
        about = json_of_answer(answer, LISTING_LIMIT, "the hub's list of files")
    commit, siblings = about.get("sha"), about.get("siblings")
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit) or not isinstance(siblings, list):
        raise ValueError("the hub's list of files has no commit or no files")
    files: Files = {}
    for entry in siblings:
        if not isinstance(entry, dict) or not isinstance(entry.get("rfilename"), str):
            raise ValueError("the hub's list of files has an entry without a name")
        found = entry.get("lfs")
        large: dict[str, Any] = found if isinstance(found, dict) else {}
        size = large.get("size", entry.get("size"))
        sha256, blob = large.get("sha256"), None if large else entry.get("blobId")
        files[entry["rfilename"]] = Stated(
            size if isinstance(size, int) and size >= 0 else None,
            sha256 if isinstance(sha256, str) else None,
            blob if isinstance(blob, str) else None,
        )
    return commit, files


def check_access(base: str, path: str, token: str) -> None:
    """Ask for one byte of a file: the list of a gated model's files is public, the files are not. HTTPError: they are refused."""
    try:
        with get(base + urllib.parse.quote(path), token, 0, 0) as answer:
            answer.read1(1)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # an empty file has no first byte
            raise


def as_stated(path: str, stated: Stated) -> bool | None:
    """Whether the file is what the hub states; None where the hub states too little to tell."""
    size = os.path.getsize(path)
    if stated.size is not None and size != stated.size:
        return False
    if stated.sha256:
        digest, wanted = hashlib.sha256(), stated.sha256
    elif stated.blob and len(stated.blob) == 40:
        digest, wanted = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), stated.blob
    else:
        return None
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest() == wanted


def in_words(error: BaseException, what: str) -> str:
    """What went wrong, without token, password or signature of an address."""
    if isinstance(error, urllib.error.HTTPError):
        url = urllib.parse.urlsplit(error.url or "")
        hint = " (is the token right, and has its owner accepted the model's terms?)" if error.code in (401, 403) else ""
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}: the hub says {error.code} {error.reason}{hint}"
    return f"{what}: {error}"


def range_of(url: str, token: str, first: int, count: int) -> bytes:
    """`count` bytes from `first` on, or fewer at the end of the file: no more are read, though a server that ignores ranges sends them.
    ValueError where a server ignores them, and what is asked for is not the beginning."""
    data = bytearray()
    try:
        with get(url, token, first, first + count - 1) as answer:
            if first and answer.status != 206:
                raise ValueError(f"the server of {url.rpartition('/')[2]} sends whole files alone, not ranges of bytes")
            while len(data) < count and (block := answer.read1(count - len(data))):
                data += block
    except urllib.error.HTTPError as error:
        if error.code != 416 or not first:  # 416: there is nothing from there on
            raise
    return bytes(data)
