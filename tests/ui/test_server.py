"""The server itself: headers, tokens, the stream of events, its bounds, and what becomes of it when the cluster is away."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import requests

from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.ui.access import Identity, ReviewedAccess
from splitinference.ui.origins.feed import Feed, Sent, State, message
from splitinference.ui.page.document import Document, Scope
from splitinference.ui.server import Bounds, application
from tests.controller.stories import serving
from tests.controller.world import NAMESPACE
from tests.ui.pages import TOKEN, Told, a_page, document_from, served
from tests.ui.test_access import Cluster

KEY = f"{NAMESPACE}/chat"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def document() -> Document:
    return document_from(serving()[0])


def events(url: str, token: str = TOKEN, **options: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Events of the stream, until the server or the caller ends it."""
    with requests.get(f"{url}api/events", headers={"Authorization": f"Bearer {token}"}, stream=True, timeout=30, **options) as response:
        assert response.status_code == 200, response.text
        kind = ""
        for line in response.iter_lines():
            if line.startswith(b"event: "):
                kind = line[7:].decode()
            elif line.startswith(b"data: "):
                yield kind, json.loads(line[6:])


def states(url: str, token: str = TOKEN) -> Iterator[dict[str, Any]]:
    return (data for kind, data in events(url, token) if kind == "state")


def test_every_answer_has_the_headers_that_keep_browsers_from_harm(document: Document):
    with served(Told(document)) as url:
        for path in ("", "static/main.js", "static/style.css", "api/about", "api/history?resource=x", "nothing", "api/events"):
            answer = requests.get(url + path, timeout=30)
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert answer.headers["X-Content-Type-Options"] == "nosniff", path
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_files_need_no_token_and_tell_nothing_and_all_else_does(document: Document):
    with served(Told(document), what_if=True) as url:
        assert requests.get(url, timeout=30).status_code == 200
        assert requests.get(f"{url}api/about", timeout=30).json() == {"signIn": False, "whatIf": True}
        for wrong in ({}, {"Authorization": "Bearer nobody"}, {"Authorization": f"Basic {TOKEN}"}, {"Cookie": f"token={TOKEN}"}):
            for path in ("api/events", f"api/history?resource={KEY}", f"api/events?token={TOKEN}"):
                assert requests.get(url + path, headers=wrong, timeout=30).status_code == 401
            assert requests.post(f"{url}api/what-if", json={}, headers=wrong, timeout=30).status_code == 401
        assert requests.get(f"{url}api/history?resource={KEY}", headers=AUTH, timeout=30).json()["decisions"]


@pytest.mark.parametrize("path", ["static/../server.py", "static/%2e%2e/server.py", "static//etc/passwd", "static/nothing.js"])
def test_no_other_file_can_be_had(document: Document, path: str):
    with served(Told(document)) as url:
        session = requests.Session()
        request = requests.Request("GET", url).prepare()
        request.url = url + path
        assert session.send(request, timeout=30).status_code == 404


def test_pages_of_other_hosts_are_refused_even_with_the_token(document: Document):
    with served(Told(document)) as url:
        for headers in ({"Host": "attacker.example"}, {"Origin": "https://attacker.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert requests.get(f"{url}api/events", headers={**AUTH, **headers}, timeout=30).status_code == 403


def test_the_stream_begins_with_everything_and_goes_on_with_what_changes(document: Document):
    source = Told(document)
    with served(source) as url:
        stream = states(url)
        first = next(stream)
        assert first["full"] is True
        assert set(first["nodes"]["set"]) == set(document.nodes)
        source.document = replace(document, nodes={**document.nodes, "a": {**document.nodes["a"], "ready": False}})
        later = next(data for data in stream if data.get("nodes", {}).get("set"))
        assert later["full"] is False
        assert list(later["nodes"]["set"]) == ["a"]


def test_while_the_api_server_is_away_the_stream_says_so_with_the_age_and_recovers(document: Document):
    source = Told(document)
    with served(source) as url:
        stream = states(url)
        assert next(stream)["problem"] == ""
        source.error = UnavailableError("the API server did not answer")
        away = next(data for data in stream if data["problem"])
        assert away["problem"] == "the API server did not answer"
        later = next(data for data in stream if data["age"] > away["age"])
        assert "nodes" not in later, "what was shown stays"
        source.error = None
        assert next(data for data in stream if not data["problem"])["age"] is not None


@pytest.mark.parametrize("error", [RefusedError("not allowed"), ValueError("a fault of ours")])
def test_whatever_fails_at_the_start_is_said_and_tried_again(document: Document, error: Exception, caplog: pytest.LogCaptureFixture):
    source = Told(document, error)
    with served(source) as url:
        stream = states(url)
        first = next(data for data in stream if source.reads)
        assert first["age"] is None
        assert first["problem"]
        assert "a fault of ours" not in first["problem"]
        source.error = None
        assert next(data for data in stream if data["age"] is not None)["nodes"]["set"]


def test_streams_are_limited_in_all_and_for_each_token(document: Document):
    cluster = Cluster({t: Identity(t) for t in "abc"}, {(t, "splitinferences", "") for t in "abc"})
    with served(Told(document), ReviewedAccess(cluster, ""), bounds=Bounds(streams=3, of_one=2)) as url:
        opened = [states(url, token) for token in ("a", "a", "b")]
        for stream in opened:
            next(stream)
        for token in ("a", "c"):
            refused = requests.get(f"{url}api/events", headers={"Authorization": f"Bearer {token}"}, timeout=30)
            assert refused.status_code == 503
            assert "Too many pages" in refused.json()["error"]
        opened[0].close()
        assert _gets_a_place(url, "c")


def test_a_slow_browser_is_let_go_and_nothing_is_kept_for_it(document: Document):
    """The peer takes nothing: each message is larger than the socket's buffers, so the write cannot end."""
    big = {f"n{i}": {**document.nodes["a"], "name": f"n{i}", "excluded": "x" * 4000} for i in range(3000)}
    source = Told(replace(document, nodes=big))
    with served(source, write_seconds=0.5, bounds=Bounds(streams=1, of_one=1)) as url:
        port = int(url.split(":")[2].strip("/"))

        with socket.create_connection(("127.0.0.1", port)) as silent:
            silent.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
            assert silent.recv(12) == b"HTTP/1.1 200"
            assert _gets_a_place(url, TOKEN), "the slow browser's place was never given to another"


def _gets_a_place(url: str, token: str) -> bool:
    """Whether a stream can be had once the server has let another one go."""
    waiting = threading.Event()
    for _ in range(300):
        answer = requests.get(f"{url}api/events", headers={"Authorization": f"Bearer {token}"}, timeout=30, stream=True)
        answer.close()
        if answer.status_code == 200:
            return True
        waiting.wait(0.1)
    return False


def test_what_a_slow_browser_missed_is_not_queued(document: Document):
    """However many states there were meanwhile, the next message is the difference to the newest one alone."""
    first, sent = message(Sent(), State(1, document, "", 0.0), Scope())
    assert first["full"]
    for version in range(2, 500):
        newest = replace(document, nodes={"a": {**document.nodes["a"], "usedByOthers": version}})
    found, sent = message(sent, State(499, newest, "", 0.0), Scope())
    assert found["nodes"]["set"]["a"]["usedByOthers"] == 499
    assert set(found["nodes"]["gone"]) == set(document.nodes) - {"a"}
    assert sent.version == 499


def test_who_loses_the_right_loses_the_stream(document: Document, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("splitinference.ui.access.KNOWN_SECONDS", 0.2)
    cluster = Cluster({"t": Identity("team")}, {("team", "splitinferences", "")})
    with served(Told(document), ReviewedAccess(cluster, "page")) as url:
        stream = events(url, "t")
        kind, first = next(stream)
        assert (kind, first["nodes"]["set"]) == ("state", {}), "who may not list nodes sees none"
        assert set(first["resources"]["set"]) == {KEY}
        cluster.rights.clear()
        assert any(kind == "end" for kind, _ in stream)
        assert requests.get(f"{url}api/history?resource={KEY}", headers={"Authorization": "Bearer t"}, timeout=30).status_code == 403


def test_resources_of_other_namespaces_cannot_be_asked_for(document: Document):
    cluster = Cluster({"t": Identity("team")}, {("team", "splitinferences", "other"), ("team", "nodes", "")})
    document = replace(document, resources={**document.resources, "other/x": {**document.resources[KEY], "namespace": "other"}})
    with served(Told(document), ReviewedAccess(cluster, ""), what_if=True) as url:
        mine = {"Authorization": "Bearer t"}
        stream = states(url, "t")
        assert set(next(data for data in stream if data["age"] is not None)["resources"]["set"]) == {"other/x"}
        assert requests.get(f"{url}api/history?resource={KEY}", headers=mine, timeout=30).status_code == 403
        assert requests.post(f"{url}api/what-if", json={"resource": KEY}, headers=mine, timeout=30).status_code == 403


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"not json", "application/json", 400),
        (b"[" * 10_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", "application/json", 422),
        (b'{"resource": "team/chat", "unknown": 1}', "application/json", 422),
        (b'{"resource": "team/chat", "first_token_ms": 1e400}', "application/json", 422),
        (b'{"resource": "team/nothing"}', "application/json", 422),
        (b'{"resource": "' + b"x" * 20_000 + b'"}', "application/json", 413),
    ],
)
def test_bad_questions_get_clear_answers(document: Document, body: bytes, kind: str, status: int):
    with served(Told(document), what_if=True) as url:
        answer = requests.post(f"{url}api/what-if", data=body, headers={**AUTH, "Content-Type": kind}, timeout=60)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]


def test_what_if_is_off_unless_it_is_asked_for(document: Document):
    with served(Told(document)) as url:
        assert requests.post(f"{url}api/what-if", json={"resource": KEY}, headers=AUTH, timeout=30).status_code == 404


def test_the_page_changes_nothing(document: Document):
    """No route takes a method that could change something, but for the question, which changes nothing."""
    routes = application(a_page(Told(document), 1)).router.routes()
    assert {(r.method, r.resource.canonical) for r in routes if r.method not in ("GET", "HEAD")} == {("POST", "/api/what-if")}  # type: ignore[union-attr]


def test_a_read_that_takes_long_is_done_more_rarely():
    """Reading takes at most a fifth of the time, so that a large cluster is not read all the time."""
    pauses: list[float] = []

    class Slow(Told):
        def read(self) -> Document:
            threading.Event().wait(0.2)
            return super().read()

    async def play() -> None:
        feed = Feed(Slow(Document(read=datetime(2026, 1, 1, tzinfo=UTC))), 0.01)

        async def pause(seconds: float) -> None:
            pauses.append(seconds)
            raise asyncio.CancelledError

        original, asyncio.sleep = asyncio.sleep, pause  # type: ignore[assignment]
        try:
            await feed.run()
        except asyncio.CancelledError:
            return
        finally:
            asyncio.sleep = original

    asyncio.run(play())
    assert pauses[0] >= 0.2 * 4
