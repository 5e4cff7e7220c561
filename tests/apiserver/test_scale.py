"""The scale subresource on a real API server: what `kubectl scale` and autoscalers read and write."""

from typing import Any

import pytest
from kubernetes import client

from tests.integration.conftest import a_resource

RESOURCE = ("splitinference.dev", "v1alpha1")


def scale(api: client.ApiClient, namespace: str, replicas: int | None = None) -> dict[str, Any]:
    """The scale of the resource chat; with so many replicas from now on."""
    custom = client.CustomObjectsApi(api)
    where = (*RESOURCE, namespace, "splitinferences", "chat")
    if replicas is not None:
        found: dict[str, Any] = custom.patch_namespaced_custom_object_scale(*where, {"spec": {"replicas": replicas}})
        return found
    return dict(custom.get_namespaced_custom_object_scale(*where))


def put(api: client.ApiClient, namespace: str, **spec: Any) -> None:
    custom = client.CustomObjectsApi(api)
    custom.create_namespaced_custom_object(*RESOURCE, namespace, "splitinferences", a_resource(namespace, **spec))


def test_a_resource_that_does_not_ask_has_one_pipeline(api: client.ApiClient, namespace: str):
    put(api, namespace)
    assert scale(api, namespace)["spec"] == {"replicas": 1}
    assert scale(api, namespace)["status"]["replicas"] == 0


def test_scaling_writes_the_specification_and_the_status_is_shown(api: client.ApiClient, namespace: str):
    put(api, namespace)
    scale(api, namespace, 3)
    custom = client.CustomObjectsApi(api)
    found = custom.get_namespaced_custom_object(*RESOURCE, namespace, "splitinferences", "chat")
    assert (found["spec"]["replicas"], found["metadata"]["generation"]) == (3, 2)
    selector = "app.kubernetes.io/instance=chat,splitinference.dev/segment in (chat-0-2-a,chat-0-4-b)"
    pipelines = [{"number": 0, "nodes": "a,b", "segments": "2/2", "serves": True}]
    status = {"status": {"replicas": 2, "selector": selector, "pipelines": pipelines}}
    custom.patch_namespaced_custom_object_status(*RESOURCE, namespace, "splitinferences", "chat", status)
    shown = scale(api, namespace)
    assert (shown["spec"]["replicas"], shown["status"]) == (3, {"replicas": 2, "selector": selector})


@pytest.mark.parametrize(
    ("replicas", "spec", "sentence"),
    [
        (0, {}, "spec.replicas in body should be greater than or equal to 1"),
        (17, {}, "spec.replicas in body should be less than or equal to 16"),
        (2, {"partition": {"pins": [{"layers": "first", "node": "a"}]}}, "spec.replicas must be 1 with spec.partition.pins"),
        (2, {"partition": {"minSegments": 2}, "placement": {"maxNodes": 3}}, "spec.replicas times spec.partition.minSegments"),
    ],
)
def test_what_cannot_be_is_refused_to_kubectl_scale(
    api: client.ApiClient, namespace: str, replicas: int, spec: dict[str, Any], sentence: str
):
    put(api, namespace, **spec)
    with pytest.raises(client.ApiException) as refused:
        scale(api, namespace, replicas)
    assert sentence in str(refused.value.body)
    assert scale(api, namespace)["spec"] == {"replicas": 1}
