"""Who may see what. On one's own machine: who has the token of the URL. In a cluster: whom the API server knows, as far as his rights go.

Every request also has to come from a page of this server: `Guard` refuses other hosts (DNS rebinding) and other origins.
"""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from splitinference.ui.page.document import Scope

LONGEST_TOKEN = 8192
KNOWN_SECONDS = 60.0
"""So long an answer about a token is believed. A right that was taken away works for so long at most."""
UNKNOWN_SECONDS = 10.0
MOST_TOKENS = 1000
AT_ONCE = 4
"""Reviews under way at once: guesses must not become load of the API server."""
MOST_NAMESPACES = 50
"""Namespaces that somebody without rights in all of them is looked up in."""
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})


class UnauthenticatedError(Exception):
    """No token, or nobody's."""


class ForbiddenError(Exception):
    """Somebody without the right to see anything here."""


@dataclass(frozen=True)
class Identity:
    """Somebody, as the API server knows him."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class Access(Protocol):
    """Decides about a token."""

    async def scope(self, token: str, namespaces: Iterable[str]) -> Scope:
        """What its bearer may see; `namespaces`: those that have resources.

        Raises UnauthenticatedError, ForbiddenError, UnavailableError.
        """


class LocalAccess:
    """One token, which is in the URL that the command printed."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def scope(self, token: str, namespaces: Iterable[str]) -> Scope:
        """All, for who has the token."""
        if not hmac.compare_digest(token.encode(), self._token):
            raise UnauthenticatedError("The token is missing or wrong. Use the whole URL that kubectl split ui printed.")
        return Scope()


class Reviewer(Protocol):
    """The API server's reviews. Called in other threads."""

    def who(self, token: str, audience: str) -> Identity | None:
        """Whose token this is."""

    def may(self, who: Identity, verb: str, resource: str, namespace: str = "") -> bool:
        """Whether somebody may do this."""


@dataclass(frozen=True)
class _Known:
    until: float
    scope: Scope | None
    why: Exception | None
    namespaces: frozenset[str]


class ReviewedAccess:
    """Tokens of the cluster, by TokenReview; rights by SubjectAccessReview: who may list SplitInferences sees them."""

    def __init__(self, reviewer: Reviewer, audience: str) -> None:
        """`audience`: tokens must be for it; empty: for the API server."""
        self._reviewer = reviewer
        self._audience = audience
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._at_once = asyncio.Semaphore(AT_ONCE)

    async def scope(self, token: str, namespaces: Iterable[str]) -> Scope:
        """By the API server, asked again after `KNOWN_SECONDS`, or when there are resources in another namespace."""
        if not token:
            raise UnauthenticatedError("Sign in with a token of the cluster.")
        key, spaces = hashlib.sha256(token.encode()).digest(), frozenset(namespaces)
        known = self._known.get(key)
        if known is None or known.until < time.monotonic() or not self._covers(known, spaces):
            async with self._at_once:
                known = self._known.get(key)
                if known is None or known.until < time.monotonic() or not self._covers(known, spaces):
                    known = await asyncio.to_thread(self._review, token, spaces)
                    self._known[key] = known
                    while len(self._known) > MOST_TOKENS:
                        self._known.popitem(last=False)
        self._known.move_to_end(key)
        if known.scope is None:
            raise known.why or ForbiddenError
        return known.scope

    @staticmethod
    def _covers(known: _Known, namespaces: frozenset[str]) -> bool:
        """Whether it says something of all of them; who is nobody is so everywhere."""
        nobody = isinstance(known.why, UnauthenticatedError)
        everything = known.scope is not None and known.scope.namespaces is None
        return nobody or everything or namespaces <= known.namespaces

    def _review(self, token: str, namespaces: frozenset[str]) -> _Known:
        now = time.monotonic()
        who = self._reviewer.who(token, self._audience)
        if who is None:
            audience = f" for the audience {self._audience}" if self._audience else ""
            why = UnauthenticatedError(f"The API server does not accept this token{audience}.")
            return _Known(now + UNKNOWN_SECONDS, None, why, namespaces)
        nodes = self._reviewer.may(who, "list", "nodes")
        if self._reviewer.may(who, "list", "splitinferences"):
            return _Known(now + KNOWN_SECONDS, Scope(None, nodes), None, namespaces)
        looked = sorted(namespaces)[:MOST_NAMESPACES]
        seen = frozenset(space for space in looked if self._reviewer.may(who, "list", "splitinferences", space))
        if not seen:
            return _Known(now + UNKNOWN_SECONDS, None, ForbiddenError(f"{who.user} may not list SplitInferences."), namespaces)
        return _Known(now + KNOWN_SECONDS, Scope(seen, nodes), None, namespaces)


@dataclass(frozen=True)
class Guard:
    """Which requests may come at all. `hosts`: names of this server, with a port or for any port."""

    hosts: frozenset[str]

    def why_not(self, headers: Mapping[str, str]) -> str:
        """Why a request with these headers is refused; empty where it is not."""
        host = headers.get("Host", "").lower()
        if host not in self.hosts and _without_port(host) not in self.hosts:
            return "This server has another name. Use the address that it printed, or name this host in its settings."
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin.lower()).netloc != host:
            return "A page of another origin sent this request."
        navigation = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
        if headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and not navigation:
            return "A page of another site sent this request."
        return ""


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host


def bearer(headers: Mapping[str, str]) -> str:
    """The token of the Authorization header; empty where there is none, or one that cannot be."""
    scheme, _, token = headers.get("Authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and len(token) <= LONGEST_TOKEN and token.isascii() and token.isprintable() else ""
