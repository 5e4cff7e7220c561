"""The Kustomize base: it is what the chart makes, and a real API server takes it, with the policies of the example's overlay in force."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.cli.bench.control.control_plane import NotStartedError
from tests.apiserver.api_server import ApiServer, api_server, programs
from tests.apiserver.installed.test_examples_of_values import kubectl
from tests.chart.rendered import ROOT
from tests.integration.conftest import a_resource
from tests.manifests import TARGET, text
from tests.waiting import until


def test_the_base_is_what_the_chart_makes():
    assert TARGET.read_text() == text(), "make manifests"


def test_what_the_chart_says_of_helm_is_not_said_here():
    assert "Helm" not in TARGET.read_text()
    assert "helm.sh" not in TARGET.read_text()


@pytest.fixture
def empty(tmp_path_factory: pytest.TempPathFactory):
    try:
        programs()
    except NotStartedError as error:
        pytest.skip(str(error))
    with api_server(tmp_path_factory.mktemp("kustomize")) as found:
        yield found


def applied(server: ApiServer, folder: str) -> list[dict[str, Any]]:
    built = kubectl(server, "kustomize", str(ROOT / folder))
    assert built.returncode == 0, built.stderr
    objects = list(yaml.safe_load_all(built.stdout))
    done = kubectl(server, "apply", "--server-side", "-k", str(ROOT / folder))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(objects)
    return objects


def refusal(server: ApiServer, path: str) -> str:
    """What the API server says of a resource with this folder."""
    body = a_resource("default", model={"id": "m", "source": {"hostPath": {"path": path}}})
    try:
        client.CustomObjectsApi(server.api()).create_namespaced_custom_object(
            "splitinference.dev", "v1alpha1", "default", "splitinferences", body, dry_run="All"
        )
    except client.ApiException as error:
        return str(error.body)
    return ""


def test_the_overlay_can_be_applied_and_its_folders_are_those_of_operator_and_policy(empty: ApiServer):
    objects = applied(empty, "config/overlays/example")
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert container["image"].startswith("registry.example.com/")
    assert given["SPLITINFERENCE_SEGMENT_IMAGE"].startswith("registry.example.com/")
    assert given["SPLITINFERENCE_ALLOWED_HOST_PATHS"] == '["/var/lib/models"]'
    until(lambda: "allowedHostPaths" in refusal(empty, "/etc"), 60, "the policy is in force")
    assert refusal(empty, "/var/lib/models/m") == ""


def test_every_folder_that_the_pages_apply_is_there():
    for page in (ROOT / "docs/how-to").glob("*.md"):
        for word in page.read_text().split():
            path = word.rstrip(".,:;)`")
            if path.startswith("config/"):
                assert Path(ROOT, path).exists(), f"{page.name}: {path}"
