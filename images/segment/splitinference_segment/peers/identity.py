"""Who this segment is and who its peers are: mutual TLS 1.3 with certificates of the resource's own authority, and SPIFFE IDs for names.

Certificates are files that the operator renews while the segment runs. They are looked at again for each new connection, so a renewed one
is used from the next connection on. Connections that are open stay.
"""

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

from splitinference_protocol.wire.operations import ROLES
from splitinference_segment.settings import SPIFFE_ID

FILES = ("tls.crt", "tls.key", "ca.crt")
_log = logging.getLogger(__name__)


class IdentityError(Exception):
    """A certificate cannot be used, or is somebody else's; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Contexts:
    """TLS for connections that are accepted here, and for those that are opened from here."""

    server: ssl.SSLContext
    client: ssl.SSLContext


class Identity:
    """The certificate in `folder`, and the resource `name` (a SPIFFE ID without the role) that its peers belong to."""

    def __init__(self, folder: Path, name: str) -> None:
        """Read the files.

        Raises:
            IdentityError: they are not there, do not fit together, or the name is no SPIFFE ID.
        """
        if not SPIFFE_ID.fullmatch(name):
            raise IdentityError(f"{name!r:.300} is not spiffe://<trust domain>/ns/<namespace>/si/<name>")
        self.name, self._folder = name, folder
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._contexts = self._load()

    def contexts(self) -> Contexts:
        """TLS by the files of this moment; by the last good ones while new ones cannot be read."""
        with self._lock:
            try:
                stamp = self._stamp()
                if stamp != self._seen:
                    contexts = self._load()
                    if self._stamp() == stamp:  # else they are being replaced just now: the next connection looks again
                        self._seen, self._contexts = stamp, contexts
            except IdentityError as problem:
                _log.warning("the certificates in %s cannot be used, the old ones stay in use: %s", self._folder, problem)
            return self._contexts

    def role_of(self, peer: ssl.SSLObject) -> str:
        """The role in the peer's certificate, whose chain TLS has verified.

        Raises:
            IdentityError: it is not of this resource.
        """
        names = (peer.getpeercert() or {}).get("subjectAltName", ())
        if len(names) == 1 and names[0][0] == "URI":
            resource, _, role = str(names[0][1]).rpartition("/")
            if resource == self.name and role in ROLES:
                return role
        raise IdentityError(f"the peer is {names!r:.300}, expected a part of {self.name}")

    def _stamp(self) -> tuple[tuple[int, int, int], ...]:
        try:
            stats = [(self._folder / name).stat() for name in FILES]
        except OSError as missing:
            raise IdentityError(f"{missing.filename}: {missing.strerror}") from missing
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def _load(self) -> Contexts:
        return Contexts(self._context(ssl.PROTOCOL_TLS_SERVER), self._context(ssl.PROTOCOL_TLS_CLIENT))

    def _context(self, protocol: int) -> ssl.SSLContext:
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # names are SPIFFE IDs: see role_of
        context.verify_mode = ssl.CERT_REQUIRED
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
        if protocol == ssl.PROTOCOL_TLS_SERVER:
            context.num_tickets = 0  # nobody resumes, and a ticket would be written beside the first answer
        certificate, key, authority = (self._folder / name for name in FILES)
        try:
            context.load_cert_chain(certificate, key)
            context.load_verify_locations(authority)
        except (OSError, ValueError) as problem:  # SSLError is an OSError
            raise IdentityError(f"{self._folder}: {problem}") from problem
        return context
