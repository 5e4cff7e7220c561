"""One row: what the cluster does, what is expected of the operator, and what was seen."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.command import CommandFailed
from e2e.scene import NAME

Happened = str
"""What was seen, in words, with the conditions' own where they are what was expected."""


@dataclass(frozen=True)
class Case:
    """`row`: its number among the cases; `quick`: CI plays it. `play` raises NotInTime where what is expected did not come."""

    row: int
    title: str
    expected: str
    play: Callable[[Cluster], Happened]
    quick: bool = False


@dataclass(frozen=True)
class Result:
    """A case that was played."""

    case: Case
    happened: Happened
    ok: bool


CASES: list[Case] = []


def case(
    row: int, title: str, expected: str, *, quick: bool = False
) -> Callable[[Callable[[Cluster], Happened]], Callable[[Cluster], Happened]]:
    """Adds a function to the cases: it does the thing, waits for what is expected, and takes it back."""

    def added(play: Callable[[Cluster], Happened]) -> Callable[[Cluster], Happened]:
        CASES.append(Case(row, title, expected, play, quick))
        return play

    return added


def played(each: Case, cluster: Cluster) -> Result:
    """Play it on a resource that serves. What goes wrong is the result, and the next case is played all the same."""
    try:
        serves(cluster)
        happened = each.play(cluster)
        serves(cluster)
    except (stack.NotInTime, CommandFailed, AssertionError) as error:
        return Result(each, str(error) or type(error).__name__, ok=False)
    return Result(each, happened, ok=True)


def serves(cluster: Cluster) -> dict[str, Any]:
    """Wait until the sample serves and nothing is under way; it is applied if it is not there."""
    cluster.kubectl("apply", "-f", str(stack.SAMPLE))
    stack.wait_ready(cluster, NAME)
    stack.until(lambda: stack.settled(stack.resource(cluster, NAME)), stack.STUCK_SECONDS, "nothing is under way")
    return stack.resource(cluster, NAME)


def get(cluster: Cluster, *words: str) -> dict[str, Any]:
    """An object as JSON; empty where it is not there."""
    text = cluster.kubectl("get", *words, "--ignore-not-found", "-o", "json").strip()
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def uid(cluster: Cluster, *words: str) -> str:
    """Of an object; empty where it is not there."""
    return str(get(cluster, *words).get("metadata", {}).get("uid", ""))


def said(cluster: Cluster, *wanted: str) -> str:
    """The first condition whose reason or message has one of these words, as `Type=Status Reason: message`; empty where none has."""
    for c in stack.resource(cluster, NAME).get("status", {}).get("conditions", []):
        text = f"{c['type']}={c['status']} {c['reason']}: {c['message']}"
        if any(word.lower() in text.lower() for word in wanted):
            return text
    return ""


@contextmanager
def applied(cluster: Cluster, manifest: dict[str, Any]) -> Iterator[None]:
    """An object that is there for a while."""
    cluster.apply(json.dumps(manifest))
    try:
        yield
    finally:
        cluster.kubectl("delete", "-f", "-", "--ignore-not-found", stdin=json.dumps(manifest))
