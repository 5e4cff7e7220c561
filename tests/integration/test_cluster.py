"""The adapter of the API server, against a real one: what may run twice runs twice, and what is refused is said."""

from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.adapters.kubernetes.cluster import WatchedCluster
from splitinference.controller.cluster_state.pods import node_of, requested_bytes
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.controller.manifests.built import a_profile
from tests.controller.objects import parsed
from tests.integration.conftest import a_resource, delete_resource
from tests.waiting import until

BUILDER = Manifests(Settings(network_policies=True))


@pytest.fixture(params=["asked", "watched"])
def cluster(request: pytest.FixtureRequest, api: client.ApiClient) -> Iterator[KubeCluster]:
    """Both ways to read: whoever asks each time and whoever keeps a watch see the same."""
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


def names(cluster: KubeCluster, kind: str, namespace: str) -> set[str]:
    return {obj["metadata"]["name"] for obj in cluster.owned(kind, namespace, "chat")}


def test_all_objects_are_taken_twice_by_the_server(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    made = BUILDER.segment(parsed(resource), a_profile(), Segment(start=0, end=32, node="nowhere"), 2**28, 2**20)
    for _ in range(2):
        cluster.create(made.pod)
        cluster.apply(made.service)
        cluster.apply(BUILDER.route(parsed(resource), {"route.json": "{}"}))
        for obj in BUILDER.gateway(parsed(resource), a_profile()):
            cluster.apply(obj)
    assert made.name in names(cluster, "Pod", namespace)
    assert names(cluster, "Service", namespace) == {made.name, "chat-gateway"}
    assert names(cluster, "Deployment", namespace) == {"chat-gateway"}
    assert "chat-route" in names(cluster, "ConfigMap", namespace)
    assert made.name in {pod["metadata"]["name"] for pod in cluster.pods()}
    for _ in range(2):
        cluster.delete("Service", namespace, made.name)
        cluster.delete("Pod", namespace, made.name)
    assert names(cluster, "Service", namespace) == {"chat-gateway"}


def test_objects_know_what_they_are(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    cluster.apply(BUILDER.route(parsed(resource), {}))
    assert {obj["kind"] for obj in cluster.owned("ConfigMap", namespace, "chat")} == {"ConfigMap"}
    found = [obj for obj in cluster.split_inferences() if obj["metadata"]["namespace"] == namespace]
    assert [(obj["kind"], obj["apiVersion"]) for obj in found] == [("SplitInference", "splitinference.dev/v1alpha1")]


def test_applying_again_changes_what_is_different_and_keeps_what_others_wrote(
    cluster: KubeCluster, resource: dict[str, Any], namespace: str
):
    cluster.apply(BUILDER.route(parsed(resource), {"route.json": "1"}))
    before = cluster.get("ConfigMap", namespace, "chat-route")
    cluster.apply(BUILDER.route(parsed(resource), {"route.json": "1"}))
    same = cluster.get("ConfigMap", namespace, "chat-route")
    assert before is not None
    assert same is not None
    assert before["metadata"]["resourceVersion"] == same["metadata"]["resourceVersion"], "what is as it should be is not written"
    cluster.apply(BUILDER.route(parsed(resource), {"route.json": "2", "history.json": "[]"}))
    changed = cluster.get("ConfigMap", namespace, "chat-route")
    assert changed is not None
    assert changed["data"] == {"route.json": "2", "history.json": "[]"}
    cluster.apply(BUILDER.route(parsed(resource), {"route.json": "2"}))
    removed = cluster.get("ConfigMap", namespace, "chat-route")
    assert removed is not None
    assert removed["data"] == {"route.json": "2"}, "a key that is no longer said goes"


def test_a_writer_sees_its_own_status_at_once(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    for count in range(5):
        cluster.patch_status(namespace, "chat", {"adaptation": {"count": count}})
        (found,) = [obj for obj in cluster.split_inferences() if obj["metadata"]["namespace"] == namespace]
        assert found["status"]["adaptation"]["count"] == count
    cluster.patch_status(namespace, "chat", {"adaptation": None})
    cleared = cluster.split_inference(namespace, "chat")
    assert cleared is not None
    assert "adaptation" not in (cleared.get("status") or {})


def test_what_is_gone_needs_no_status_and_no_deletion(cluster: KubeCluster, namespace: str):
    cluster.patch_status(namespace, "nobody", {"segments": "1/1"})
    cluster.delete("Pod", namespace, "nobody")
    assert cluster.get("ConfigMap", namespace, "nobody") is None
    assert cluster.split_inference(namespace, "nobody") is None
    assert cluster.pod_log(namespace, "nobody", "profile") == ""


def test_the_same_event_is_written_once(cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], namespace: str):
    for _ in range(2):
        cluster.event(resource, "Normal", "Tested", "the same words")
    cluster.event(resource, "Warning", "Tested", "other words")
    events = [e for e in client.CoreV1Api(api).list_namespaced_event(namespace).items if e.reason == "Tested"]
    assert sorted(event.message for event in events) == ["other words", "the same words"]
    assert {event.involved_object.uid for event in events} == {resource["metadata"]["uid"]}


def test_an_event_that_cannot_be_written_is_no_error(cluster: KubeCluster, resource: dict[str, Any]):
    elsewhere = {**resource, "metadata": {**resource["metadata"], "namespace": "no-such-namespace"}}
    cluster.event(elsewhere, "Normal", "Tested", "nowhere to go")


def test_what_the_server_will_not_take_is_refused_in_its_words(cluster: KubeCluster, resource: dict[str, Any]):
    pod = BUILDER.segment(parsed(resource), a_profile(), Segment(start=0, end=32, node="n"), 1, 1).pod
    with pytest.raises(RefusedError, match=r"spec\.containers"):
        cluster.create({**pod, "spec": {**pod["spec"], "containers": []}})
    with pytest.raises(RefusedError):
        cluster.apply({**BUILDER.route(parsed(resource), {}), "data": {"not a key!": ""}})


def test_pods_are_admitted_where_only_restricted_ones_are(
    cluster: KubeCluster, api: client.ApiClient, resource: dict[str, Any], namespace: str
):
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    client.CoreV1Api(api).patch_namespace(namespace, label)
    hub = {"id": "m", "source": {"huggingFace": {"repository": "owner/model"}}}
    ours = {**resource, "spec": {**resource["spec"], "model": {**resource["spec"]["model"], **hub}}}
    cluster.create(BUILDER.segment(parsed(ours), a_profile(), Segment(start=0, end=32, node="n"), 2**28, 1).pod)
    folder = BUILDER.segment(parsed(resource), a_profile(), Segment(start=0, end=31, node="n"), 2**28, 1).pod
    with pytest.raises(RefusedError, match="hostPath"):
        cluster.create(folder)


def test_a_watch_sees_what_others_do_and_asks_for_nothing_at_rest(api: client.ApiClient, namespace: str):
    calls: list[str] = []
    watched = WatchedCluster(api, 5.0, (namespace,), lambda key, transition, reason: None, calls.append)
    other = KubeCluster(api, 5.0)
    try:
        other.create(a_resource(namespace))
        (found,) = watched.split_inferences()
        assert watched.split_inferences()[0] is found, "the same objects while nothing changed"
        asked = []
        for _ in range(3):  # the first time the watches begin; whatever an operator that runs there makes of the resource meanwhile
            assert watched.nodes()
            watched.pods()
            watched.owned("Pod", namespace, "chat")
            asked.append(len(calls))
        assert asked == [asked[0]] * 3
        other.patch_status(namespace, "chat", {"latency": "7ms"})
        pod = {
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tenant", "namespace": namespace, "annotations": {"long": "x" * 1000}},
            "spec": {"nodeName": "nowhere", "containers": [
                {"name": "c", "image": "none", "env": [{"name": "A", "value": "b"}], "resources": {"requests": {"memory": "70Mi"}}}]},
        }  # fmt: skip
        other.create(pod)
        until(lambda: (watched.split_inferences()[0].get("status") or {}).get("latency") == "7ms", 5, "the status of another")
        until(lambda: any(found["metadata"]["name"] == "tenant" for found in watched.pods()), 5, "the tenant's pod")
        tenant = next(found for found in watched.pods() if found["metadata"]["name"] == "tenant")
        assert (node_of(tenant), requested_bytes(tenant)) == ("nowhere", 70 * 2**20)
        assert "annotations" not in tenant["metadata"], "of other tenants' pods only what counts is kept"
        delete_resource(api, namespace)
        until(lambda: watched.split_inferences() == (), 5, "the resource is gone")
    finally:
        watched.stop()


def test_a_server_that_is_not_there_is_unavailable():
    configuration = client.Configuration(host="https://127.0.0.1:1")
    configuration.retries = False
    with pytest.raises(UnavailableError, match="did not answer"):
        KubeCluster(client.ApiClient(configuration), 1.0).nodes()
