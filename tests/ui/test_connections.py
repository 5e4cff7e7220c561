"""Who connects and does not ask is let go, so that nobody holds the page by connections alone. Whoever has asked stays."""

import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import requests

from splitinference.ui.connections import Bounds, Connections
from tests.ui.pages import TOKEN, Told, served

QUICK = Bounds(header_seconds=0.5, waiting=3, look_seconds=0.05)
LONG = Bounds(header_seconds=600, waiting=3, look_seconds=0.05)


def connected(url: str, begun: bytes = b"") -> socket.socket:
    parts = urlsplit(url)
    made = socket.create_connection((parts.hostname, parts.port), timeout=60)
    made.sendall(begun)
    return made


def ended(connection: socket.socket) -> bool:
    """Whether the server ends it, however long the machine takes."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("begun", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: 1\r\n"])
def test_headers_that_do_not_end_are_not_waited_for(begun: bytes):
    with served(Told(), patience=QUICK) as url, connected(url, begun) as slow:
        assert ended(slow)
        assert requests.get(url, timeout=60).status_code == 200


def test_a_header_now_and_then_gives_no_more_time():
    with served(Told(), patience=QUICK) as url, connected(url, b"GET / HTTP/1.1\r\n") as slow:
        slow.settimeout(0.1)
        for _ in range(600):
            try:
                slow.sendall(b"X-Slow: 1\r\n")
                if slow.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        else:
            pytest.fail("the connection stays open")


def test_with_too_many_that_wait_the_oldest_goes_and_who_asks_is_answered():
    with served(Told(), patience=LONG) as url, ExitStack() as opened:
        oldest = opened.enter_context(connected(url))
        time.sleep(0.2)  # so that it is the oldest of those that are looked at
        rest = [opened.enter_context(connected(url, b"GET")) for _ in range(3)]
        assert ended(oldest)
        assert requests.get(url, timeout=60).status_code == 200
        assert len(rest) == 3


def test_who_has_asked_keeps_the_connection():
    with served(Told(), patience=QUICK) as url, requests.Session() as session:
        assert session.get(url, timeout=60).status_code == 200
        (pool,) = session.adapters["http://"].poolmanager.pools._container.values()
        before = pool.num_connections
        time.sleep(4 * QUICK.header_seconds)
        assert session.get(url, timeout=60).status_code == 200
        assert pool.num_connections == before


def test_a_question_that_does_not_arrive_is_not_waited_for():
    with served(Told(), what_if=True, body_seconds=0.3) as url:
        host = urlsplit(url).netloc
        head = f"POST /api/what-if HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        with connected(url, f"{head}Content-Length: 50\r\n\r\n{{".encode()) as slow:
            assert b"408" in slow.recv(64)


def test_times_are_counted_from_when_a_connection_is_seen_first():
    class Waiting:
        closed = False

        def force_close(self) -> None:
            self.closed = True

    first, later = Waiting(), Waiting()
    connections = Connections(Bounds(header_seconds=10, waiting=5))
    connections.look([first], 100)
    connections.look([first, later], 109)
    assert (first.closed, later.closed) == (False, False)
    connections.look([first, later], 110)
    assert (first.closed, later.closed) == (True, False)
