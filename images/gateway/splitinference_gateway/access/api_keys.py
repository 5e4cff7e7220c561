"""Clients by API key: the keys in a file, or in the files of a folder, as a mounted Secret has them."""

import hashlib
import hmac
import logging
from pathlib import Path

from splitinference_gateway.access.clients import bearer, wrong_key

_log = logging.getLogger(__name__)


class ApiKeys:
    """One key a line, `#` for comments. Read again when the files change. OSError when they cannot be read at the start."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._stamp: tuple[tuple[int, int], ...] | None = None
        self._digests: tuple[bytes, ...] = ()
        self._read()

    async def identify(self, authorization: str, peer: str) -> str:
        """The client's name.

        Raises:
            ApiError: 401, no key or a wrong one.
        """
        self._refresh()
        digest = _digest(bearer(authorization))
        if not any([hmac.compare_digest(digest, known) for known in self._digests]):  # noqa: C419 - all are compared: equal time
            raise wrong_key()
        return digest.hex()

    def _refresh(self) -> None:
        try:
            self._read()
        except OSError as error:  # between two versions of a mounted Secret; the keys known so far stay
            _log.warning("%s cannot be read: %s", self._source, error)

    def _read(self) -> None:
        files = [self._source]
        if self._source.is_dir():  # a Secret's keys are files; the folders beside them begin with dots
            files = sorted(file for file in self._source.iterdir() if not file.name.startswith("."))
        stamp = tuple((status.st_mtime_ns, status.st_ino) for status in (file.stat() for file in files))
        if stamp == self._stamp:
            return
        lines = [line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines()]
        self._digests = tuple(_digest(line) for line in lines if line and not line.startswith("#"))
        self._stamp = stamp
        _log.info("%d API keys", len(self._digests))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
