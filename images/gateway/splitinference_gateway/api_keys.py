"""Who a client is: the holder of one of the API keys, or, where there are none, a peer address."""

import hashlib
import hmac
import logging
from pathlib import Path

from starlette.requests import Request

from splitinference_gateway.errors import ApiError

_log = logging.getLogger(__name__)


class ApiKeys:
    """The keys in a file, one a line; the file is read again when it changes, as a mounted Secret does."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._stamp: tuple[int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        if file is not None:
            self._read(file)

    def client(self, request: Request) -> str:
        """The client's name, for fairness between clients.

        Raises:
            ApiError: 401, no key or a wrong one.
        """
        if self._file is None:
            return request.client.host if request.client else ""
        self._refresh(self._file)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise ApiError(401, "You didn't provide an API key. Send it in an Authorization header: Bearer YOUR_KEY.")
        digest = _digest(key.strip())
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):  # noqa: C419 - all are compared: equal time
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
        return digest.hex()

    def _refresh(self, file: Path) -> None:
        try:
            self._read(file)
        except OSError as error:  # between two versions of a mounted Secret; the keys known so far stay
            _log.warning("%s cannot be read: %s", file, error)

    def _read(self, file: Path) -> None:
        status = file.stat()
        stamp = (status.st_mtime_ns, status.st_ino)
        if stamp == self._stamp:
            return
        lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
        self._digests = tuple(_digest(line) for line in lines if line and not line.startswith("#"))
        self._stamp = stamp
        _log.info("%d API keys", len(self._digests))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
