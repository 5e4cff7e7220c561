"""A real API server: that of SPLITINFERENCE_TEST_KUBECONFIG, else the kind cluster of the end-to-end tests, started if need be."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster, connect
from tests.waiting import until

ROOT = Path(__file__).parents[2]


def answers(kubeconfig: Path) -> bool:
    if not kubeconfig.exists():
        return False
    try:
        client.VersionApi(connect(str(kubeconfig))).get_code(_request_timeout=3)
    except Exception:  # noqa: BLE001 - whatever it is: it does not answer
        return False
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here need the cluster, also one that forgets to say so: it would start a cluster among the tests that need none."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def kubeconfig() -> Iterator[str]:
    if given := os.environ.get("SPLITINFERENCE_TEST_KUBECONFIG"):
        yield given
        return
    from e2e.session import SETTINGS, session_cluster

    if answers(SETTINGS.kubeconfig):
        yield str(SETTINGS.kubeconfig)
        return
    with session_cluster() as made:
        made.up()
        yield str(SETTINGS.kubeconfig)


@pytest.fixture(scope="session")
def api(kubeconfig: str) -> client.ApiClient:
    """A client for a server that has our CRD."""
    found = connect(kubeconfig)
    crd = yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    extensions = client.ApiextensionsV1Api(found)
    name = crd["metadata"]["name"]
    try:
        extensions.patch_custom_resource_definition(name, crd)
    except client.ApiException as error:
        if error.status != 404:
            raise
        extensions.create_custom_resource_definition(crd)

    def established() -> bool:
        conditions = extensions.read_custom_resource_definition(name).status.conditions or []
        return any(c.type == "Established" and c.status == "True" for c in conditions)

    until(established, 10, "the CRD is established")
    return found


@pytest.fixture
def namespace(api: client.ApiClient) -> Iterator[str]:
    """A namespace of the test's own."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
    yield name
    client.CoreV1Api(api).delete_namespace(name)


@pytest.fixture
def cluster(api: client.ApiClient) -> KubeCluster:
    return KubeCluster(api, 5.0)


def a_spec(**changes: Any) -> dict[str, Any]:
    """The smallest spec, with changes by top-level field."""
    return {"model": {"id": "m", "source": {"hostPath": {"path": "/models/m"}}}, **changes}


def a_resource(namespace: str, name: str = "chat", **changes: Any) -> dict[str, Any]:
    return {
        "apiVersion": "splitinference.dev/v1alpha1",
        "kind": "SplitInference",
        "metadata": {"name": name, "namespace": namespace},
        "spec": a_spec(**changes),
    }


def delete_resource(api: client.ApiClient, namespace: str, name: str = "chat") -> None:
    client.CustomObjectsApi(api).delete_namespaced_custom_object("splitinference.dev", "v1alpha1", namespace, "splitinferences", name)
