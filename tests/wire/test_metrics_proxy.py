"""The port for metrics answers one question, however it is asked otherwise."""

import http.server
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from splitinference_protocol.addresses import listen
from splitinference_segment.metrics_proxy import MetricsProxy, Source
from tests.segment.host import free_ports
from tests.wire.peers import LONG_S, ended, until

TEXT = b"# HELP x y\nx 1\n"


class Triton(http.server.BaseHTTPRequestHandler):
    """Says its metrics, and would do anything else too."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def proxied(**settings: float) -> Iterator[MetricsProxy]:
    Triton.asked = []
    source = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Triton)
    thread = threading.Thread(target=source.serve_forever)
    thread.start()
    proxy = MetricsProxy(listen(0), source.server_address[1], **settings)  # type: ignore[arg-type]
    try:
        yield proxy
    finally:
        proxy.close()
        source.shutdown()
        thread.join()
        source.server_close()


def get(proxy: MetricsProxy, path: str = "/metrics", **more: bytes) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{proxy.port}{path}", **more), timeout=LONG_S) as answer:  # type: ignore[arg-type]
            return answer.status, answer.read()
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, refused.read()


def test_metrics_are_passed_on_and_nothing_else_reaches_the_server() -> None:
    with proxied() as proxy:
        assert get(proxy) == (200, TEXT)
        for path in ("/", "/v2/models/x/infer", "/metrics/../v2", "/v2/repository/models/x/load", "//metrics"):
            assert get(proxy, path)[0] == 404
        assert get(proxy, "/metrics", data=b"x")[0] == 405
        assert set(Triton.asked) == {"/metrics"}


@pytest.mark.parametrize(
    "said",
    [b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000, b"x" * 100_000, b"GET /metrics\r\n\r\n", b"\x16\x03\x01\r\n\r\n", b"\r\n\r\n"],
)
def test_nonsense_is_cut_off(said: bytes) -> None:
    with proxied() as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as other:
            with suppress(ConnectionError):
                other.sendall(said)
            assert ended(other)
        assert get(proxy) == (200, TEXT)


def test_connections_that_say_nothing_keep_nobody_out_and_end() -> None:
    with proxied(most=4, read_s=0.5) as proxy:
        threads = threading.active_count()
        silent = [socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) for _ in range(100)]
        assert get(proxy) == (200, TEXT)
        assert threading.active_count() <= threads + 6
        assert all(ended(each) for each in silent)
        for each in silent:
            each.close()
        until(lambda: not proxy._open)


def test_the_server_is_asked_once_a_second_at_most() -> None:
    with proxied() as proxy:
        now = 0.0
        source = Source(proxy._source._port, clock=lambda: now)
        for _ in range(50):
            assert source.read() == TEXT
        assert len(Triton.asked) == 1
        now = 1.5
        assert source.read() == TEXT
        assert len(Triton.asked) == 2


def test_a_server_that_is_gone_is_503() -> None:
    proxy = MetricsProxy(listen(0), free_ports(1)[0])
    assert get(proxy)[0] == 503
    proxy.close()
