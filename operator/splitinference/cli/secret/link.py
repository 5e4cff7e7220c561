"""Connections between the client and the parties: frames over mutual TLS 1.3, with limits in bytes and time."""

import json
import socket
import ssl
import struct
import time
from pathlib import Path
from typing import Any

from splitinference.cli.secret.identities import identity

FRAME_LIMIT = 1 << 29
HEADER_LIMIT = 1 << 14
IN_FLIGHT = 1 << 14
"""Bytes that two sides may send before either reads. Above it they take turns, so that full buffers do not stop both."""


class LinkError(Exception):
    """The other side is gone, too slow, or says something else than the protocol does."""


class Link:
    """One connection. `seconds` is the longest time for one frame; `sent` and `received` count the frames' bytes without TLS."""

    def __init__(self, connection: ssl.SSLSocket, seconds: float) -> None:
        """Own the connection, whose handshake is done."""
        self._connection, self._seconds = connection, seconds
        self.sent = self.received = 0
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def peer(self) -> list[str]:
        """The URIs in the other side's certificate, which its authority signed."""
        found: Any = self._connection.getpeercert()
        return [str(value) for kind, value in found.get("subjectAltName", ()) if kind == "URI"]

    def send(self, data: bytes) -> None:
        """One frame. LinkError where it cannot be sent in time."""
        try:
            self._connection.settimeout(self._seconds)
            self._connection.sendall(struct.pack("<I", len(data)) + data)
        except OSError as error:
            raise LinkError(f"the connection broke while sending: {_words(error)}") from error
        self.sent += 4 + len(data)

    def receive(self, limit: int, exactly: int | None = None) -> bytes:
        """One frame of up to `limit` bytes. LinkError where it is longer, not of `exactly` bytes, or not there in time."""
        until = time.monotonic() + self._seconds
        (length,) = struct.unpack("<I", self._read(4, until))
        if length > limit or (exactly is not None and length != exactly):
            raise LinkError(f"the other side sent {length} bytes, expected {'up to ' + str(limit) if exactly is None else exactly}")
        data = self._read(length, until)
        self.received += 4 + length
        return data

    def say(self, message: dict[str, Any]) -> None:
        """A frame of JSON."""
        self.send(json.dumps(message).encode())

    def hear(self) -> dict[str, Any]:
        """A frame of JSON, an object. LinkError where it is none."""
        try:
            found = json.loads(self.receive(HEADER_LIMIT))
        except (ValueError, RecursionError) as error:
            raise LinkError("the other side sent no JSON") from error
        if not isinstance(found, dict):
            raise LinkError("the other side sent JSON that is no object")
        return found

    def swap(self, data: bytes, first: bool) -> bytes:
        """Send, and receive as many bytes. `first`: this side sends first where buffers might not hold both."""
        if first or len(data) <= IN_FLIGHT:
            self.send(data)
            return self.receive(FRAME_LIMIT, len(data))
        received = self.receive(FRAME_LIMIT, len(data))
        self.send(data)
        return received

    def close(self) -> None:
        """End the connection."""
        self._connection.close()

    def _read(self, count: int, until: float) -> bytes:
        parts = []
        while count:
            left = until - time.monotonic()
            if left <= 0:
                raise LinkError(f"the other side sent nothing more for {self._seconds:g} s")
            try:
                self._connection.settimeout(left)
                part = self._connection.recv(min(count, 1 << 20))
            except OSError as error:
                raise LinkError(f"the connection broke while receiving: {_words(error)}") from error
            if not part:
                raise LinkError("the other side closed the connection")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)


def context(folder: Path, server: bool) -> ssl.SSLContext:
    """TLS 1.3 with the folder's certificate; the other side must have one of the same authority. Names are checked by URI (`connect`)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(folder / "ca.crt")
    made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return made


def connect(address: tuple[str, int], folder: Path, deal: str, role: str, seconds: float) -> Link:
    """A connection to the party with this role. LinkError where nobody answers, or somebody else does."""
    try:
        plain = socket.create_connection(address, timeout=seconds)
    except OSError as error:
        raise LinkError(f"{role} at {address[0]}:{address[1]} cannot be reached: {_words(error)}") from error
    try:
        plain.settimeout(seconds)
        link = Link(context(folder, False).wrap_socket(plain), seconds)
    except OSError as error:
        plain.close()
        raise LinkError(f"{address[0]}:{address[1]} is not {role} of this dealing: {_words(error)}") from error
    if link.peer() != [identity(deal, role)]:
        link.close()
        raise LinkError(f"{address[0]}:{address[1]} is not {role} of this dealing: its certificate has another name")
    return link


def _words(error: OSError) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error) or type(error).__name__)
