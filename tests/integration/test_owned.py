"""What a real API server makes of our objects is no difference to what was applied, so nothing is written at rest; and what is deleted is
made again."""

from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.manifests.disruption_budget import segments_budget
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.reconcile.upkeep.object_keeper import Keeper, difference
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.controller.manifests.built import a_profile
from tests.controller.manifests.test_pod_template import EVERYTHING, FULL
from tests.controller.objects import parsed
from tests.integration.conftest import a_resource


@pytest.fixture
def resource(cluster: KubeCluster, namespace: str) -> dict[str, Any]:
    template = {name: value for name, value in FULL.items() if name not in ("priorityClassName", "runtimeClassName")}
    both = {"segments": template, "gateway": template}
    cluster.create(a_resource(namespace, podTemplate=both, gateway={"replicas": 2}))
    found = cluster.split_inference(namespace, "chat")
    assert found is not None
    return dict(found)


def objects(resource: dict[str, Any]) -> list[Any]:
    resources = {"gateway_resources": EVERYTHING, "job_resources": EVERYTHING}
    builder = Manifests(Settings(network_policies=True, gateway_cpu_request="1000m", **resources))  # type: ignore[arg-type]
    segment = builder.segment(parsed(resource), a_profile(), Segment(start=0, end=4, node="a"), 1 << 20, 1)
    route = builder.route(parsed(resource), {"route.json": "{}"})
    return [*builder.gateway(parsed(resource), a_profile()), segment.service, segments_budget(parsed(resource), [segment.name]), route]


def test_what_the_server_stores_is_what_was_applied(cluster: KubeCluster, resource: dict[str, Any]):
    keeper, wanted = Keeper(), objects(resource)
    assert len(keeper.keep(cluster, wanted)) == len(wanted)
    for manifest in wanted:
        there = cluster.get(manifest["kind"], manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        assert there is not None
        assert difference(manifest, there) == ""
    assert keeper.keep(cluster, wanted) == ()


def test_what_is_deleted_is_found_and_made_again(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    keeper, wanted = Keeper(), objects(resource)
    keeper.keep(cluster, wanted)
    for manifest in wanted:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        cluster.delete(kind, namespace, name)
        assert keeper.keep(cluster, wanted) == (f"{kind} {name} was missing and is created again",)


def test_pods_with_all_of_a_template_are_taken(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    segment = Manifests(Settings()).segment(parsed(resource), a_profile(), Segment(start=0, end=4, node="a"), 1 << 20, 1)
    cluster.create(segment.pod)
    (pod,) = cluster.owned("Pod", namespace, "chat")
    assert FULL["labels"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["securityContext"]["seLinuxOptions"] == {"level": "s0:c26,c5"}


def test_the_newest_warning_about_a_pod_is_read(cluster: KubeCluster, api: client.ApiClient, namespace: str):
    assert cluster.pod_warning(namespace, "uid-1") == ""
    core = client.CoreV1Api(api)
    about = {"kind": "Pod", "namespace": namespace, "name": "p", "uid": "uid-1"}
    for name, kind, at, reason in (
        ("a", "Warning", "2026-01-01T00:00:00Z", "FailedMount"),
        ("b", "Warning", "2026-01-01T00:05:00Z", "FailedAttachVolume"),
        ("c", "Normal", "2026-01-01T00:06:00Z", "Scheduled"),
    ):
        event = {
            "metadata": {"name": name},
            "involvedObject": about,
            "type": kind,
            "reason": reason,
            "message": "words",
            "lastTimestamp": at,
        }
        core.create_namespaced_event(namespace, event)
    assert cluster.pod_warning(namespace, "uid-1") == "FailedAttachVolume: words"
