"""What answers in place of all gateways and segments of `bench operator`: mutual TLS with certificates of the operator's own authority.

All pretend pods have one address, so the server takes the resource's certificate by the name that the operator asks for (SNI).
"""

import base64
import json
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from io import BufferedIOBase
from typing import Any

from splitinference.adapters.peers.certificates import ROOT_KEY, CertificateAuthority, Roots
from splitinference.adapters.peers.mutual import loaded
from splitinference.cli.bench.control.control_plane import POD_ADDRESS
from splitinference.controller.identity import Owner, Role
from splitinference.controller.manifests.gateway import INTERNAL_PORT
from splitinference.controller.manifests.segment import WIRE_PORT
from splitinference.controller.ports import Manifest
from splitinference_protocol.wire import frames
from splitinference_protocol.wire.answers import answer

_NO_ROUTES = json.dumps({"revision": None, "routes": {}}).encode()


class Known:
    """The root key that the operator is given."""

    def __init__(self, key: bytes) -> None:
        """`key`: 32 bytes."""
        self.key = key

    def roots(self) -> Roots:
        """That one."""
        return Roots(keys=(self.key,))

    def secret(self, namespace: str, name: str) -> Manifest:
        """The Secret in which the operator finds it."""
        about = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "data": {ROOT_KEY: base64.b64encode(self.key).decode()}}


class _Internal(BaseHTTPRequestHandler):
    """A gateway without a route."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(_NO_ROUTES)))
        self.end_headers()
        self.wfile.write(_NO_ROUTES)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


class _Wire(socketserver.StreamRequestHandler):
    """A segment that passes every test."""

    def handle(self) -> None:
        begun = b""
        while missing := frames.greeting_left(begun):
            begun += _exactly(self.rfile, missing)
        self.wfile.write(frames.YES)
        number, meta, data = frames.HEAD.unpack(_exactly(self.rfile, frames.HEAD.size))
        _exactly(self.rfile, meta + data)
        self.wfile.write(frames.frame(number, answer({"ok": True}), frames.NOTHING))


def _exactly(file: BufferedIOBase, count: int) -> bytes:
    content = file.read(count)
    if len(content) < count:
        raise ConnectionResetError("closed")
    return content


class _Server(socketserver.ThreadingTCPServer):
    """TLS in the connection's own thread, so that one slow handshake holds up no other."""

    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, port: int, handler: Any, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__((POD_ADDRESS, port), handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            with self._context.wrap_socket(request, server_side=True) as secured:
                super().finish_request(secured, client_address)
        except OSError:
            return  # the operator went away

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Quiet."""


class _Contexts:
    """A server's contexts by resource: gateways and segments are named `<name>-….<namespace>`."""

    def __init__(self, authority: CertificateAuthority, role: Role, owners: Sequence[Owner]) -> None:
        self._made: Mapping[tuple[str, str], ssl.SSLContext] = {
            (owner.namespace, owner.name): loaded(ssl.PROTOCOL_TLS_SERVER, authority.credentials(owner, role, datetime.now(UTC)))
            for owner in owners
        }
        self.first = next(iter(self._made.values()))
        self.first.sni_callback = self._choose

    def _choose(self, secured: ssl.SSLObject, name: str | None, before: ssl.SSLContext) -> None:
        pod, _, namespace = (name or "").partition(".")
        for (there, instance), context in self._made.items():
            if there == namespace and pod.startswith(f"{instance}-"):
                secured.context = context
                return


@contextmanager
def peers(key: Known, trust_domain: str, owners: Sequence[Owner]) -> Iterator[None]:
    """Serve as every gateway and every segment of these resources until the block ends."""
    authority = CertificateAuthority(key, trust_domain)
    servers = [
        _Server(INTERNAL_PORT, _Internal, _Contexts(authority, Role.GATEWAY, owners).first),
        _Server(WIRE_PORT, _Wire, _Contexts(authority, Role.SEGMENT, owners).first),
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
