"""Each documented values file, rendered by helm and applied with a server-side dry run to a real API server.

The kinds of the Prometheus operator are not there: their CRDs belong to it. Rules are checked by promtool (tests/chart/test_monitoring.py).
"""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from e2e.cluster import Settings
from e2e.cluster.offline import gobuild
from splitinference.cli.bench.control.control_plane import find
from tests.apiserver.api_server import ApiServer
from tests.chart.rendered import CHART, ROOT, run, umbrella

EXAMPLES = sorted((CHART / "examples").glob("*.yaml"))
NOT_THERE = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}
FROM_AN_UMBRELLA = "subchart"


def kubectl(server: ApiServer, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    built = gobuild.KUBERNETES.bin(Settings().cache) / "kubectl"
    program = find("kubectl", built if built.exists() else None)
    # the server's version of a fresh machine is read from its own cache folder
    command = [program, "--kubeconfig", server.kubeconfig(), "--cache-dir", str(server.folder / "discovery"), *words]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=120)


def dry_run(server: ApiServer, objects: list[dict[str, Any]]) -> None:
    """Server-side apply of all, without effect. Namespaces that they are in are made."""
    api = client.CoreV1Api(server.api())
    known = {found.metadata.name for found in api.list_namespace().items}
    for name in {obj["metadata"].get("namespace", "default") for obj in objects} - known:
        api.create_namespace({"metadata": {"name": name}})
    words = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
    done = kubectl(server, *words, stdin=yaml.safe_dump_all(objects))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(objects), done.stdout


def rendered(example: Path, tmp_path: Path) -> list[dict[str, Any]]:
    if example.stem == FROM_AN_UMBRELLA:
        done = umbrella(tmp_path, example.read_text())
    else:
        done = run("template", "si", str(CHART), "--namespace", "ops", "--values", str(example))
    assert done.returncode == 0, done.stderr
    return [obj for obj in yaml.safe_load_all(done.stdout) if obj]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_api_server_takes_what_the_values_make(example: Path, server: ApiServer, tmp_path: Path):
    objects = rendered(example, tmp_path)
    assert {"Deployment", "ServiceAccount", "ClusterRole"} <= {obj["kind"] for obj in objects}
    dry_run(server, [obj for obj in objects if obj["kind"] not in NOT_THERE])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_values_change_what_is_rendered(example: Path, tmp_path: Path):
    plain = run("template", "si", str(CHART), "--namespace", "ops")
    assert yaml.safe_dump_all(rendered(example, tmp_path)) != yaml.safe_dump_all(obj for obj in yaml.safe_load_all(plain.stdout) if obj)


def test_every_example_is_in_the_list():
    page = (ROOT / "charts/splitinference/README.md").read_text()
    assert [path.name for path in EXAMPLES if f"examples/{path.name}" not in page] == []
