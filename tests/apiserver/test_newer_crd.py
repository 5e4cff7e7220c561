"""What a real API server fills in of a newer CRD is what the operator leaves out. The newer CRD has a group of its own here."""

from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.cli.bench.control.control_plane import until
from splitinference.controller.api.newer_fields import spec_schema, without_newer_defaults
from tests.chart.rendered import ROOT
from tests.controller.test_newer_fields import newer_crd

GROUP = "newer.example.com"
SAMPLES = sorted(path for path in (ROOT / "config/samples").glob("*.yaml"))


@pytest.fixture(scope="module")
def newer(server: Any) -> dict[str, Any]:
    crd = newer_crd()
    crd["metadata"]["name"] = f"splitinferences.{GROUP}"
    crd["spec"]["group"] = GROUP
    crd["spec"]["names"] = {key: value for key, value in crd["spec"]["names"].items() if key not in ("shortNames", "categories")}
    extensions = client.ApiextensionsV1Api(server.api())
    extensions.create_custom_resource_definition(crd)

    def established() -> bool:
        conditions = extensions.read_custom_resource_definition(crd["metadata"]["name"]).status.conditions or []
        return any(c.type == "Established" and c.status == "True" for c in conditions)

    until(established, 60, "the CRD is established")
    return crd


def filled(api: client.ApiClient, namespace: str, group: str, body: dict[str, Any]) -> dict[str, Any]:
    """The specification as the API server has it."""
    words = (group, "v1alpha1", namespace, "splitinferences")
    made = {**body, "apiVersion": f"{group}/v1alpha1", "metadata": {"name": body["metadata"]["name"]}}
    found: dict[str, Any] = client.CustomObjectsApi(api).create_namespaced_custom_object(*words, made, dry_run="All")["spec"]
    return found


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_what_is_left_is_what_the_crd_of_this_version_would_have_made(newer, sample, api: client.ApiClient, namespace: str):
    for body in yaml.safe_load_all(sample.read_text("utf-8")):
        if body["kind"] != "SplitInference":
            continue
        found, wanted = (filled(api, namespace, group, body) for group in (GROUP, "splitinference.dev"))
        assert found != wanted
        assert without_newer_defaults(found, spec_schema(newer)) == wanted
