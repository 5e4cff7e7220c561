"""`make bench-adaptation`: the same disturbances of the kind cluster, met by a static plan and by an adapting one, side by side.

Static is `mode: Frozen`: the plan of the beginning, of which only what breaks is mended. Both get the same load, the same disturbances of
the same nodes at the same times, and are held to the same SLO: a request's mean time per output token may be three times what it was, in
the median, while nothing was disturbed yet. The static run says what that is, so it comes first; the adapting one is told it (`spec.slo`).

The other tenant grows, as tenants do: what a plan can be left for before clients feel it is what adaptation is for. What comes at once is
measured by the scenarios of `e2e/test_adaptation.py`.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import yaml
from rich.console import Console
from rich.table import Table

from e2e import results, stack
from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown
from e2e.cluster.settings import TRUSTED
from e2e.scene import NAME, at_rest, burning, forget, thin
from e2e.traffic import STEADY, Request, Traffic
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.values.problem import Slo
from splitinference.simulation.results.report import About, Report, Spent, figures
from splitinference.simulation.results.table import FURTHER_ROWS, MAIN_ROWS, cells
from splitinference.simulation.system import records
from splitinference.simulation.system.arrivals import Arrival

MODES = {"static": "Frozen", "adaptive": "Auto"}
SLO_FACTOR = 3.0
THIN_MBIT = 2.0
SAMPLE_SECONDS = 5.0
OPTIONAL = {Reason.SLO_VIOLATED, Reason.UTILIZATION_SHIFTED, Reason.LINK_DEGRADED, Reason.BETTER_PLAN}
_USED = 'sum by (node) (rate(container_cpu_usage_seconds_total{id="/"}[15s]))'
_MEASURED = ("time to first token", "time per output token", "requests", "moves", "  of these", "longest token gap")


@dataclass(frozen=True)
class Phase:
    """A while of the script: what it is called, for how many seconds, and what disturbs (None: nothing)."""

    name: str
    seconds: float
    disturb: Callable[[Cluster, str], AbstractContextManager[None]] | None = None


def tenant(share: float, threads: int = 0) -> Callable[[Cluster, str], AbstractContextManager[None]]:
    """Another tenant that takes this share of the node's CPU, with so many threads."""
    return lambda cluster, node: burning(cluster, node, share=share, threads=threads)


SCRIPT = (
    Phase("nothing", 30),
    Phase("tenant takes 30 %", 40, tenant(0.3)),
    Phase("tenant takes 65 %", 60, tenant(0.65)),
    Phase("tenant takes all", 420, tenant(1.0, threads=4)),
    Phase("nothing again", 30),
    Phase(f"{THIN_MBIT:g} Mbit/s", 120, lambda cluster, node: thin(cluster, node, THIN_MBIT)),
)


@dataclass
class Samples:
    """What is looked at every few seconds beside the requests: how busy nodes are, and whether a sensitive layer is where it may not be."""

    cluster: Cluster
    busiest: list[float] = field(default_factory=list)
    serving: list[float] = field(default_factory=list)
    violating: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Samples":
        threading.Thread(target=self._look_on, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _look_on(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            at = time.monotonic()
            nodes = stack.resource(self.cluster, NAME)["status"]["nodes"].split(",")
            used = self._used()
            self.busiest.append(max(used.values(), default=0.0))
            self.serving.append(statistics.fmean(used.get(node, 0.0) for node in nodes))
            labelled = self.cluster.kubectl("get", "nodes", "-l", f"{TRUSTED}=true", "-o", "jsonpath={.items[*].metadata.name}").split()
            if nodes != [""] and not {nodes[0], nodes[-1]} <= {*labelled}:  # no route, nothing exposed
                self.violating.append(at)

    def _used(self) -> dict[str, float]:
        """The share of each worker's cores that is busy, by whomever."""
        path = f"/api/v1/namespaces/monitoring/services/prometheus:9090/proxy/api/v1/query?query={quote(_USED)}"
        answer = json.loads(self.cluster.kubectl("get", "--raw", path))["data"]["result"]
        cores = {row["metric"]["node"]: float(row["value"][1]) for row in answer}
        workers = self.cluster.settings.worker_names()
        return {node: min(1.0, cores[node] / self.cluster.size(node).cores) for node in workers if node in cores}

    def violates(self, request: Request) -> bool:
        """Whether a look found a sensitive layer on a node without trust while this request was under way."""
        end = request.tokens_at[-1] if request.tokens_at else request.started
        return any(request.started <= at <= end for at in self.violating)


@dataclass(frozen=True)
class Run:
    """One policy's run: all requests, and when each phase of the script began."""

    requests: tuple[Request, ...]
    samples: Samples
    moves: tuple[records.Moved, ...]
    begun: tuple[float, ...]
    ended: float

    def usual_ms(self) -> float:
        """Median of the mean times per output token while nothing was disturbed."""
        undisturbed = (served(request, self) for request in self.requests if request.tokens_at and request.tokens_at[-1] < self.begun[1])
        return statistics.median(each for request in undisturbed if (each := request.output_token_ms) is not None)

    def phases(self, slo: Slo) -> list[dict[str, Any]]:
        """Of each phase, what became of the requests that began in it."""
        found = []
        for phase, start, end in zip(SCRIPT, self.begun, (*self.begun[1:], self.ended), strict=True):
            began = [served(request, self) for request in self.requests if start <= request.started < end]
            times = sorted(round(each, 1) for request in began if (each := request.output_token_ms) is not None)
            kept = sum(request.keeps(slo) for request in began if not request.why_failed)
            found.append(
                {"phase": phase.name, "seconds": round(end - start, 1), "requests": len(began), "kept": kept, "outputTokenMs": times}
            )
        return found

    def report(self, policy: str, slo: Slo) -> Report:
        """The figures, in the simulator's form."""
        requests = [served(request, self) for request in self.requests]
        kept = records.Records(requests=requests, moves=list(self.moves), busiest=self.samples.busiest, serving=self.samples.serving)
        kept.done = [request for request in requests if not request.why_failed]
        kept.lost = [request for request in requests if request.why_failed]
        about = About(name="kind cluster", duration_s=self.ended - self.begun[0], nodes=len(self.samples.cluster.settings.workers), slo=slo)
        return figures(about, policy, 0, kept, Spent(loaded_bytes=0, joules=0.0, solved=0))


def served(request: Request, run: Run) -> records.Request:
    """A client's request as the simulator writes it down. Its text's chunks are its tokens."""
    found = records.Request(Arrival(at_s=request.started - run.begun[0], prompt_tokens=0, output_tokens=len(request.tokens_at)))
    for at in request.tokens_at:
        found.token(at - run.begun[0])
    found.violates, found.why_failed = run.samples.violates(request), request.error or ""
    return found


def play(cluster: Cluster, mode: str, limit_ms: float | None) -> Run:
    """The script, from a plan made anew. `limit_ms`: the SLO that the resource is told, per output token."""
    manifest = yaml.safe_load(stack.SAMPLE.read_text())
    manifest["spec"]["adaptation"]["mode"] = mode
    if limit_ms is not None:
        manifest["spec"]["slo"] = {"timePerOutputToken": f"{limit_ms:.0f}ms"}
    cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    forget(cluster)
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    stack.wait_ready(cluster, NAME)
    stack.until(lambda: at_rest(cluster), 240, "the first plan is at rest")
    node = stack.busiest_inner_node(stack.resource(cluster, NAME))
    with stack.endpoint(cluster, NAME) as base_url, Samples(cluster) as samples, Traffic(base_url, stack.MODEL, STEADY) as traffic:
        begun, since = [], datetime.now(UTC)
        for phase in SCRIPT:
            begun.append(time.monotonic())
            with phase.disturb(cluster, node) if phase.disturb else nothing():
                time.sleep(phase.seconds)
        report = traffic.stop()
        return Run(report.requests, samples, moves(cluster, since), tuple(begun), time.monotonic())


def moves(cluster: Cluster, since: datetime) -> tuple[records.Moved, ...]:
    """The moves that the resource's decisions tell of."""
    written = reversed(stack.resource(cluster, NAME)["status"]["decisions"])  # newest first
    made = [(datetime.fromisoformat(d["time"]), d) for d in written if d["transition"] in {"migration", "re-split"}]
    return tuple(
        records.Moved((at - since).total_seconds(), d["transition"], d["reason"], d["reason"] not in OPTIONAL, d["message"], 0)
        for at, d in made
        if at >= since
    )


@contextmanager
def nothing() -> Iterator[None]:
    """No disturbance."""
    yield


def main() -> int:
    """Exit status 1 when a request failed."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench_adaptation", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the reports as JSON")
    words = parser.parse_args()
    with shown() as progress:
        cluster = Cluster(Settings(name=os.environ.get("E2E_NAME", Settings().name)), progress)
        stack.stand_up(cluster)
        runs: dict[str, Run] = {}
        limit: float | None = None
        for policy, mode in MODES.items():
            with progress.step(f"{policy}: {sum(phase.seconds for phase in SCRIPT):g} s of requests"):
                runs[policy] = play(cluster, mode, limit)
            limit = limit or SLO_FACTOR * runs[policy].usual_ms()
            for moved in runs[policy].moves:
                progress.say(f"{policy}: {moved}")
    assert limit is not None
    slo = Slo(time_per_output_token_ms=limit)
    reports = [run.report(policy, slo) for policy, run in runs.items()]
    phases = {policy: run.phases(slo) for policy, run in runs.items()}
    if words.json:
        about = {"commit": results.commit(), "machine": results.machine(), "sloMsPerToken": round(limit, 1)}
        print(json.dumps({**about, "reports": [report.model_dump(mode="json") for report in reports], "phases": phases}))
    else:
        table(reports, phases, limit)
    return int(any(report.failed for report in reports))


def table(reports: Sequence[Report], phases: Mapping[str, Sequence[Mapping[str, Any]]], limit: float) -> None:
    """The rows of `splitinference simulate` that a cluster can measure, and of each phase how many of its requests kept the SLO."""
    title = f"{results.machine()}, commit {results.commit()}; SLO: {limit:.0f} ms per output token"
    shown_table = Table(title=title, title_justify="left", title_style="bold")
    shown_table.add_column("")
    for report in reports:
        shown_table.add_column(report.policy, justify="right")
    for rows in (MAIN_ROWS, [row for row in FURTHER_ROWS if row[0].startswith(_MEASURED)]):
        for row in cells(reports, rows):
            shown_table.add_row(*row)
        shown_table.add_section()
    for row in zip(*(phases[report.policy] for report in reports), strict=True):
        shown_table.add_row(f"SLO met, {row[0]['phase']}", *(f"{each['kept']} of {each['requests']}" for each in row))
    Console(width=None if sys.stdout.isatty() else 120).print(shown_table)


if __name__ == "__main__":
    sys.exit(main())
