"""`splitinference bench operator`, small: it starts, everything gets ready on pretend nodes, nothing fails, and nothing is left."""

import json
import shutil
from pathlib import Path

import pytest
from kubernetes import client

from e2e.cluster import Settings
from e2e.cluster.offline import gobuild
from splitinference.cli.bench_pretend import LABEL
from splitinference.cli.main import main

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="session")
def programs() -> Path | None:
    """The folder that has kwok: None where it is on the PATH; built from its Go module where it is not."""
    return None if shutil.which("kwok") else gobuild.Builder.here(Settings()).build(gobuild.KWOK)


def test_resources_get_ready_and_rest(
    kubeconfig: str, api: client.ApiClient, programs: Path | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    where = ["--programs", str(programs)] if programs else []
    command = ["bench", "operator", "--quick", "--json", "--kubeconfig", kubeconfig, "--logs", str(tmp_path), *where]
    assert main(command) == 0, capsys.readouterr().err
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["resources"], row["nodes"]) == (3, 8)
    assert row["passes"] > 0
    assert row["passesFailed"] == 0
    assert row["passP50Ms"] is not None
    assert row["memoryMib"] > 0
    # A pass reads seven kinds of things; that would be more than 200 requests a minute from three resources if it asked for them.
    assert row["apiRequestsPerMinute"] < 60
    assert "Traceback" not in (tmp_path / "operator.log").read_text()
    assert client.CoreV1Api(api).list_node(label_selector=LABEL).items == []
