"""One row: what the cluster does, what is expected of the operator, and what was seen."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.command import CommandError
from e2e.scene import NAME, OURS
from e2e.traffic import Traffic

Happened = str
"""What was seen, in words, with the conditions' own where they are what was expected."""


@dataclass(frozen=True)
class Case:
    """`row`: its number among the cases; `quick`: CI plays it. `play` raises NotInTimeError where what is expected did not come.

    `tests`: the tests of this repository that show it without the cluster, where it is one of those.
    """

    row: int
    title: str
    expected: str
    play: Callable[[Cluster], Happened]
    quick: bool = False
    tests: tuple[str, ...] = ()


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


def shown_by(row: int, title: str, expected: str, *tests: str) -> None:
    """Adds a case that kind cannot show, or that needs no cluster: these tests of the repository show it, here and now."""
    CASES.append(Case(row, title, expected, lambda _: _passed(tests), tests=tests))


def _passed(tests: tuple[str, ...]) -> Happened:
    """What pytest says in its last line. Raises AssertionError with its output when one fails, or when nothing was tested."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=stack.ROOT, capture_output=True, text=True, check=False, timeout=1800)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode != 0 or " passed" not in last:
        raise AssertionError(f"{last}\n{(done.stdout + done.stderr)[-2000:]}")
    return f"{last} (tests, no cluster)"


def played(each: Case, cluster: Cluster) -> Result:
    """Play it on a resource that serves. What goes wrong is the result, and the next case is played all the same."""
    try:
        if each.tests:
            return Result(each, each.play(cluster), ok=True)
        serves(cluster)
        happened = each.play(cluster)
        serves(cluster)
    except (stack.NotInTimeError, CommandError, AssertionError, subprocess.TimeoutExpired) as error:
        return Result(each, str(error) or type(error).__name__, ok=False)
    return Result(each, happened, ok=True)


def serves(cluster: Cluster) -> dict[str, Any]:
    """Wait until the sample serves and nothing is under way; it is applied if it is not there."""
    cluster.kubectl("apply", "-f", str(stack.SAMPLE))
    stack.wait_ready(cluster, NAME)
    stack.until(lambda: stack.settled(stack.resource(cluster, NAME)), stack.STUCK_SECONDS, "nothing is under way")
    return stack.resource(cluster, NAME)


def removed(cluster: Cluster) -> None:
    """Delete the sample, and wait until none of its pods is there; `serves` applies it again."""
    cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    stack.until(lambda: not cluster.kubectl("get", "pods", "-l", OURS, "-o", "name").strip(), 120, "all pods are gone")


def get(cluster: Cluster, *words: str) -> dict[str, Any]:
    """An object as JSON; empty where it is not there."""
    text = cluster.kubectl("get", *words, "--ignore-not-found", "-o", "json").strip()
    found: dict[str, Any] = json.loads(text) if text else {}
    return found


def uid(cluster: Cluster, *words: str) -> str:
    """Of an object; empty where it is not there."""
    return str(get(cluster, *words).get("metadata", {}).get("uid", ""))


def said(cluster: Cluster, *wanted: str, name: str = NAME) -> str:
    """The first condition whose reason or message has one of these words, as `Type=Status Reason: message`; empty where none has."""
    for c in stack.resource(cluster, name).get("status", {}).get("conditions", []):
        text = f"{c['type']}={c['status']} {c['reason']}: {c['message']}"
        if any(word.lower() in text.lower() for word in wanted):
            return text
    return ""


@contextmanager
def asked(cluster: Cluster) -> Iterator[Traffic]:
    """Clients that ask all the time. Afterwards some answers more are awaited. AssertionError where a request failed."""
    with stack.endpoint(cluster, NAME) as base_url, Traffic(base_url, stack.MODEL) as traffic:
        answers(traffic)
        yield traffic
        answers(traffic)
        report = traffic.report()
    assert not report.failed, f"{len(report.failed)} of {len(report.requests)} requests failed: {report.failed[0].error}"


def answers(traffic: Traffic, count: int = 4) -> None:
    """Wait for so many more answers."""
    done = len(traffic.report().requests)
    stack.until(lambda: len(traffic.report().requests) >= done + count, 120, f"{count} more answers")


def figures(traffic: Traffic) -> str:
    """What clients saw, in words."""
    report = traffic.report()
    return f"{len(report.failed)} of {len(report.requests)} requests failed, longest gap between tokens {report.longest_gap:.1f} s"


@contextmanager
def applied(cluster: Cluster, manifest: dict[str, Any]) -> Iterator[None]:
    """An object that is there for a while."""
    cluster.apply(json.dumps(manifest))
    try:
        yield
    finally:
        cluster.kubectl("delete", "-f", "-", "--ignore-not-found", stdin=json.dumps(manifest))
