"""One disturbance under load: begun, watched until it is answered, and what it was for clients as a row of figures."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.progress import together
from e2e.traffic import STEADY, Load, Traffic

NAME = "chat"
OURS = "app.kubernetes.io/managed-by=splitinference,app.kubernetes.io/instance=chat"
COOLED = timedelta(seconds=45)  # the sample's cooldown, and time for one look at what would be better
MEASURED = timedelta(seconds=3 * 60)
REST_SECONDS = 100 + 700 / stack.PATIENCE
"""A stabilization window takes up to ten minutes on any machine, where too little is measured that would end it before."""
Placement = tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class Outcome:
    """What came of a disturbance. Times are seconds after it began; None: it did not come to that.

    Gaps are from one token of an answer to the next: `usual` is the 99th percentile before the disturbance, `disturbed` that from there to
    the decision, `moving` the longest one from the decision until nothing was under way.
    """

    scenario: str
    load: str
    requests: int
    failed: int
    moves: int
    reason: str
    decided_seconds: float | None
    settled_seconds: float | None
    usual_gap_seconds: float
    disturbed_gap_seconds: float | None
    moving_gap_seconds: float | None
    longest_gap_seconds: float
    longest_wait_seconds: float
    quiet_seconds: float


@dataclass
class Scene:
    """The cluster, its clients, and since when it is disturbed."""

    cluster: Cluster
    traffic: Traffic
    begun: float = field(default_factory=time.monotonic)
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    settled_at: float | None = None
    quiet_seconds: float = 0.0

    def found(self) -> dict[str, Any]:
        """The resource as it is now."""
        return stack.resource(self.cluster, NAME)

    def placement(self) -> Placement:
        """The plan's segments as (start, end, node)."""
        return stack.placement(self.found())

    def inner_node(self) -> str:
        """The node of the slowest stage between the first and the last."""
        return stack.busiest_inner_node(self.found())

    def settles(self, wanted: Callable[[Placement], bool], seconds: float, what: str) -> Placement:
        """Wait until the plan is as wanted, all of it serves, and nothing is under way."""

        def arrived() -> Placement | None:
            found = self.found()
            placed = stack.placement(found)
            return placed if stack.settled(found) and wanted(placed) else None

        placed: Placement = stack.until(arrived, seconds, what, progress=lambda: stack.pods_of(self.cluster, "default"))
        self.settled_at = time.monotonic()
        return placed

    def leaves(self, *nodes: str, seconds: float = 150) -> Placement:
        """Wait until no segment is on these nodes any more."""
        return self.settles(lambda placed: not {node for _, _, node in placed} & {*nodes}, seconds, f"no segment on {', '.join(nodes)}")

    def answers(self, count: int = 4, seconds: float = 120) -> None:
        """Wait for so many more answers."""
        done = len(self.traffic.report().requests)
        stack.until(lambda: len(self.traffic.report().requests) >= done + count, seconds, f"{count} more answers")

    def moves(self) -> int:
        """How often another plan was adopted since the disturbance began."""
        moved = self.found()["status"].get("adaptation", {}).get("moves", [])
        return sum(datetime.fromisoformat(moment) >= self.since for moment in moved)

    def runs(self, seconds: float) -> None:
        """Let the disturbance go on for so long."""
        time.sleep(seconds)

    def stays(self, seconds: float) -> None:
        """The same, and no other plan is adopted meanwhile."""
        before, end = self.moves(), time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(5.0, max(0.0, end - time.monotonic())))
            assert self.moves() == before, f"moved again: {self.found()['status']['decisions'][0]}"
        self.quiet_seconds += seconds

    def decisions(self) -> list[dict[str, Any]]:
        """The decisions that changed the plan since the disturbance began, first things first."""
        written = reversed(self.found()["status"].get("decisions", []))  # newest first
        made = (d for d in written if d["transition"] in {"migration", "re-split"})
        return [d for d in made if datetime.fromisoformat(d["time"]) >= self.since.replace(microsecond=0)]

    def hasty(self) -> list[dict[str, Any]]:
        """Decisions to move after the first, and before its stages can have been measured: three windows of the gateway's figures later, on
        the quickest machine. A plan that is found to be better after that is gone to rightly, and when that is depends on the machine."""
        first, *others = self.decisions() or [{}]
        return [d for d in others if datetime.fromisoformat(d["time"]) - datetime.fromisoformat(first["time"]) < MEASURED]

    def decision(self) -> dict[str, Any]:
        """The first of them; empty when there is none."""
        return next(iter(self.decisions()), {})

    def outcome(self, scenario: str) -> Outcome:
        """The row of figures, of the requests that were under way since the disturbance began."""
        decision, report = self.decision(), self.traffic.report()
        during = report.within(self.begun, float("inf"))
        decided = (datetime.fromisoformat(decision["time"]) - self.since).total_seconds() if decision else None
        decided_at = self.begun if decided is None else self.begun + decided
        moved = decided is not None and self.settled_at is not None
        return Outcome(
            scenario=scenario,
            load=self.traffic.load.name,
            requests=len(during.requests),
            failed=len(during.failed),
            moves=self.moves(),
            reason=decision.get("reason", ""),
            decided_seconds=None if decided is None else max(0.0, decided),
            settled_seconds=None if self.settled_at is None else self.settled_at - self.begun,
            usual_gap_seconds=report.within(0.0, self.begun).gap_percentile(0.99),
            disturbed_gap_seconds=report.gap_percentile(0.99, self.begun, decided_at) if moved else None,
            moving_gap_seconds=report.gap_percentile(1.0, decided_at, self.settled_at or decided_at) if moved else None,
            longest_gap_seconds=during.longest_gap,
            longest_wait_seconds=during.longest_wait,
            quiet_seconds=self.quiet_seconds,
        )


@contextmanager
def played(cluster: Cluster, what: str) -> Iterator[Scene]:
    """Clients of the resource NAME ask all the time meanwhile, and none of their requests fails."""
    with stack.endpoint(cluster, NAME) as base_url, disturbed(cluster, base_url, STEADY) as scene:
        yield scene
    report = scene.traffic.report()
    gap = f"longest gap between tokens {report.longest_gap:.1f} s"
    cluster.progress.say(f"{what}: {len(report.failed)} of {len(report.requests)} requests failed, {gap}")
    assert [request.error for request in report.failed] == []


def frozen_sample() -> dict[str, Any]:
    """The sample without rules of privacy, and Frozen: no optional move, whose cause would be a test's own load, comes between."""
    body: dict[str, Any] = yaml.safe_load(stack.SAMPLE.read_text("utf-8"))
    spec = {name: value for name, value in body["spec"].items() if name != "privacy"}
    body["spec"] = {**spec, "adaptation": {**spec["adaptation"], "mode": "Frozen"}}
    return body


@contextmanager
def disturbed(cluster: Cluster, base_url: str, load: Load) -> Iterator[Scene]:
    """Clients ask, nothing is under way, and now the caller disturbs. Some answers more are awaited afterwards."""
    with Traffic(base_url, stack.MODEL, load) as traffic:
        stack.until(lambda: len(traffic.report().requests) >= 4, 120, "four answers before anything changes")
        comes_to_rest(cluster)
        scene = Scene(cluster, traffic)
        yield scene
        scene.answers()


def comes_to_rest(cluster: Cluster) -> None:
    """Wait until nothing is under way or about to be, and say what it waits for. NotInTimeError names what is left."""
    said: list[str] = []

    def rests() -> bool:
        why = unrest(cluster)
        if why and why != said:
            said[:] = why
            cluster.progress.say(f"before anything is disturbed: {'; '.join(why)}")
        return not why

    try:
        stack.until(rests, REST_SECONDS, "nothing is under way or about to be", progress=lambda: tuple(said))
    except stack.NotInTimeError as error:
        raise stack.NotInTimeError("\n".join([str(error), *said, *stack.circumstances(cluster, NAME)])) from error


def at_rest(cluster: Cluster) -> bool:
    """Whether nothing is under way or about to be."""
    return not unrest(cluster)


def unrest(cluster: Cluster) -> list[str]:
    """What is under way or about to be, in words; empty where that is nothing."""
    return unrest_of(stack.resource(cluster, NAME), ending=ending(cluster), now=datetime.now(UTC))


def unrest_of(found: dict[str, Any], *, ending: bool, now: datetime) -> list[str]:
    """The same of a resource. `ending`: a pod of ours is being ended.

    What leads to optional moves alone does not count in mode Frozen, which has none: so nobody waits there for a stabilization window.
    """
    adaptation = found["status"].get("adaptation", {})
    moved = max(map(datetime.fromisoformat, adaptation.get("moves", [])), default=None)
    progress = stack.condition(found, "Progressing").get("message", "the operator has not said yet what is under way")
    reasons = [
        (f"not settled: {progress}", not stack.settled(found)),
        ("a pod is being ended", ending),
    ]
    if found["spec"].get("adaptation", {}).get("mode") != "Frozen":
        reasons += [
            ("metrics are missing", stack.condition(found, "MetricsAvailable").get("status") != "True"),
            (f"the cooldown after the move at {moved}", moved is not None and now - moved <= COOLED),
            (f"a stabilization window: {progress}", "stabilizing" in adaptation.get("memory", {})),
            ("a reason for another plan is being confirmed", stack.confirming(found)),
        ]
    return [why for why, holds in reasons if holds]


def ending(cluster: Cluster) -> bool:
    """Whether a pod of ours is being ended: it may drain for a while after the resource is at rest."""
    pods = json.loads(cluster.kubectl("get", "pods", "-l", OURS, "-o", "json"))["items"]
    return any("deletionTimestamp" in pod["metadata"] for pod in pods)


@contextmanager
def burning(cluster: Cluster, *nodes: str, share: float = 1.0, threads: int = 0) -> Iterator[None]:
    """Another tenant takes this share of the CPU of these nodes, with as many threads as that is cores, or with so many."""
    try:
        for node in nodes:
            cluster.burn(node, share * cluster.size(node).cores, threads=threads)
        yield
    finally:
        for node in nodes:
            cluster.stop_burning(node)


ROOMY_MIB = 2000
"""Memory for pods on a worker that holds two segments of the sample at once."""


@contextmanager
def workers_of(cluster: Cluster, mib: int) -> Iterator[None]:
    """All workers have so much memory; afterwards what they had, without the resource, whose segments may be larger than that."""
    sizes = {node: cluster.size(node).memory_mib for node in cluster.settings.worker_names()}

    def resize(wanted: Mapping[str, int]) -> None:
        together([lambda node=node, mib=mib: cluster.memory(node, mib) for node, mib in wanted.items()])  # type: ignore[misc]

    try:
        resize(dict.fromkeys(sizes, mib))
        yield
    finally:
        cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
        stack.until(lambda: not cluster.kubectl("get", "pods", "-l", OURS, "-o", "name").strip(), 120, "all pods are gone")
        resize(sizes)


@contextmanager
def thin(cluster: Cluster, node: str, mbit: float) -> Iterator[None]:
    """What leaves this node is limited to so many Mbit/s."""
    try:
        cluster.link(node, mbit)
        yield
    finally:
        cluster.link(node)


def forget(cluster: Cluster) -> None:
    """What was measured until now is not known any more: Prometheus starts anew, with nothing. Of a link that was thin in one scenario the
    next would know for half an hour (`prometheus.linkMaxAgeSeconds`)."""
    cluster.prometheus(running=False)
    cluster.prometheus(running=True)
