"""The port for metrics and health answers two questions, however it is asked otherwise."""

import http.server
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest

from splitinference_protocol.addresses import listen
from splitinference_segment.server.metrics_proxy import Health, MetricsProxy, Source
from tests.segment.host import free_ports
from tests.wire.peers import LONG_S, ended, until

TEXT = b"# HELP x y\nx 1\n"


class Triton(http.server.BaseHTTPRequestHandler):
    """Says its metrics, and would do anything else too."""

    asked: list[str] = []  # noqa: RUF012
    probed: dict[str, object] = {"ok": True, "ms": 1.0}  # noqa: RUF012

    def do_POST(self) -> None:
        """An inference: META of the answer, in the binary form."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(self.path)
        meta, head = json.dumps(self.probed).encode(), b"{}"
        assert b'"op": "probe"' in body
        self.send_response(200)
        self.send_header("Inference-Header-Content-Length", str(len(head)))
        self.send_header("Content-Length", str(len(head + meta)))
        self.end_headers()
        self.wfile.write(head + meta)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def proxied(**settings: float) -> Iterator[MetricsProxy]:
    Triton.asked, Triton.probed = [], {"ok": True, "ms": 1.0}
    source = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Triton)
    thread = threading.Thread(target=source.serve_forever)
    thread.start()
    health = Health(source.server_address[1], "seg-1-0-4")
    proxy = MetricsProxy(listen(0), source.server_address[1], health, **settings)  # type: ignore[arg-type]
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
        for path in ("/metrics", "/healthz"):
            assert get(proxy, path, data=b"x")[0] == 405
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


def test_connections_that_say_nothing_keep_nobody_out_and_cost_no_threads() -> None:
    with proxied(most=4, read_s=10 * LONG_S) as proxy:  # none ends because its time is up
        silent = [socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) for _ in range(100)]
        assert get(proxy) == (200, TEXT)
        until(lambda: sum(thread.name == "metrics" for thread in threading.enumerate()) <= 4)
        for each in silent:
            each.close()
        until(lambda: not proxy._open)


def test_connections_that_say_nothing_end_in_time() -> None:
    with proxied(read_s=0.5) as proxy:
        silent = [socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) for _ in range(4)]
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
    (port,) = free_ports(1)
    proxy = MetricsProxy(listen(0), port, Health(port, "seg-1-0-4"))
    assert get(proxy)[0] == 503
    assert get(proxy, "/healthz") == (503, b"not ok\n")
    proxy.close()


def test_health_is_an_inference_and_says_ok_or_not_ok_and_no_more() -> None:
    with proxied() as proxy:
        assert get(proxy, "/healthz") == (200, b"ok\n")
        assert Triton.asked == ["/v2/models/seg-1-0-4/infer"]


@pytest.mark.parametrize("said", [{"error": {"code": "internal", "message": "/secret/path"}}, {}, {"ok": 1}, {"ok": False}, [1], "ok"])
def test_a_segment_that_fails_its_test_is_not_ok_and_why_stays_in_its_log(said: object, capsys: pytest.CaptureFixture[str]) -> None:
    with proxied() as proxy:
        Triton.probed = said  # type: ignore[assignment]
        assert get(proxy, "/healthz") == (503, b"not ok\n")
    assert "the segment's own test: " in capsys.readouterr().err


def test_a_segment_is_tested_once_a_second_at_most_whatever_comes_of_it() -> None:
    with proxied() as proxy:
        now = 0.0
        health = Health(proxy._source._port, "seg-1-0-4", clock=lambda: now)
        for answer, ok in (({"ok": True}, True), ({"error": "x"}, False)):
            Triton.probed, before = dict(answer), len(Triton.asked)  # type: ignore[call-overload]
            with ThreadPoolExecutor(8) as pool:
                assert set(pool.map(lambda _: health(), range(50))) == {ok}
            assert len(Triton.asked) == before + 1
            now += 1.5


def test_who_floods_the_port_keeps_out_nobody_of_another_address() -> None:
    """The kubelet waits for an answer, meanwhile another address takes all connections and more."""
    asked, go = threading.Event(), threading.Event()

    def slow() -> bool:
        asked.set()
        return go.wait(LONG_S)

    proxy = MetricsProxy(listen(0), free_ports(1)[0], slow, most=4)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S) as kubelet:
        kubelet.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert asked.wait(LONG_S)
        flood = [socket.create_connection(("127.0.0.1", proxy.port), LONG_S, source_address=("127.0.0.2", 0)) for _ in range(20)]
        assert all(ended(each) for each in flood[:16])
        go.set()
        assert kubelet.recv(100).startswith(b"HTTP/1.1 200 OK")
        for each in flood:
            each.close()
    proxy.close()
