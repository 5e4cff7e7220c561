"""How Prometheus is asked: credentials from files, answers bounded in bytes and time, and no secret in any message.

The files are mounted Secrets or projected tokens. They are read for each question, so a token that was renewed is used at once.
"""

import base64
import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import requests
import urllib3
from requests.auth import HTTPBasicAuth

from splitinference.settings import Settings

_MOST_BYTES_OF_A_FILE = 64 * 1024
_LEAST_SECRET = 4
"""Shorter values are not looked for in messages: they would blank out ordinary words."""
_USER_INFO = re.compile(r"(?<=//)[^/\s]*@")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_OURS_TO_SET = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
_BLOCK = 1 << 16


class CredentialsError(Exception):
    """A file with credentials is missing or holds something else than expected. The message names the file, never its content."""


class TooLargeError(Exception):
    """The answer has more bytes than are allowed."""


class RefusedError(Exception):
    """Prometheus, or what is in front of it, answered with an error or a redirect."""

    def __init__(self, status: int, reason: str, said: str, location: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.said = said
        self.location = location


@dataclass(frozen=True)
class Credentials:
    """What goes with each question. `verify`: a file with CA certificates, or True for those of the system."""

    headers: dict[str, str] = field(default_factory=dict, repr=False)
    auth: "requests.auth.AuthBase | None" = field(default=None, repr=False)
    verify: str | bool = True
    client: tuple[str, str] | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def read_credentials(settings: Settings) -> Credentials:
    """The credentials as the files have them now. Raises CredentialsError."""
    auth: requests.auth.AuthBase | None = None
    secrets: list[str] = []
    if settings.prometheus_basic_auth_folder:
        folder = Path(settings.prometheus_basic_auth_folder)
        user, password = (_line(folder / name) for name in ("username", "password"))
        auth = HTTPBasicAuth(user.encode(), password.encode())
        secrets += [password, base64.b64encode(f"{user}:{password}".encode()).decode()]
    if settings.prometheus_token_file:
        if auth is not None:
            raise CredentialsError("a token and a user name are both given for Prometheus: give one of them")
        token = _line(Path(settings.prometheus_token_file))
        auth = _Bearer(token)
        secrets.append(token)
    headers = dict(_headers(Path(settings.prometheus_headers_folder))) if settings.prometheus_headers_folder else {}
    secrets += headers.values()
    verify: str | bool = True
    if settings.prometheus_ca_file:
        _read(Path(settings.prometheus_ca_file))
        verify = settings.prometheus_ca_file
    client = None
    if settings.prometheus_client_folder:
        files = [Path(settings.prometheus_client_folder) / name for name in ("tls.crt", "tls.key")]
        for file in files:
            _read(file)
        client = (str(files[0]), str(files[1]))
    return Credentials(headers, auth, verify, client, tuple(secrets))


def _headers(folder: Path) -> Iterator[tuple[str, str]]:
    """One header for each file, named like it. What a Secret's volume keeps for itself begins with two dots."""
    try:
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("..") and file.is_file())
    except OSError as error:
        raise CredentialsError(f"the folder {folder} with headers for Prometheus cannot be read: {error.strerror}") from error
    for file in files:
        if not _HEADER_NAME.fullmatch(file.name) or file.name.lower() in _NOT_OURS_TO_SET:
            raise CredentialsError(f"{file}: {file.name!r} cannot be set as a header")
        yield file.name, _line(file)


def _line(file: Path) -> str:
    """The text of a file, which is one line; a line break at its end is no part of it."""
    text = _read(file).strip()
    if not text:
        raise CredentialsError(f"{file} is empty")
    if not text.isprintable():
        raise CredentialsError(f"{file} holds more than one line, or a character that a header cannot have")
    return text


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES_OF_A_FILE + 1)
        if len(content) > _MOST_BYTES_OF_A_FILE:
            raise CredentialsError(f"{file} has more than {_MOST_BYTES_OF_A_FILE} bytes")
        return content.decode()
    except OSError as error:
        raise CredentialsError(f"{file} with credentials for Prometheus cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CredentialsError(f"{file} is not text") from error


def shown(url: str) -> str:
    """The address without user, password, query and fragment: for conditions, events and logs."""
    scheme, slashes, rest = _parts(url)
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"


def in_address(url: str) -> tuple[str, ...]:
    """Secrets that are part of the address: user and password, and values of its query."""
    user, _, password = _parts(url)[2].rpartition("@")[0].partition(":")
    values = [pair.partition("=")[2] for pair in url.partition("?")[2].split("&")]
    return tuple(dict.fromkeys(form for value in (password, f"{user}:{password}", *values) for form in (value, unquote(value))))


def _parts(url: str) -> tuple[str, str, str]:
    """Scheme, slashes and the rest, which ends where the query begins. Also of what is no address."""
    before, slashes, rest = url.partition("//")
    scheme, rest = (before, rest) if slashes else ("", url)
    return scheme, slashes, rest.partition("?")[0].partition("#")[0]


def masked(text: str, secrets: tuple[str, ...]) -> str:
    """The text without these secrets, and without user and password in any address."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, "***")
    return _USER_INFO.sub("***@", text)


class BoundedSession(requests.Session):
    """Takes so many bytes of an answer within so many seconds; follows no redirect, as credentials would go with it."""

    def __init__(self, most_bytes: int, seconds: float) -> None:
        super().__init__()
        self._most_bytes = most_bytes
        self._seconds = seconds
        # Not compressed: a small answer could become a large one.
        self.headers["Accept-Encoding"] = "identity"

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """As requests does; raises RefusedError for an answer that is none, TooLargeError, and ValueError for one that is compressed."""
        until = time.monotonic() + self._seconds
        answer = super().send(request, **{**options, "stream": True, "allow_redirects": False})
        try:
            if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise ValueError("the answer is compressed, which was not asked for")
            answer._content = self._content(answer, until)
        except urllib3.exceptions.TimeoutError as error:
            raise requests.Timeout from error
        except urllib3.exceptions.HTTPError as error:
            raise requests.ConnectionError(error) from error
        finally:
            answer.close()
        if answer.status_code != 200:
            raise RefusedError(answer.status_code, answer.reason, _said(answer.content), answer.headers.get("Location", ""))
        return answer

    def _content(self, answer: requests.Response, until: float) -> bytes:
        got = bytearray()
        # What has come, not whole blocks: a block that comes byte by byte would take as long as it likes.
        while block := answer.raw.read1(_BLOCK, decode_content=False):
            got += block
            if len(got) > self._most_bytes:
                raise TooLargeError
            if time.monotonic() > until:
                raise requests.Timeout
        return bytes(got)


def _said(answer: bytes) -> str:
    """The error of Prometheus' answer in its own words; else the beginning of what came."""
    try:
        found = json.loads(answer)
        return str(found.get("error") or found.get("message") or found)[:300]
    except (ValueError, AttributeError):
        return answer[:100].decode("utf-8", "replace")
