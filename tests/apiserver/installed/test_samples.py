"""Every sample: a real API server takes it, the operator's own parser accepts it, and what it asks for is in the list of samples."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from splitinference.controller.api.spec import Resource, read_resource
from tests.apiserver.api_server import ApiServer
from tests.apiserver.installed.test_examples_of_values import kubectl
from tests.test_repository import ROOT

FOLDER = ROOT / "config" / "samples"
SAMPLES = sorted(FOLDER.glob("*.yaml"))


def content(sample: Path) -> dict[str, Any]:
    (found,) = yaml.safe_load_all(sample.read_text())
    return dict(found)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_an_api_server_takes_the_sample(sample: Path, server: ApiServer):
    done = kubectl(server, "apply", "--dry-run=server", "--validate=strict", "-f", str(sample))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("created (server dry run)")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_the_operator_accepts_what_the_api_server_makes_of_it(sample: Path, server: ApiServer):
    """With the defaults that the API server fills in."""
    done = kubectl(server, "apply", "--dry-run=server", "-o", "yaml", "-f", str(sample))
    read = read_resource(yaml.safe_load(done.stdout))
    assert isinstance(read, Resource), read


def test_a_sample_with_a_typing_error_is_refused(server: ApiServer):
    """So that the tests above can fail."""
    wrong = content(FOLDER / "slo.yaml")
    wrong["spec"]["slo"]["timeToFirstTokens"] = "1s"
    done = kubectl(server, "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(wrong))
    assert done.returncode != 0
    assert "timeToFirstTokens" in done.stderr


def test_every_part_of_the_spec_has_a_sample():
    crd = yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    parts = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    used = {part for sample in SAMPLES for part in content(sample)["spec"]}
    assert set(parts) - used == set()


def test_every_sample_is_listed_and_says_what_it_is_for():
    page = (FOLDER / "README.md").read_text()
    assert [sample.name for sample in SAMPLES if f"({sample.name})" not in page] == []
    assert [sample.name for sample in SAMPLES if not sample.read_text().startswith("# ")] == []
