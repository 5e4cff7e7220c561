"""The chart on a real API server, by helm itself: installed, upgraded, rolled back, and after a chart that had the CRD in `crds/`."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.cli.bench.control.control_plane import NotStartedError
from tests.apiserver.api_server import ApiServer, api_server, programs
from tests.apiserver.installed.test_examples_of_values import kubectl
from tests.chart.helm import helm
from tests.chart.rendered import CHART, ROOT
from tests.waiting import until

CRD = "splitinferences.splitinference.dev"


@pytest.fixture
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server without our CRD."""
    try:
        programs()
    except NotStartedError as error:
        pytest.skip(str(error))
    with api_server(tmp_path_factory.mktemp("empty")) as found:
        yield found


def run(server: ApiServer, *words: str) -> subprocess.CompletedProcess[str]:
    command = [helm(), "--kubeconfig", server.kubeconfig(), "--namespace", "ops", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def done(server: ApiServer, *words: str) -> str:
    found = run(server, *words)
    assert found.returncode == 0, found.stderr
    return found.stdout


def crd(server: ApiServer) -> dict[str, Any]:
    api = server.api()
    return api.sanitize_for_serialization(client.ApiextensionsV1Api(api).read_custom_resource_definition(CRD))


def fields(found: dict[str, Any]) -> set[str]:
    return set(found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])


def a_resource(server: ApiServer) -> client.CustomObjectsApi:
    """One SplitInference, to see whether it survives."""
    api = client.CustomObjectsApi(server.api())
    body = {
        "apiVersion": "splitinference.dev/v1alpha1",
        "kind": "SplitInference",
        "metadata": {"name": "chat", "namespace": "ops"},
        "spec": {"model": {"id": "m", "source": {"huggingFace": {"repository": "owner/model"}}}},
    }

    def made() -> bool:
        try:
            api.create_namespaced_custom_object("splitinference.dev", "v1alpha1", "ops", "splitinferences", body)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False
        return True

    until(made, 30, "the CRD is established")
    return api


def kept(api: client.CustomObjectsApi) -> bool:
    return bool(api.get_namespaced_custom_object("splitinference.dev", "v1alpha1", "ops", "splitinferences", "chat"))


def an_older_chart(folder: Path, in_crds: bool) -> Path:
    """The chart with a CRD that lacks a field: in `crds/`, as charts had it before, or where it is now."""
    chart = folder / "older"
    shutil.copytree(CHART, chart)
    found = yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    del found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["verification"]
    spec = found["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["x-kubernetes-validations"] = [r for r in spec["x-kubernetes-validations"] if "verification" not in r["rule"]]
    if in_crds:
        (chart / "crds").mkdir()
        (chart / "crds" / "splitinference.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
        (chart / "templates" / "crd.yaml").unlink()
    else:
        (chart / "files" / "crd.yaml").write_text(yaml.safe_dump(found, sort_keys=False))
    return chart


def test_an_upgrade_brings_the_crd_and_a_rollback_takes_it_back(empty: ApiServer, tmp_path: Path):
    done(empty, "install", "si", str(an_older_chart(tmp_path, in_crds=False)), "--create-namespace")
    api = a_resource(empty)
    assert "verification" not in fields(crd(empty))
    done(empty, "upgrade", "si", str(CHART))
    assert "verification" in fields(crd(empty))
    done(empty, "rollback", "si", "1")
    assert "verification" not in fields(crd(empty))
    assert kept(api)
    done(empty, "upgrade", "si", str(CHART), "--reuse-values")
    done(empty, "uninstall", "si")
    assert kept(api), "the resource policy keeps the CRD, and with it every resource"
    done(empty, "install", "si", str(CHART))
    assert kept(api)


def test_a_crd_that_an_older_chart_installed_from_its_crds_folder_is_taken_over(empty: ApiServer, tmp_path: Path):
    done(empty, "install", "si", str(an_older_chart(tmp_path, in_crds=True)), "--create-namespace")
    api = a_resource(empty)
    refused = run(empty, "upgrade", "si", str(CHART))
    assert refused.returncode != 0, "helm does not take over silently what it does not own"
    assert CRD in refused.stderr
    assert "verification" not in fields(crd(empty))
    done(empty, "upgrade", "si", str(CHART), "--take-ownership")
    assert "verification" in fields(crd(empty))
    assert crd(empty)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    done(empty, "upgrade", "si", str(CHART))
    done(empty, "rollback", "si", "1")
    assert kept(api), "going back to the older chart leaves the CRD alone"
    assert "verification" in fields(crd(empty))


def test_an_older_crd_that_kubectl_applied_is_taken_over(empty: ApiServer, tmp_path: Path):
    """As the documentation of charts before this one asked for. Helm 4 applies on the server, where kubectl owns the fields."""
    older = an_older_chart(tmp_path, in_crds=True) / "crds" / "splitinference.yaml"
    applied = kubectl(empty, "apply", "--server-side", "-f", str(older))
    assert applied.returncode == 0, applied.stderr
    client.CoreV1Api(empty.api()).create_namespace({"metadata": {"name": "ops"}})
    force = ["--force-conflicts"] if "--force-conflicts" in done(empty, "install", "--help") else []
    done(empty, "install", "si", str(CHART), "--take-ownership", *force)
    assert crd(empty)["metadata"]["annotations"]["meta.helm.sh/release-name"] == "si"
    assert "verification" in fields(crd(empty))


def test_a_second_release_leaves_the_crd_to_the_first(empty: ApiServer):
    done(empty, "install", "one", str(CHART), "--create-namespace")
    again = run(empty, "install", "two", str(CHART), "--set", "operatorClass=two,identity.rootKeySecret=two")
    assert again.returncode != 0
    assert CRD in again.stderr
    done(empty, "install", "two", str(CHART), "--set", "crds.install=false,operatorClass=two,identity.rootKeySecret=two")
    assert crd(empty)["metadata"]["annotations"]["meta.helm.sh/release-name"] == "one"


def test_without_keep_the_crd_goes_with_the_release(empty: ApiServer):
    done(empty, "install", "si", str(CHART), "--create-namespace", "--set", "crds.keep=false")
    assert "helm.sh/resource-policy" not in crd(empty)["metadata"]["annotations"]
    done(empty, "uninstall", "si")

    def gone() -> bool:
        try:
            return "deletionTimestamp" in crd(empty)["metadata"]
        except client.ApiException as error:
            return error.status == 404

    until(gone, 30, "the CRD is gone")
