"""Mutual TLS with the programs of one resource: certificates from a folder, read again when they change; peers by SPIFFE ID.

The CA is the resource's own, so a valid certificate already says which resource its holder belongs to; the ID says in which role.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path

_FILES = ("tls.crt", "tls.key", "ca.crt")
_log = logging.getLogger(__name__)


class CertificatesError(OSError):
    """The folder's certificates cannot be used; the message says which and why."""


def server_context(folder: Path) -> ssl.SSLContext:
    """TLS 1.3, and a client certificate of the resource's CA.

    Raises:
        CertificatesError: a file is missing or no certificate.
    """
    certificate, key, authority = (folder / name for name in _FILES)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise CertificatesError(f"the certificates in {folder} cannot be used: {error}") from error
    return context


def uri_of(transport: asyncio.BaseTransport) -> str:
    """The one URI in the peer's certificate; empty where there is none, or more than one."""
    certificate = transport.get_extra_info("peercert") or {}
    uris = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    return str(uris[0]) if len(uris) == 1 else ""


async def follow(folder: Path, changed: Callable[[ssl.SSLContext], None], seconds: float) -> None:
    """Hand on a new context whenever the files have changed and make sense. Runs until cancelled."""
    before = await asyncio.to_thread(_stamp, folder)
    while True:
        await asyncio.sleep(seconds)
        now = await asyncio.to_thread(_stamp, folder)
        if now == before:
            continue
        try:
            context = await asyncio.to_thread(server_context, folder)
        except CertificatesError as error:  # half written, or wrong: those in use stay, and it is tried again
            _log.warning("%s; the present ones stay in use", error)
            continue
        before = now
        changed(context)
        _log.info("new certificates from %s", folder)


def _stamp(folder: Path) -> tuple[tuple[int, int, int], ...]:
    try:
        return tuple((status.st_mtime_ns, status.st_ino, status.st_size) for status in ((folder / name).stat() for name in _FILES))
    except OSError:
        return ()
