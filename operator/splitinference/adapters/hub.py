"""The Hugging Face hub: a model's configuration and tensor tables by HTTP range requests, without its weights."""

import re
from typing import Any
from urllib.parse import quote

import requests

from splitinference.adapters.failures import in_words
from splitinference.controller.resource import HuggingFaceSource
from splitinference.core.model_files import TensorInfo, parse_safetensors_header, safetensors_header_bytes

FIRST_BYTES = 1 << 18
_WEIGHTS = re.compile(r"^[^/]+\.safetensors$")


class HubError(Exception):
    """The hub does not give what is needed; the message says what it said."""


class Hub:
    """One hub. Reading a model takes two requests and one or two for each of its weight files: seconds, so not within a pass."""

    def __init__(self, endpoint: str, timeout_seconds: float = 15.0) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._timeout = timeout_seconds

    def read(self, source: HuggingFaceSource, token: str | None) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        """Configuration and tensors. Raises HubError, UnreadableModel."""
        with requests.Session() as session:
            # As a header of our own, requests would send it to the hosts that the hub redirects to.
            session.auth = _Bearer(token) if token else None
            session.trust_env = True
            about = self._json(session, f"/api/models/{source.repository}/revision/{quote(source.revision, safe='')}")
            files = [str(entry.get("rfilename")) for entry in about.get("siblings") or ()]
            weights = sorted(name for name in files if _WEIGHTS.match(name))
            if "config.json" not in files or not weights:
                raise HubError(f"{source.repository} at {source.revision} has no config.json or no *.safetensors file in its root")
            base = f"/{source.repository}/resolve/{about['sha']}/"
            config = self._json(session, base + "config.json")
            tensors: dict[str, TensorInfo] = {}
            for name in weights:
                tensors.update(self._tensors(session, base + quote(name)))
        return config, tensors

    def _tensors(self, session: requests.Session, path: str) -> dict[str, TensorInfo]:
        start = self._bytes(session, path, FIRST_BYTES)
        needed = safetensors_header_bytes(start)
        return parse_safetensors_header(start if needed <= len(start) else self._bytes(session, path, needed))

    def _json(self, session: requests.Session, path: str) -> dict[str, Any]:
        try:
            found = self._get(session, path).json()
        except ValueError as error:
            raise HubError(f"{self._endpoint}{path} is not JSON") from error
        if not isinstance(found, dict):
            raise HubError(f"{self._endpoint}{path} is not a JSON object")
        return found

    def _bytes(self, session: requests.Session, path: str, count: int) -> bytes:
        # Read no more than asked for: a server that ignores ranges would send gigabytes.
        with self._get(session, path, {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}, stream=True) as answer:
            got = bytearray()
            for block in answer.iter_content(1 << 16):
                got += block
                if len(got) >= count:
                    break
            return bytes(got[:count])

    def _get(self, session: requests.Session, path: str, headers: dict[str, str] | None = None, stream: bool = False) -> requests.Response:
        url = self._endpoint + path
        try:
            answer = session.get(url, headers=headers, timeout=self._timeout, stream=stream)
        except requests.RequestException as error:
            raise HubError(f"{url} cannot be reached: {in_words(error)}") from error
        if answer.status_code in (401, 403):
            raise HubError(f"{url}: {answer.status_code}; is the token right, and has its owner accepted the model's terms?")
        if not answer.ok:
            raise HubError(f"{url}: {answer.status_code} {answer.reason}")
        return answer


class _Bearer(requests.auth.AuthBase):
    """The token, for the hub alone: requests drops it where a redirect leaves the host."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request
