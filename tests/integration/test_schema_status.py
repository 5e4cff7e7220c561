"""The status, the columns and the descriptions of the resource's schema, by a real API server."""

from typing import Any

import yaml
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from tests.integration.conftest import ROOT, a_resource

STATUS = {
    "observedGeneration": 1,
    "conditions": [{"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    "replicas": 1,
    "segments": "2/3",
    "nodes": "a,b,c",
    "predicted": "1.9s",
    "cost": "2.4/h",
    "scaling": {"pipelines": 2},
    "latency": "2.1s",
    "decisions": [{"time": "2026-01-01T00:00:00Z", "reason": "NodeBusy", "message": "m", "transition": "migrate"}],
}


def test_columns_show_what_the_status_has(cluster: KubeCluster, api: client.ApiClient, namespace: str):
    cluster.create(a_resource(namespace))
    for _ in range(5):  # an operator may be running that writes what it thinks of this
        cluster.patch_status(namespace, "chat", STATUS)
        table = api.call_api(
            f"/apis/splitinference.dev/v1alpha1/namespaces/{namespace}/splitinferences",
            "GET",
            header_params={"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"},
            auth_settings=["BearerToken"],
            response_type="object",
            _return_http_data_only=True,
        )
        names = [column["name"] for column in table["columnDefinitions"]]
        cells = dict(zip(names, table["rows"][0]["cells"], strict=True))
        if cells["Segments"] == "2/3":
            break
    shown = ["Ready", "Pipelines", "Asked", "Wanted", "Segments", "Nodes", "Predicted", "Goal", "Cost", "Observed", "Decision"]
    assert names == ["Name", *shown, "Age"]
    assert [cells[name] for name in shown] == ["True", 1, 1, 2, "2/3", "a,b,c", "1.9s", "latency", "2.4/h", "2.1s", "NodeBusy"]


def test_status_and_spec_are_written_apart(cluster: KubeCluster, namespace: str):
    cluster.create({**a_resource(namespace), "status": {"segments": "9/9"}})
    created = cluster.split_inference(namespace, "chat")
    assert created is not None
    assert (created.get("status") or {}).get("segments") != "9/9"
    cluster.patch_status(namespace, "chat", {"latency": "2.1s"})
    written = cluster.split_inference(namespace, "chat")
    assert written is not None
    assert written["metadata"]["generation"] == 1


def test_the_schema_explains_every_field():
    crd = yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    silent = [path for path, schema in fields("spec", spec) if not schema.get("description")]
    # What is the same in every pod is explained by Kubernetes.
    of_pods = (".tolerations.", ".dnsConfig.", ".env.", ".securityContext.")
    assert [path for path in silent if not any(part in path for part in of_pods) and not path.endswith(".node")] == []


def fields(path: str, schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = [(path, schema)]
    for name, part in {**schema.get("properties", {}), **schema.get("items", {}).get("properties", {})}.items():
        found += fields(f"{path}.{name}", part)
    return found
