"""How Prometheus is asked: credentials from files, bounded answers, and no secret in what is said of failures."""

import base64
import gzip
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.adapters.promql.prometheus_access import masked, shown
from splitinference.controller.ports import Samples
from splitinference.settings import Settings
from tests.adapters.serving import Request, Response, serving
from tests.identities import self_signed

SECRET = "s3cr3t-t0ken"


def vector(request: Request | None = None) -> Response:
    series = [{"metric": {"si_kind": kind, "node": "a"}, "value": [1.0, "1"]} for kind in ("value", "age")]
    return Response(json.dumps({"status": "success", "data": {"resultType": "vector", "result": series}}).encode())


def asked(answer: Callable[[Request], Response], url: str = "http://127.0.0.1:{port}", **settings: Any) -> tuple[Samples, list[Request]]:
    requests: list[Request] = []

    def noting(request: Request) -> Response:
        requests.append(request)
        return answer(request)

    with serving(noting) as port:
        return PrometheusMetrics(Settings(prometheus_url=url.format(port=port), **settings)).node_cpu_cores(), requests


def file(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


# --- credentials ---------------------------------------------------------------------------------------------------------------------


def test_a_token_goes_with_the_question_without_its_line_break(tmp_path: Path):
    file(tmp_path, "token", f"{SECRET}\n")
    found, requests = asked(vector, prometheus_token_file=str(tmp_path / "token"))
    assert not found.problem
    assert requests[0].headers["authorization"] == f"Bearer {SECRET}"


def test_a_token_that_was_renewed_is_used_at_once(tmp_path: Path):
    requests: list[str] = []

    def answer(request: Request) -> Response:
        requests.append(request.headers["authorization"])
        return vector()

    with serving(answer) as port:
        metrics = PrometheusMetrics(Settings(prometheus_url=f"http://127.0.0.1:{port}", prometheus_token_file=str(tmp_path / "token")))
        for token in ("first", "second"):
            file(tmp_path, "token", token)
            assert not metrics.node_cpu_cores().problem
    assert requests == ["Bearer first", "Bearer second"]


def test_user_and_password_and_a_tenants_header(tmp_path: Path):
    file(file(tmp_path / "basic", "username", "ops"), "password", "pä$$:word")
    headers = file(tmp_path / "headers", "X-Scope-OrgID", "team-a")
    (headers / "..data").mkdir()
    (headers / "..2026_11_30").write_text("what a Secret's volume keeps for itself")
    found, requests = asked(vector, prometheus_basic_auth_folder=str(tmp_path / "basic"), prometheus_headers_folder=str(headers))
    assert not found.problem
    assert base64.b64decode(requests[0].headers["authorization"].removeprefix("Basic ")) == "ops:pä$$:word".encode()
    assert requests[0].headers["x-scope-orgid"] == "team-a"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("X-Scope-OrgID", "a\nX-Other: b", "more than one line"),
        ("X-Scope-OrgID", "", "is empty"),
        ("Host", "x", "cannot be set"),
        ("bad name", "x", "cannot be set"),
        ("X-Big", "x" * 70_000, "more than 65536 bytes"),
    ],
)
def test_a_header_that_cannot_be_one_is_named_and_nobody_is_asked(tmp_path: Path, name: str, text: str, said: str):
    found, requests = asked(vector, prometheus_headers_folder=str(file(tmp_path / "headers", name, text)))
    assert said in found.problem
    assert name in found.problem
    assert found.reason == "CredentialsMissing"
    assert not requests


def test_without_the_tokens_file_nobody_is_asked(tmp_path: Path):
    found, requests = asked(vector, prometheus_token_file=str(tmp_path / "token"))
    assert str(tmp_path / "token") in found.problem
    assert found.reason == "CredentialsMissing"
    assert not requests


def test_a_token_and_a_password_are_one_too_many(tmp_path: Path):
    file(file(file(tmp_path, "username", "u"), "password", "pass"), "token", "t")
    found, _ = asked(vector, prometheus_basic_auth_folder=str(tmp_path), prometheus_token_file=str(tmp_path / "token"))
    assert "give one of them" in found.problem


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_said_so_and_never_shown(tmp_path: Path, status: int):
    file(tmp_path, "token", SECRET)

    def answer(request: Request) -> Response:
        return Response(f"no tenant for {request.headers['authorization']}".encode(), status=status)

    found, _ = asked(answer, prometheus_token_file=str(tmp_path / "token"))
    assert f"refused the operator's credentials ({status})" in found.problem
    assert "prometheus.auth" in found.problem
    assert found.reason == "CredentialsRefused"
    assert SECRET not in found.problem


# --- secrets in addresses ------------------------------------------------------------------------------------------------------------

WITH_PASSWORD = "http://ops:s3cr3t%21@127.0.0.1:{port}"


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: Response(b"nothing for ops:s3cr3t! and s3cr3t%21", status=500),
        lambda _: Response(b"", status=401),
        lambda _: Response(b"", status=302, headers={"Location": "http://ops:s3cr3t!@elsewhere/login?token=s3cr3t!"}),
        lambda _: Response(b"<html>"),
    ],
)
def test_a_password_in_the_address_is_in_no_message(answer: Callable[[Request], Response]):
    found, requests = asked(answer, url=WITH_PASSWORD)
    assert found.problem
    assert "s3cr3t" not in found.problem
    assert base64.b64decode(requests[0].headers["authorization"].removeprefix("Basic ")) == b"ops:s3cr3t!"


@pytest.mark.parametrize(
    "url",
    ["http://ops:s3cr3t@127.0.0.1:1", "http://ops:s3cr3t@no.such.host.invalid", "ops:s3cr3t@host:9090", "http://ops:s3cr3t@host:port"],
)
def test_nor_where_nobody_answers_or_the_address_is_none(url: str):
    problem = PrometheusMetrics(Settings(prometheus_url=url)).node_cpu_cores().problem
    assert problem
    assert "s3cr3t" not in problem


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("http://u:p@h:9090/base", "http://h:9090/base"),
        ("https://h/x?token=abc#d", "https://h/x"),
        ("http://u:p@x@h", "http://h"),
        ("http://u:p/w@h:9090", "http://h:9090"),
        ("http://h:9090", "http://h:9090"),
    ],
)
def test_an_address_as_it_is_shown(url: str, clean: str):
    assert shown(url) == clean


def test_what_is_masked():
    assert masked("see http://a:b@c/d and tok-12345", ("tok-12345", "a")) == "see http://***@c/d and ***"


# --- bounds --------------------------------------------------------------------------------------------------------------------------


def test_no_more_is_read_than_is_allowed():
    found, _ = asked(lambda _: Response(b"[" * (1 << 20)), prometheus_max_bytes=1 << 17)
    assert "more than" in found.problem
    assert "is not Prometheus" not in found.problem


def test_a_bomb_is_not_unpacked():
    packed = gzip.compress(b"0" * (32 << 20))
    found, requests = asked(lambda _: Response(packed, headers={"Content-Encoding": "gzip"}))
    assert requests[0].headers["accept-encoding"] == "identity"
    assert "is not Prometheus" in found.problem


def test_an_answer_that_comes_byte_by_byte_is_given_up(tmp_path: Path):
    """Each byte comes in time, the whole never would: the client has to end it. The server writes until it is hung up on."""
    hung_up = threading.Event()

    class Drip(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 30))
            self.end_headers()
            pause = threading.Event()
            try:
                while True:
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    pause.wait(0.02)
            except OSError:
                hung_up.set()

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    with http_server(Drip) as port:
        settings = Settings(prometheus_url=f"http://127.0.0.1:{port}", prometheus_timeout_seconds=0.3)
        assert "did not answer within 0.3 s" in PrometheusMetrics(settings).node_cpu_cores().problem
        assert hung_up.wait(60)


def test_a_redirect_is_not_followed(tmp_path: Path):
    file(tmp_path, "token", SECRET)
    with serving(vector) as other:
        found, _ = asked(
            lambda _: Response(status=307, headers={"Location": f"http://127.0.0.1:{other}/"}),
            prometheus_token_file=str(tmp_path / "token"),
        )
    assert f"redirects to http://127.0.0.1:{other}/ (307)" in found.problem


# --- TLS -----------------------------------------------------------------------------------------------------------------------------


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler], context: ssl.SSLContext | None = None) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own CA: `tls.crt` and `tls.key`."""
    folder.mkdir()
    for name, content in zip(("tls.crt", "tls.key"), self_signed("127.0.0.1", "prometheus"), strict=True):
        (folder / name).write_bytes(content)
    return folder


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = vector().body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Quiet."""


def test_a_private_ca_is_trusted_where_it_is_given_and_only_there(tmp_path: Path):
    server, client = certificate(tmp_path / "server"), certificate(tmp_path / "client")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "tls.crt", server / "tls.key")
    context.load_verify_locations(client / "tls.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    with http_server(Answers, context) as port:
        url = f"https://127.0.0.1:{port}"
        mutual = {"prometheus_ca_file": str(server / "tls.crt"), "prometheus_client_folder": str(client)}
        assert not PrometheusMetrics(Settings(prometheus_url=url, **mutual)).node_cpu_cores().problem
        stranger = PrometheusMetrics(Settings(prometheus_url=url)).node_cpu_cores()
        assert (stranger.reason, "prometheus.auth.caSecret" in stranger.problem) == ("CertificateNotTrusted", True)
        broken = file(tmp_path / "broken", "ca.crt", "no certificate") / "ca.crt"
        assert PrometheusMetrics(Settings(prometheus_url=url, prometheus_ca_file=str(broken))).node_cpu_cores().problem
