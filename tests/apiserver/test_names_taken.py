"""Objects that the operator did not create, on a real API server: none is changed, adopted or deleted, whatever its labels say."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster, api_path, api_version
from splitinference.adapters.kubernetes.cluster import WatchedCluster
from splitinference.controller.manifests.pod_parts import metadata
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.ports import NameTakenError, UnavailableError
from splitinference.controller.trust.ownership import owner_uid
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.controller.manifests.built import a_profile
from tests.controller.objects import parsed
from tests.integration.conftest import a_resource

BUILDER = Manifests(Settings(network_policies=True))
KINDS = ("Service", "ConfigMap", "Deployment", "Role", "RoleBinding", "ServiceAccount", "NetworkPolicy", "Secret", "Pod")


@pytest.fixture(params=["asked", "watched"])
def cluster(request: pytest.FixtureRequest, api: client.ApiClient) -> Iterator[KubeCluster]:
    if request.param == "asked":
        yield KubeCluster(api, 5.0)
        return
    watched = WatchedCluster(api, 5.0, (), lambda key, transition, reason: None, lambda method: None)
    yield watched
    watched.stop()


@pytest.fixture
def resource(cluster: KubeCluster, namespace: str) -> dict[str, Any]:
    cluster.create(a_resource(namespace))
    found = cluster.split_inference(namespace, "chat")
    assert found is not None
    return dict(found)


def wanted(resource: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One object of every kind that the operator makes."""
    read = parsed(resource)
    made = BUILDER.segment(read, a_profile(), Segment(start=0, end=32, node="nowhere"), 2**28, 2**20)
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(read, "chat-gateway-tls", "gateway"),
        "data": {"tls.key": "b3Vycw=="},
    }
    all_of_them = [*BUILDER.gateway(read, a_profile()), BUILDER.route(read, {"route.json": "{}"}), dict(made.pod), secret]
    return {str(manifest["kind"]): dict(manifest) for manifest in all_of_them}


def as_it_is(api: client.ApiClient, manifest: dict[str, Any]) -> dict[str, Any]:
    about = manifest["metadata"]
    path = api_path(manifest["kind"], about["namespace"], about["name"])
    found: dict[str, Any] = api.call_api(path, "GET", auth_settings=["BearerToken"], response_type="object", _return_http_data_only=True)
    return found


def put(api: client.ApiClient, manifest: dict[str, Any]) -> dict[str, Any]:
    """Created by somebody else."""
    path = api_path(manifest["kind"], manifest["metadata"]["namespace"])
    body = {"apiVersion": api_version(manifest["kind"]), **manifest}
    found: dict[str, Any] = api.call_api(
        path, "POST", body=body, auth_settings=["BearerToken"], response_type="object", _return_http_data_only=True
    )
    return found


def without_owner(manifest: dict[str, Any]) -> dict[str, Any]:
    made = copy.deepcopy(manifest)
    del made["metadata"]["ownerReferences"]
    return made


def owned_by(manifest: dict[str, Any], **owner: Any) -> dict[str, Any]:
    made = copy.deepcopy(manifest)
    made["metadata"]["ownerReferences"][0].update(owner, blockOwnerDeletion=False)
    return made


def write(cluster: KubeCluster, manifest: dict[str, Any]) -> None:
    if manifest["kind"] == "Pod":
        cluster.create(manifest)
    else:
        cluster.apply(manifest)


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_without_our_owner_stays_as_it_is(cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], kind: str):
    manifest = wanted(resource)[kind]
    before = put(api, without_owner(manifest))
    with pytest.raises(NameTakenError, match=f"{kind} {manifest['metadata']['name']} in namespace .* exists and this SplitInference"):
        write(cluster, manifest)
    if kind != "Secret":
        cluster.delete(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
    assert as_it_is(api, manifest) == before


@pytest.mark.parametrize("kind", KINDS)
def test_another_resources_object_stays_as_it_is(cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], kind: str):
    manifest = wanted(resource)[kind]
    before = put(api, owned_by(manifest, name="other", uid="00000000-0000-0000-0000-000000000001"))
    with pytest.raises(NameTakenError, match="exists and this SplitInference"):
        write(cluster, manifest)
    assert as_it_is(api, manifest) == before


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("Secret", "Pod")])
def test_what_an_earlier_resource_of_the_name_left_is_not_taken_over(
    cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], kind: str
):
    manifest = wanted(resource)[kind]
    before = put(api, owned_by(manifest, uid="00000000-0000-0000-0000-000000000001"))
    with pytest.raises(NameTakenError, match="belongs to an earlier SplitInference"):
        write(cluster, manifest)
    assert as_it_is(api, manifest) == before


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_is_made_and_changed(cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], kind: str):
    manifest = wanted(resource)[kind]
    write(cluster, manifest)
    assert owner_uid(as_it_is(api, manifest)) == resource["metadata"]["uid"]
    if kind == "Secret":
        write(cluster, {**manifest, "data": {"tls.key": "bmV3"}})
        assert as_it_is(api, manifest)["data"] == {"tls.key": "bmV3"}
    elif kind != "Pod":
        changed = copy.deepcopy(manifest)
        changed["metadata"]["labels"]["new"] = "1"
        write(cluster, changed)
        assert as_it_is(api, manifest)["metadata"]["labels"]["new"] == "1"
        write(cluster, manifest)
        assert "new" not in as_it_is(api, manifest)["metadata"]["labels"], "what is not said any more goes"


def test_what_was_seen_and_replaced_since_is_neither_applied_to_nor_deleted(
    cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    manifest = wanted(resource)["Service"]
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    cluster.apply(manifest)
    ours = cluster.get("Service", namespace, name)
    client.CoreV1Api(api).delete_namespaced_service(name, namespace)
    before = put(api, without_owner(manifest))
    monkeypatch.setattr(cluster, "get", lambda *_: ours)  # a watch that is behind
    with pytest.raises(UnavailableError):
        cluster.apply(manifest)
    cluster.delete("Service", namespace, name)
    assert as_it_is(api, manifest) == before


def test_a_manifest_without_an_owner_is_a_mistake_of_ours(cluster: KubeCluster, resource: dict[str, Any]):
    with pytest.raises(ValueError, match="has no SplitInference as its controller"):
        cluster.apply(without_owner(wanted(resource)["Service"]))


def test_a_status_that_was_written_since_is_not_overwritten(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    read = resource["metadata"]["resourceVersion"]
    written = cluster.patch_status(namespace, "chat", {"latency": "1s"}, read)
    assert written != read
    with pytest.raises(UnavailableError, match="changed meanwhile"):
        cluster.patch_status(namespace, "chat", {"latency": "2s"}, read)
    assert cluster.patch_status(namespace, "chat", {"latency": "3s"}, written) != written
    found = cluster.split_inference(namespace, "chat")
    assert found is not None
    assert found["status"]["latency"] == "3s"
