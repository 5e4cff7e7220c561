"""Who gets in: the guard against other hosts and pages, the local token, and the cluster's reviews."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from splitinference.controller.ports import UnavailableError
from splitinference.ui import access
from splitinference.ui.access import ForbiddenError, Guard, Identity, LocalAccess, ReviewedAccess, UnauthenticatedError, bearer
from splitinference.ui.page.document import Scope

GUARD = Guard(frozenset({"127.0.0.1:8443", "page.example.com"}))


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({"Host": "127.0.0.1:8443"}, False),
        ({"Host": "page.example.com"}, False),
        ({"Host": "PAGE.example.com:444"}, False),
        ({"Host": "127.0.0.1:9"}, True),
        ({"Host": "attacker.example:8443"}, True),
        ({"Host": "page.example.com.attacker.example"}, True),
        ({"Host": "127.0.0.1:8443@attacker.example"}, True),
        ({"Host": ""}, True),
        ({}, True),
        ({"Host": "127.0.0.1:8443", "Origin": "http://127.0.0.1:8443"}, False),
        ({"Host": "127.0.0.1:8443", "Origin": "http://127.0.0.1:9"}, True),
        ({"Host": "127.0.0.1:8443", "Origin": "null"}, True),
        ({"Host": "127.0.0.1:8443", "Origin": "https://attacker.example"}, True),
        ({"Host": "127.0.0.1:8443", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, True),
        ({"Host": "127.0.0.1:8443", "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, True),
        ({"Host": "127.0.0.1:8443", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, True),
        ({"Host": "127.0.0.1:8443", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, False),
        ({"Host": "127.0.0.1:8443", "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, False),
    ],
)
def test_only_pages_of_this_server_may_ask(headers: Mapping[str, str], refused: bool):
    assert bool(GUARD.why_not(headers)) is refused


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", ""),
        ("", ""),
        ("Bearer a\x00b", ""),
        ("Bearer ä", ""),
        ("Bearer " + "x" * 9000, ""),
    ],
)
def test_tokens_are_bounded_and_printable(header: str, token: str):
    assert bearer({"Authorization": header}) == token


def test_the_local_page_wants_its_token():
    local = LocalAccess("right")
    assert asyncio.run(local.scope("right", ())) == Scope()
    for wrong in ("", "wrong", "right "):
        with pytest.raises(UnauthenticatedError):
            asyncio.run(local.scope(wrong, ()))


@dataclass
class Cluster:
    """Reviews as a test says: who has which token, and who may do what."""

    people: dict[str, Identity] = field(default_factory=dict)
    rights: set[tuple[str, str, str]] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    away: bool = False
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def who(self, token: str, audience: str) -> Identity | None:
        if self.away:
            raise UnavailableError("the API server is away")
        with self.lock:
            self.asked.append(token)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        threading.Event().wait(0.005)
        with self.lock:
            self.at_once -= 1
        return self.people.get(token)

    def may(self, who: Identity, verb: str, resource: str, namespace: str = "") -> bool:
        assert verb == "list"
        return (who.user, resource, namespace) in self.rights


def test_rights_decide_what_is_seen():
    cluster = Cluster(
        {"t-admin": Identity("admin"), "t-team": Identity("team"), "t-none": Identity("none")},
        {("admin", "splitinferences", ""), ("admin", "nodes", ""), ("team", "splitinferences", "team-a")},
    )

    async def play() -> None:
        reviewed = ReviewedAccess(cluster, "page")
        assert await reviewed.scope("t-admin", {"team-a"}) == Scope(None, nodes=True)
        assert await reviewed.scope("t-team", {"team-a", "team-b"}) == Scope(frozenset({"team-a"}), nodes=False)
        with pytest.raises(ForbiddenError, match="none may not list"):
            await reviewed.scope("t-none", {"team-a"})
        for token in ("", "guess"):
            with pytest.raises(UnauthenticatedError):
                await reviewed.scope(token, {"team-a"})

    asyncio.run(play())


def test_answers_are_kept_for_a_while_and_then_asked_again(monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster({"t": Identity("team")}, {("team", "splitinferences", "a")})
    clock = [1000.0]
    monkeypatch.setattr(access.time, "monotonic", lambda: clock[0])

    async def play() -> None:
        reviewed = ReviewedAccess(cluster, "")
        for _ in range(5):
            await reviewed.scope("t", {"a"})
        assert len(cluster.asked) == 1
        # A resource in a namespace that was not asked about.
        await reviewed.scope("t", {"a", "b"})
        assert len(cluster.asked) == 2
        cluster.rights.clear()
        clock[0] += access.KNOWN_SECONDS + 1
        with pytest.raises(ForbiddenError):
            await reviewed.scope("t", {"a", "b"})

    asyncio.run(play())


def test_guesses_are_no_load_for_the_api_server_and_take_no_memory():
    cluster = Cluster()

    async def play() -> None:
        reviewed = ReviewedAccess(cluster, "")
        found = await asyncio.gather(*(reviewed.scope(f"guess-{i}", ()) for i in range(access.MOST_TOKENS + 50)), return_exceptions=True)
        assert all(isinstance(f, UnauthenticatedError) for f in found)
        assert cluster.most_at_once <= access.AT_ONCE
        assert len(reviewed._known) == access.MOST_TOKENS
        # The same guess again is answered from memory, whatever namespaces there are by then.
        asked = len(cluster.asked)
        with pytest.raises(UnauthenticatedError):
            await reviewed.scope(f"guess-{access.MOST_TOKENS + 49}", {"new"})
        assert len(cluster.asked) == asked

    asyncio.run(play())


def test_without_the_api_server_nobody_new_gets_in():
    cluster = Cluster(away=True)
    with pytest.raises(UnavailableError):
        asyncio.run(ReviewedAccess(cluster, "").scope("t", ()))
