"""`splitinference bench operator`: what the operator itself costs, against a real API server with pretend nodes (kwok).

The operator runs as its own process, as it would in its pod, and serves resources whose pods kwok plays. What is measured is at rest:
nothing changes but the loads that the pretend Prometheus reports. Pass times come from the operator's own metrics.
"""

import argparse
import json
import os
import platform
import random
import secrets
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client
from rich.console import Console
from rich.table import Table

from splitinference.adapters.kubernetes.client import KubeCluster, connect
from splitinference.adapters.peers.certificates import KEY_BYTES
from splitinference.cli.bench.control import peers, pretend
from splitinference.cli.bench.control.control_plane import NotStartedError, control_plane, free_port, pretend_kubelets, started, until
from splitinference.controller.api.spec import Resource, read_resource
from splitinference.controller.identity import owner_of_body
from splitinference.controller.manifests.pod_parts import COMPONENT, MANAGED_BY, OURS
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Manifest
from splitinference.settings import Settings

Row = dict[str, Any]
_CRD = Path(__file__).parents[5] / "crds" / "splitinference.yaml"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("operator", help="time, memory and API requests of the operator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 resources on 8 nodes for some seconds, for a check of correctness")
    parser.add_argument("--json", action="store_true", help="one JSON object with `rows`")
    parser.add_argument("--resources", type=int, default=100, help="how many SplitInferences (default 100)")
    parser.add_argument("--nodes", default="100,1000", help="numbers of nodes, one row each (default 100,1000)")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long to measure at rest (default 120)")
    parser.add_argument("--settle", type=float, default=60.0, help="how long to wait before (default 60)")
    parser.add_argument("--programs", type=Path, help="folder with kube-apiserver, etcd, …, kwok; else those on the PATH")
    parser.add_argument("--kubeconfig", type=Path, help="a cluster to use instead of one of its own; what is made there is removed")
    parser.add_argument("--logs", type=Path, help="folder for the programs' logs; else they go with the rest")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if something did not start or a resource did not get ready."""
    sizes = ((3, 8),) if args.quick else tuple((args.resources, int(count)) for count in str(args.nodes).split(","))
    settle, seconds = (1.0, 12.0) if args.quick else (args.settle, args.seconds)
    rows = []
    try:
        for resources, nodes in sizes:
            rows.append(measure(Size(resources, nodes, settle, seconds), args.programs, args.kubeconfig, args.logs))
            sys.stderr.write(f"{resources} resources, {nodes} nodes: done\n")
    except NotStartedError as error:
        sys.stderr.write(f"bench operator: {error}\n")
        return 1
    if args.json:
        print(json.dumps({"machine": machine(), "rows": rows}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 180, highlight=False).print(table(rows))
    return 0


@dataclass(frozen=True)
class Size:
    """One row: how many, and for how long."""

    resources: int
    nodes: int
    settle_seconds: float
    seconds: float


def measure(size: Size, programs: Path | None, kubeconfig: Path | None, logs: Path | None) -> Row:
    """One row. Raises NotStartedError."""
    run_id = secrets.token_hex(3)
    namespace = f"bench-{run_id}"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="splitinference-bench-")))
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
            stack.callback(_keep_logs, folder, logs)
        config = kubeconfig or stack.enter_context(control_plane(programs, folder))
        api = connect(str(config))
        _apply_crd(api)
        stack.enter_context(pretend_kubelets(programs, config, folder))
        numbers = random.Random(1)
        nodes = [pretend.a_node(number, run_id, numbers) for number in range(size.nodes)]
        stack.enter_context(_there(api, namespace, nodes))
        names = [f"model-{number:03d}" for number in range(size.resources)]
        cluster = KubeCluster(api, 30.0, (namespace,))
        for name in names:
            cluster.create(pretend.a_resource(name, namespace, run_id))
        for body in cluster.split_inferences():
            read = read_resource(body)
            assert isinstance(read, Resource)  # noqa: S101 - it is our own
            cluster.apply(pretend.profile_of(read))
        answers = pretend.Answers({node["metadata"]["name"]: int(node["status"]["allocatable"]["cpu"]) for node in nodes})
        prometheus = stack.enter_context(pretend.answering(answers))
        key, settings = peers.Known(secrets.token_bytes(KEY_BYTES)), Settings()
        cluster.create(key.secret(namespace, settings.root_key_secret))
        owners = [owner_of_body(body) for body in cluster.split_inferences()]
        stack.enter_context(peers.peers(key, settings.trust_domain, owners))
        operator = stack.enter_context(_operator(config, namespace, prometheus, folder))
        began = time.monotonic()
        until(lambda: _all_ready(cluster, size.resources, operator), 60 + 6 * size.resources, "all resources are ready", operator.log)
        ready = time.monotonic() - began
        answers.segments = [(namespace, pod) for pod in _segments(cluster)]
        time.sleep(size.settle_seconds)
        return {
            "resources": size.resources,
            "nodes": size.nodes,
            "readySeconds": round(ready, 1),
            **operator.at_rest(size.seconds, answers),
        }


# --- the operator --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operator:
    """The process, seen from outside."""

    pid: int
    metrics_port: int
    log: Path

    def at_rest(self, seconds: float, answers: pretend.Answers) -> Row:
        """What it does and takes in so many seconds."""
        before, cpu, asked, began = self.metrics(), self.cpu_seconds(), answers.queries, time.monotonic()
        memory: list[int] = []
        while time.monotonic() - began < seconds:
            time.sleep(min(1.0, seconds / 10))
            memory.append(resident_bytes(self.pid))
        took = time.monotonic() - began
        grown = {series: value - before.get(series, 0.0) for series, value in self.metrics().items()}
        passes = {solved: _buckets(grown, solved) for solved in ("no", "yes")}
        return {
            "seconds": round(took, 1),
            "passes": round(sum(bucket[1] for found in passes.values() for bucket in found[-1:])),
            "passesFailed": round(sum(v for s, v in grown.items() if s.startswith("splitinference_passes_total") and '"done"' not in s)),
            "passP50Ms": quantile_ms(passes["no"], 0.5),
            "passP95Ms": quantile_ms(passes["no"], 0.95),
            "passesWithSolve": round(sum(bucket[1] for bucket in passes["yes"][-1:])),
            "passWithSolveP95Ms": quantile_ms(passes["yes"], 0.95),
            "memoryMib": round(max(memory) / 2**20, 1),
            "solverMemoryMib": round(sum(resident_bytes(child) for child in children(self.pid)) / 2**20, 1),
            "processorShare": round((self.cpu_seconds() - cpu) / took, 3),
            "apiRequestsPerMinute": round(60 * _total(grown, "splitinference_api_requests_total") / took, 1),
            "prometheusQueriesPerMinute": round(60 * (answers.queries - asked) / took, 1),
        }

    def metrics(self) -> dict[str, float]:
        """Its own metrics, by series."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line and not line.startswith("#")}

    def cpu_seconds(self) -> float:
        """Processor time of the operator, without its solver's process."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def lives(self) -> bool:
        """Whether the process is there."""
        return Path(f"/proc/{self.pid}/stat").exists()


@contextmanager
def _operator(kubeconfig: Path, namespace: str, prometheus: str, folder: Path) -> Iterator[Operator]:
    port, health, log = free_port(), free_port(), folder / "operator.log"
    settings = {"NAMESPACES": namespace, "OPERATOR_NAMESPACE": namespace, "PROMETHEUS_URL": prometheus}
    settings |= {"METRICS_PORT": str(port), "HEALTH_PORT": str(health), "ALLOWED_HOST_PATHS": '["/models"]'}
    settings["ALLOWED_TOLERATIONS"] = '[{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]'
    # MALLOC_ARENA_MAX as its image has it.
    env = {"KUBECONFIG": str(kubeconfig), "MALLOC_ARENA_MAX": "2", **{f"SPLITINFERENCE_{name}": value for name, value in settings.items()}}
    with started([sys.executable, "-W", "ignore", "-m", "splitinference"], log, env) as process:
        yield Operator(process.pid, port, log)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def children(pid: int) -> list[int]:
    """The processes that a process started: the operator's is its solver."""
    try:
        return [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return []


def _total(grown: Mapping[str, float], name: str) -> float:
    return sum(value for series, value in grown.items() if series.startswith(name))


def _buckets(grown: Mapping[str, float], solved: str) -> list[tuple[float, float]]:
    """Upper ends in seconds, and how many passes were at most so long."""
    found = []
    for series, value in grown.items():
        if series.startswith("splitinference_pass_seconds_bucket") and f'solved="{solved}"' in series:
            found.append((float(series.partition('le="')[2].partition('"')[0]), value))
    return sorted(found)


def quantile_ms(buckets: Sequence[tuple[float, float]], share: float) -> float | None:
    """The quantile in ms, evenly spread within its bucket, as Prometheus takes it; None where there is nothing."""
    if not buckets or buckets[-1][1] <= 0:
        return None
    wanted, low, below = share * buckets[-1][1], 0.0, 0.0
    for high, count in buckets:
        if count >= wanted:
            within = (wanted - below) / (count - below) if count > below else 1.0
            return round(1e3 * (low if high == float("inf") else low + (high - low) * within), 2)
        low, below = high, count
    return None


# --- the cluster ---------------------------------------------------------------------------------------------------------------------


def _apply_crd(api: client.ApiClient) -> None:
    crd = yaml.safe_load(_CRD.read_text())
    extensions = client.ApiextensionsV1Api(api)
    name = crd["metadata"]["name"]
    if any(found.metadata.name == name for found in extensions.list_custom_resource_definition().items):
        return
    extensions.create_custom_resource_definition(crd)

    def established() -> bool:
        conditions = extensions.read_custom_resource_definition(name).status.conditions or []
        return any(c.type == "Established" and c.status == "True" for c in conditions)

    until(established, 30, "the CRD is established")
    time.sleep(1.0)  # discovery follows


@contextmanager
def _there(api: client.ApiClient, namespace: str, nodes: Sequence[Manifest]) -> Iterator[None]:
    """The namespace and the nodes, until the block ends."""
    core = client.CoreV1Api(api)
    core.create_namespace({"metadata": {"name": namespace}})
    with ThreadPoolExecutor(8) as several:
        try:
            list(several.map(core.create_node, nodes))
            yield
        finally:
            list(several.map(lambda node: core.delete_node(node["metadata"]["name"]), nodes))
            core.delete_namespace(namespace)


def _all_ready(cluster: KubeCluster, count: int, operator: Operator) -> bool:
    if not operator.lives():
        raise NotStartedError(f"the operator ended: {operator.log.read_text(errors='replace')[-2000:]}")
    ready = [
        body
        for body in cluster.split_inferences()
        if any(c["type"] == "Ready" and c["status"] == "True" for c in (body.get("status") or {}).get("conditions") or ())
    ]
    return len(ready) == count


def _segments(cluster: KubeCluster) -> list[str]:
    pods = (pod["metadata"] for pod in cluster.pods())
    wanted = {MANAGED_BY: OURS, COMPONENT: SEGMENT}.items()
    return [metadata["name"] for metadata in pods if wanted <= (metadata.get("labels") or {}).items()]


# --- the answer ----------------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, object]:
    """Where it was measured."""
    text = Path("/proc/cpuinfo").read_text(errors="replace")
    model = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), platform.machine())
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "load": os.getloadavg()[0]}


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    result = Table(box=None, padding=(0, 2, 0, 0))
    columns = {
        "RESOURCES": "resources", "NODES": "nodes", "PASSES": "passes", "P50 MS": "passP50Ms", "P95 MS": "passP95Ms",
        "SOLVES": "passesWithSolve", "MEMORY MIB": "memoryMib", "SOLVER MIB": "solverMemoryMib", "CORES": "processorShare",
        "API/MIN": "apiRequestsPerMinute", "PROM/MIN": "prometheusQueriesPerMinute",
    }  # fmt: skip
    for name in columns:
        result.add_column(name)
    for row in rows:
        result.add_row(*(str(row[key]) for key in columns.values()))
    return result


def _keep_logs(folder: Path, logs: Path) -> None:
    for found in folder.glob("*.log"):
        (logs / found.name).write_bytes(found.read_bytes())
