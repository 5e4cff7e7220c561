"""A key broker and a guest's attestation agent on loopback, for tests: Trustee's HTTP API, with sample evidence instead of hardware's.

The broker has `/kbs/v0/auth`, `/attest` and `/resource/<repository>/<type>/<tag>`; it answers with JWE for the attested key. The agent has
`/aa/token`, and attests itself to the broker as a real one does.
"""

import base64
import hashlib
import http.client
import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jwcrypto import jwe, jwk, jwt

MEASUREMENT = "the guest that was meant"


@dataclass
class Broker:
    """What it releases, to whom. `accepted`: the measurement of guests that are accepted; `policy`: resources that it keeps from all."""

    resources: dict[str, bytes] = field(default_factory=dict)
    accepted: str = MEASUREMENT
    policy: set[str] = field(default_factory=set)
    algorithm: str = "ECDH-ES+A256KW"
    repeats_header: bool = False  # as older brokers do
    asked: list[str] = field(default_factory=list)
    redirects: str = ""
    sessions: dict[str, str] = field(default_factory=dict)  # cookie to nonce
    signer: jwk.JWK = field(default_factory=lambda: jwk.JWK.generate(kty="EC", crv="P-256"))
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON."""
        self.asked.append(f"{handler.command} {handler.path}")
        if self.redirects:
            return 302, {"Location": self.redirects}, {}
        if handler.path == "/kbs/v0/auth":
            session, nonce = secrets.token_hex(8), secrets.token_urlsafe(16)
            self.sessions[session] = nonce
            return 200, {"Set-Cookie": f"kbs-session-id={session}"}, {"nonce": nonce, "extra-params": {}}
        if handler.path == "/kbs/v0/attest":
            return self._attested(handler, json.loads(body))
        return self._resource(handler, handler.path.removeprefix("/kbs/v0/resource/"))

    def _attested(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        nonce = self.sessions.get((handler.headers.get("Cookie") or "").removeprefix("kbs-session-id="))
        runtime, evidence = asked["runtime-data"], asked["tee-evidence"]["primary_evidence"]
        bound = base64.b64encode(hashlib.sha384(json.dumps(runtime, sort_keys=True).encode()).digest()).decode()
        if nonce is None or runtime["nonce"] != nonce or evidence["report_data"] != bound:
            return 401, {}, {"type": "https://github.com/confidential-containers/kbs/errors/AttestationFailed", "detail": "not fresh"}
        if evidence["measurement"] != self.accepted:
            return 401, {}, {"type": "https://github.com/confidential-containers/kbs/errors/VerifierError", "detail": "wrong measurement"}
        token = jwt.JWT(header={"alg": "ES256", "typ": "JWT"}, claims={"tee-pubkey": runtime["tee-pubkey"]})
        token.make_signed_token(self.signer)
        return 200, {}, {"token": token.serialize()}

    def _resource(self, handler: BaseHTTPRequestHandler, name: str) -> tuple[int, dict[str, str], Any]:
        try:
            given = jwt.JWT(jwt=(handler.headers.get("Authorization") or "").removeprefix("Bearer "), key=self.signer, check_claims={})
            key = jwk.JWK(**json.loads(given.claims)["tee-pubkey"])
        except Exception:  # noqa: BLE001 - any token that is none
            return 401, {}, {"detail": "the token is not valid"}
        if name in self.policy:
            return 403, {}, {"type": "https://github.com/confidential-containers/kbs/errors/PolicyDeny", "detail": "policy"}
        if name not in self.resources:
            return 404, {}, {"detail": "resource not found"}
        message = jwe.JWE(self.resources[name], json.dumps({"alg": self.algorithm, "enc": "A256GCM"}))
        message.add_recipient(key)
        told = json.loads(message.serialize())
        return 200, {}, {**told, **({"aad": told["protected"]} if self.repeats_header else {})}


@dataclass
class Agent:
    """A guest's agent: `measurement` is what its hardware would say of it."""

    broker: Broker
    measurement: str = MEASUREMENT
    kind: str = "EC"
    pair: jwk.JWK | None = None  # another than the attested one, where it is given
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], Any]:
        """Status, headers and JSON."""
        if handler.path != "/aa/token?token_type=kbs":
            return 404, {}, {}
        made = jwk.JWK.generate(kty="RSA", size=2048) if self.kind == "RSA" else jwk.JWK.generate(kty="EC", crv="P-256")
        connection = http.client.HTTPConnection(self.broker.url.removeprefix("http://"), timeout=20)
        _, cookie, challenge = _post(connection, "/kbs/v0/auth", {"version": "0.4.0", "tee": "sample", "extra-params": {}}, "")
        public = {**json.loads(made.export_public()), "alg": self.broker.algorithm}
        runtime = {"nonce": challenge["nonce"], "tee-pubkey": public}
        bound = base64.b64encode(hashlib.sha384(json.dumps(runtime, sort_keys=True).encode()).digest()).decode()
        evidence = {"primary_evidence": {"report_data": bound, "measurement": self.measurement}, "additional_evidence": "{}"}
        status, _, told = _post(connection, "/kbs/v0/attest", {"runtime-data": runtime, "tee-evidence": evidence}, cookie)
        if status != 200:
            return 500, {}, {"error": f"get token failed: RCAR handshake failed: {told['detail']}"}
        return 200, {}, {"token": told["token"], "tee_keypair": (self.pair or made).export_to_pem(private_key=True, password=None).decode()}


def _post(connection: http.client.HTTPConnection, path: str, fields: dict[str, Any], cookie: str) -> tuple[int, str, Any]:
    headers = {"Content-Type": "application/json", **({"Cookie": cookie} if cookie else {})}
    connection.request("POST", path, json.dumps(fields), headers)
    answer = connection.getresponse()
    return answer.status, (answer.headers.get("Set-Cookie") or cookie), json.loads(answer.read())


@contextmanager
def served(*parts: Broker | Agent) -> Iterator[None]:
    """Each on a port of its own; `url` says where."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(part)) for part in parts]
    for part, server in zip(parts, servers, strict=True):
        part.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(part: Broker | Agent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, headers, told = part.answer(self, body)
            content = told if isinstance(told, bytes) else json.dumps(told).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    return Handler
