"""An admission webhook of this process, as the cluster's API server calls it: what meshes and policy engines install."""

import base64
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.identities import self_signed

Patch = list[dict[str, Any]]
"""JSON Patch operations (RFC 6902)."""


def review(asked: dict[str, Any], patch: Patch) -> dict[str, Any]:
    """The answer to an AdmissionReview: allowed, with this patch."""
    response: dict[str, Any] = {"uid": asked["request"]["uid"], "allowed": True}
    if patch:
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(patch).encode()).decode()}
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}


@contextmanager
def webhook(address: str, patched: Callable[[dict[str, Any]], Patch]) -> Iterator[dict[str, str]]:
    """Serves on a free port of `address`; gives the `clientConfig` by which an API server finds and trusts it.

    `patched`: what to change of an object that is created.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = json.dumps(review(asked, patched(asked["request"]["object"]))).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    with TemporaryDirectory() as folder:
        pem = Path(folder) / "tls.pem"
        certificate = _identity(address, pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server = ThreadingHTTPServer((address, 0), Handler)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, name="webhook", daemon=True)
        thread.start()
        try:
            yield {"url": f"https://{address}:{server.server_port}/", "caBundle": base64.b64encode(certificate).decode()}
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def _identity(address: str, pem: Path) -> bytes:
    """Write a key and its own certificate for the address; the certificate as PEM."""
    certificate, secret = self_signed(address, "webhook of the tests")
    pem.write_bytes(secret + certificate)
    return certificate
