"""Secrets with certificates against a real API server: with the rights to create and patch alone, and without reading one."""

import base64
from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.clock import SystemClock
from splitinference.adapters.kubernetes.client import KubeCluster, connect
from splitinference.adapters.peers.certificates import CertificateAuthority, RootSecret
from splitinference.controller.identity import owner_of_body
from splitinference.controller.ports import NameTakenError, RefusedError
from splitinference.controller.reconcile.upkeep.credentials import secrets
from tests.controller.objects import parsed
from tests.integration.conftest import a_resource


class Listening(KubeCluster):
    """Keeps what the server answered."""

    answers: list[Any]

    def _call(self, method: str, path: str, **how: Any) -> Any:
        answer = super()._call(method, path, **how)
        self.answers.append(answer)
        return answer


@pytest.fixture
def writer(kubeconfig: str, api: client.ApiClient, namespace: str) -> Listening:
    """Somebody who may create and patch Secrets, and nothing else."""
    rbac, user = client.RbacAuthorizationV1Api(api), f"writer-{namespace}"
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "patch"]}
    rbac.create_namespaced_role(namespace, {"metadata": {"name": "writer"}, "rules": [rule]})
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "writer"}
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": "writer"}, "roleRef": reference, "subjects": [subject]})
    limited = connect(kubeconfig)
    limited.set_default_header("Impersonate-User", user)
    cluster = Listening(limited, 5.0)
    cluster.answers = []
    return cluster


@pytest.fixture
def resource(cluster: KubeCluster, namespace: str) -> dict[str, Any]:
    cluster.create(a_resource(namespace))
    found = cluster.split_inference(namespace, "chat")
    assert found is not None
    return dict(found)


def authority(cluster: KubeCluster, namespace: str) -> CertificateAuthority:
    return CertificateAuthority(RootSecret(cluster, namespace, "root", SystemClock()), "cluster.local")


def version(cluster: KubeCluster, namespace: str, name: str = "chat-segment-tls") -> str:
    found = cluster.get("Secret", namespace, name)
    assert found is not None
    return str(found["metadata"]["resourceVersion"])


def test_they_are_made_kept_renewed_and_made_again_by_who_may_not_read_them(
    cluster: KubeCluster, writer: Listening, resource: dict[str, Any], namespace: str
):
    made = authority(cluster, namespace)
    manifests = secrets(owner_of_body(resource), made, datetime.now(UTC))
    for manifest in manifests:
        writer.apply_unread(manifest)
    first = cluster.get("Secret", namespace, "chat-segment-tls")
    assert first is not None
    assert first["data"] == manifests[0]["data"]
    versions = []
    for _ in range(2):  # the first one makes the server note that it is applied from now on
        for manifest in manifests:
            writer.apply_unread(manifest)
        versions.append(version(cluster, namespace))
    assert versions[0] == versions[1], "the same content is no change"
    made.forget(namespace, "chat")
    renewed = secrets(owner_of_body(resource), made, datetime.now(UTC))
    for manifest in renewed:
        writer.apply_unread(manifest)
    changed = cluster.get("Secret", namespace, "chat-segment-tls")
    assert changed is not None
    assert changed["data"]["tls.crt"] != first["data"]["tls.crt"]
    assert changed["data"]["ca.crt"] == first["data"]["ca.crt"]
    client.CoreV1Api(cluster._api).delete_namespaced_secret("chat-segment-tls", namespace)
    for manifest in renewed:
        writer.apply_unread(manifest)
    again = cluster.get("Secret", namespace, "chat-segment-tls")
    assert again is not None
    assert again["data"] == changed["data"]
    with pytest.raises(RefusedError, match="forbidden"):
        writer.get("Secret", namespace, "chat-segment-tls")
    assert writer.answers
    assert not any("data" in answer for answer in writer.answers)


@pytest.mark.parametrize("owned", [False, True])
def test_a_secret_of_somebody_else_is_neither_changed_nor_adopted(
    cluster: KubeCluster, writer: Listening, resource: dict[str, Any], namespace: str, owned: bool
):
    labels = {"app.kubernetes.io/managed-by": "splitinference", "app.kubernetes.io/instance": "chat"}
    core = client.CoreV1Api(cluster._api)
    theirs = core.create_namespaced_config_map(namespace, {"metadata": {"name": "x"}})  # an owner that is not there takes its objects along
    owners = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": theirs.metadata.uid}] if owned else None
    metadata = {"name": "chat-gateway-tls", "labels": labels, "ownerReferences": owners}
    content = {"tls.key": base64.b64encode(b"theirs").decode()}
    core.create_namespaced_secret(namespace, {"metadata": metadata, "data": content})
    before = version(cluster, namespace, "chat-gateway-tls")
    _, gateway = secrets(owner_of_body(resource), authority(cluster, namespace), datetime.now(UTC))
    with pytest.raises(NameTakenError, match="Secret chat-gateway-tls in namespace"):
        writer.apply_unread(gateway)
    assert version(cluster, namespace, "chat-gateway-tls") == before
    assert not any("data" in answer for answer in writer.answers)


def test_two_replicas_use_one_root_key(cluster: KubeCluster, namespace: str):
    one, two = (RootSecret(cluster, namespace, "root", SystemClock()) for _ in range(2))
    two._cluster.create(two._made(one.roots()))
    assert one.roots() == two.roots()


def test_network_policies_are_taken_by_the_server(cluster: KubeCluster, resource: dict[str, Any], namespace: str):
    from splitinference.controller.manifests.segment import Manifests
    from splitinference.settings import Settings
    from tests.controller.manifests.built import a_profile

    selector = {"matchExpressions": [{"key": "team", "operator": "In", "values": ["watch"]}]}
    settings = Settings(monitoring_namespace_selector=selector)  # type: ignore[arg-type]
    made = [obj for obj in Manifests(settings).gateway(parsed(resource), a_profile()) if obj["kind"] == "NetworkPolicy"]
    for obj in made:
        cluster.apply(obj)
    found = cluster.get("NetworkPolicy", namespace, "chat-segments")
    assert found is not None
    assert found["spec"]["ingress"][1]["from"] == [{"namespaceSelector": selector}]
