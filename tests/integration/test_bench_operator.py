"""`splitinference bench operator`, small: it starts, everything gets ready on pretend nodes, and nothing fails."""

import json
from pathlib import Path

import pytest

from e2e.cluster import Settings
from e2e.cluster.offline import gobuild
from splitinference.cli.main import main

pytestmark = pytest.mark.long


@pytest.fixture
def programs(tmp_path: Path, kubeconfig: str) -> Path:
    """A folder with kwok and what a control plane is made of: its own, as in that of other tests an operator serves already. What the
    cluster of other tests is built from is there once that runs."""
    settings, folder = Settings(), tmp_path / "programs"
    folder.mkdir()
    for module in (gobuild.ETCD, gobuild.KUBERNETES):
        if not module.bin(settings.cache).exists():
            pytest.skip(f"no {module.name} of our own: the cluster's images were pulled, not built")
    built = gobuild.Builder.here(settings)
    for module in (gobuild.ETCD, gobuild.KUBERNETES, gobuild.KWOK):
        for program in built.build(module).iterdir():
            (folder / program.name).symlink_to(program)
    return folder


def test_resources_get_ready_and_rest(programs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = ["bench", "operator", "--quick", "--json", "--programs", str(programs), "--logs", str(tmp_path)]
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
