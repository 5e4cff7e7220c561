"""Mutual TLS 1.3 towards the segments: this gateway's certificate, and SPIFFE IDs instead of host names.

The operator renews the files while the gateway runs. They are looked at again for each new connection; connections that are open stay.
"""

import logging
import os
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from splitinference_protocol.wire.operations import SEGMENT

PREFIX_KEY = "prefix.key"
_FILES = ("tls.crt", "tls.key", "ca.crt")
_LOOK_SECONDS = 10.0
_log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class IdentityError(Exception):
    """A certificate or key cannot be used, or is somebody else's; the message says which and why."""


@dataclass
class Identity:
    """The certificate in `folder`, and the resource (a SPIFFE ID without a role) that segments belong to."""

    folder: Path
    resource: str
    _stamp: _Stamp = ()
    _context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """For a connection that is opened now: by the files of this moment, or by the last good ones while new ones cannot be read.

        Raises:
            IdentityError: there never were any.
        """
        try:
            stamp = _stamp(*(self.folder / name for name in _FILES))
            if self._context is None or stamp != self._stamp:
                context = self._load()
                if self._context is None or _stamp(*(self.folder / name for name in _FILES)) == stamp:
                    self._context, self._stamp = context, stamp  # else they are being replaced just now: the next connection looks again
        except OSError as problem:  # SSLError is one
            if self._context is None:
                raise IdentityError(f"{self.folder}: {problem}") from problem
            _log.warning("the certificates in %s cannot be used, the old ones stay in use: %s", self.folder, problem)
        return self._context

    def check(self, peer: ssl.SSLObject | None) -> None:
        """Be sure that the peer is a segment of this resource; TLS has verified its chain.

        Raises:
            IdentityError: it is not.
        """
        names = (peer.getpeercert() or {}).get("subjectAltName", ()) if peer is not None else ()
        if tuple(names) != (("URI", f"{self.resource}/{SEGMENT}"),):
            raise IdentityError(f"the peer is {names!r:.300}, expected {self.resource}/{SEGMENT}")

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # names are SPIFFE IDs: see `check`
        context.verify_mode = ssl.CERT_REQUIRED
        certificate, key, authority = (self.folder / name for name in _FILES)
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
        return context


@dataclass
class PrefixKey:
    """The key that names prefix blocks; only the gateways of one resource hold it. Without a folder it is made here, for this process."""

    folder: Path | None = None
    clock: Callable[[], float] = time.monotonic
    _key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    _seen: _Stamp = ()
    _look_at: float = float("-inf")

    def __call__(self) -> bytes:
        """The key of this moment. What cannot be read leaves the key as it was: nothing is shared by a key that others could know."""
        if self.folder is not None and self.clock() >= self._look_at:
            self._look_at = self.clock() + _LOOK_SECONDS
            file = self.folder / PREFIX_KEY
            try:
                stamp = _stamp(file)
                if stamp != self._seen:
                    key = file.read_bytes()
                    if len(key) < 32:
                        raise OSError(f"{len(key)} bytes are too few for a key")
                    self._key, self._seen = key, stamp
            except OSError as problem:
                _log.warning("%s cannot be used: %s", file, problem)
        return self._key


def _stamp(*files: Path) -> _Stamp:
    stats = [file.stat() for file in files]
    return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)
