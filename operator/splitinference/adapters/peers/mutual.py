"""Connections to gateways and segments: mutual TLS 1.3 as the resource's operator, with one time limit for all of it and one for bytes.

A pod is asked at its address, which proves nothing. Its certificate must be signed by the resource's CA and name the expected SPIFFE ID.
What it sends afterwards is still bounded: a segment or gateway that was broken into must not be able to hold up or fill up the operator.
"""

import io
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from splitinference.adapters.failures import in_words
from splitinference.controller.identity import Authority, Credentials, Owner, Role, spiffe_id
from splitinference.controller.ports import Clock, RefusedError, UnavailableError

_MOST_CONTEXTS = 4096


class UnreachableError(Exception):
    """No TCP connection was made; the cause is the OSError."""


class UntrustedError(Exception):
    """The handshake failed, or the peer is somebody else; or there is no certificate to show. The message says which."""


class TooMuchError(Exception):
    """The peer sent more than it may."""


class _Bounded(io.RawIOBase):
    """What a socket receives, up to so many bytes and until a point in time."""

    def __init__(self, secured: ssl.SSLSocket, limit_bytes: int, deadline: float) -> None:
        super().__init__()
        self._socket, self._left, self._deadline = secured, limit_bytes, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        self._socket.settimeout(remaining(self._deadline))
        count = self._socket.recv_into(buffer)
        self._left -= count
        if self._left < 0:
            raise TooMuchError("its answer is longer than allowed")
        return count


def remaining(deadline: float) -> float:
    """Seconds until then. Raises TimeoutError when it is past."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


@dataclass
class Connection:
    """A connection to a peer that has shown who it is. `address` and `port` are where it is."""

    secured: ssl.SSLSocket

    def send(self, content: bytes, deadline: float) -> None:
        """Send all of it. Raises OSError."""
        self.secured.settimeout(remaining(deadline))
        self.secured.sendall(content)

    def received(self, limit_bytes: int, deadline: float) -> io.BufferedReader:
        """What comes, as a file. Reading raises OSError, TimeoutError among them, or TooMuchError."""
        return io.BufferedReader(_Bounded(self.secured, limit_bytes, deadline))

    def close(self) -> None:
        """End it, without waiting for the peer."""
        self.secured.close()


@dataclass
class Peers:
    """Opens connections. Used by many threads."""

    authority: Authority
    clock: Clock
    trust_domain: str
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _contexts: dict[Owner, tuple[Credentials, ssl.SSLContext]] = field(default_factory=dict)

    def connect(self, owner: Owner, role: Role, where: tuple[str, int], name: str, deadline: float) -> Connection:
        """A connection to the pod at this address and port, which must be the resource's `role`.

        `name` is sent as SNI, so that a server that stands for several pods can tell them apart; it proves nothing.
        Raises UnreachableError, UntrustedError, and OSError for what comes between.
        """
        context = self._context(owner)
        expected = spiffe_id(self.trust_domain, owner, role)
        try:
            plain = socket.create_connection(where, timeout=remaining(deadline))
        except OSError as error:
            raise UnreachableError(in_words(error)) from error
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(remaining(deadline))
            secured = context.wrap_socket(plain, server_hostname=name)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise UntrustedError(f"its certificate was not accepted: {error.verify_message}") from error
        except ssl.SSLError as error:
            plain.close()
            raise UntrustedError(f"the TLS handshake failed: {error.reason or in_words(error)}") from error
        except OSError:
            plain.close()
            raise
        if (found := _uris(secured)) != [expected]:
            secured.close()
            raise UntrustedError(f"its certificate is for {', '.join(found) or 'nobody'}, expected {expected}")
        return Connection(secured)

    def _context(self, owner: Owner) -> ssl.SSLContext:
        try:
            credentials = self.authority.credentials(owner, Role.OPERATOR, self.clock.now())
        except (UnavailableError, RefusedError) as error:
            raise UntrustedError(f"the operator has no certificate to show: {error}") from error
        with self._lock:
            known = self._contexts.get(owner)
            if known is not None and known[0] is credentials:
                return known[1]
            if len(self._contexts) >= _MOST_CONTEXTS:
                self._contexts.clear()
            made = loaded(ssl.PROTOCOL_TLS_CLIENT, credentials)
            self._contexts[owner] = credentials, made
            return made


def loaded(side: "ssl._SSLMethod", credentials: Credentials) -> ssl.SSLContext:
    """TLS 1.3 with these, and nothing else trusted. Who the peer is the caller checks by the SPIFFE ID, not by a host's name."""
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=credentials.authorities.decode("ascii"))
    # Python takes certificates from files alone. This one is in memory, has no name, and is gone when it is closed.
    with open(os.memfd_create("client", os.MFD_CLOEXEC), "wb") as file:
        file.write(credentials.certificate + credentials.key)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


def _uris(secured: ssl.SSLSocket) -> list[str]:
    """All names in the peer's certificate. One that is no URI counts too, so that it is not what is expected."""
    names: Iterable[tuple[str, str]] = (secured.getpeercert() or {}).get("subjectAltName", ())  # type: ignore[assignment]
    return [value if kind == "URI" else f"{kind}:{value}" for kind, value in names]
