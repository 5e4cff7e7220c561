"""`kubectl split` against a real API server: what is drawn, answers to offers, drains, and a user whose rights end somewhere."""

import json
import re
import shlex
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.cli.main import main
from splitinference.controller.manifests import profile_pod
from tests.adapters.test_profiler import CONFIG, TENSORS
from tests.controller.objects import parsed
from tests.integration.conftest import a_resource
from tests.view.test_view import a_pod, a_segment

PLAN = {"revision": "aaaaaaaaaa", "segments": [a_segment("chat-0-4", 0, 4, "n1"), a_segment("chat-4-8", 4, 8, "n2")], "optimal": True}
PROPOSAL = {**PLAN, "revision": "bbbbbbbbbb", "id": "bbbbbbbbbb-20260101T000000Z", "from": "aaaaaaaaaa", "message": "12 % better"}
PROPOSAL |= {"segments": [a_segment("chat-0-4", 0, 4, "n1"), a_segment("chat-4-8x", 4, 8, "n3")], "time": "2026-01-01T00:00:00Z"}


@pytest.fixture
def resource(cluster: KubeCluster, namespace: str) -> str:
    """A resource with a plan and an offer, as an operator would have written them."""
    cluster.create(a_resource(namespace, adaptation={"mode": "Advisory"}))
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    cluster.patch_status(namespace, "chat", {"plan": PLAN, "proposal": PROPOSAL, "segments": "2/2", "conditions": [ready]})
    return namespace


def test_the_api_server_keeps_the_offer_and_the_plugin_draws_it(resource: str, kubeconfig: str, capsys: pytest.CaptureFixture[str]):
    where = ["chat", "-n", resource, "--kubeconfig", kubeconfig]
    assert main(["status", *where]) == 0
    drawn = capsys.readouterr().out
    assert re.search(r"● layers 0:4 +█+·+  n1", drawn)
    assert "A better plan is proposed (bbbbbbbbbb): 12 % better" in drawn
    assert main(["diff", *where]) == 0
    assert "move    layers 4:8  n2 → n3" in capsys.readouterr().out
    assert main(["status", *where, "-o", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["items"][0]
    assert found["proposal"]["plan"]["revision"] == "bbbbbbbbbb"
    assert main(["status", *where, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["items"][0] == found
    for verb in ("explain", "history"):
        assert main([verb, *where, "-o", "json"]) == 0
        assert json.loads(capsys.readouterr().out)["items"][0]["name"] == "chat"


@pytest.mark.parametrize("verb", ["approve", "reject"])
def test_an_answer_is_an_annotation_with_the_offers_id(
    verb: str, resource: str, kubeconfig: str, cluster: KubeCluster, capsys: pytest.CaptureFixture[str]
):
    assert main([verb, "chat", "-n", resource, "--kubeconfig", kubeconfig, "--wait", "0"]) == 0
    body = cluster.split_inference(resource, "chat")
    assert body is not None
    assert body["metadata"]["annotations"] == {f"splitinference.dev/{verb}": PROPOSAL["id"]}
    assert body["metadata"]["generation"] == 1, "the spec is as it was"


def test_the_later_answer_counts(resource: str, kubeconfig: str, cluster: KubeCluster):
    for verb in ("approve", "reject"):
        assert main([verb, "chat", "-n", resource, "--kubeconfig", kubeconfig, "--wait", "0"]) == 0
    body = cluster.split_inference(resource, "chat")
    assert body is not None
    assert list(body["metadata"]["annotations"]) == ["splitinference.dev/reject"]


# --- rights ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def nobody(api: client.ApiClient, kubeconfig: str, namespace: str, tmp_path: Path) -> str:
    """The kubeconfig of a service account without any rights."""
    core = client.CoreV1Api(api)
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "nobody"}})
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("nobody", namespace, request).status.token
    content = yaml.safe_load(Path(kubeconfig).read_text())
    content["users"] = [{"name": user["name"], "user": {"token": token}} for user in content["users"]]
    path = tmp_path / "nobody"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def granted(api: client.ApiClient, commands: str) -> None:
    """What the printed kubectl commands do."""
    rbac = client.RbacAuthorizationV1Api(api)
    found = [shlex.split(line) for line in commands.splitlines() if line.strip().startswith("kubectl create")]
    assert len(found) == 2, commands
    for _, _, kind, name, *options in found:
        given = dict(option.split("=", 1) for option in options if "=" in option)
        namespace = options[options.index("-n") + 1]
        if kind == "role":
            resource, _, group = given["--resource"].partition(".")
            rule = {"apiGroups": [group], "resources": [resource], "verbs": given["--verb"].split(",")}
            rbac.create_namespaced_role(namespace, {"metadata": {"name": name}, "rules": [rule]})
        else:
            account, user = given["--serviceaccount"].split(":")
            subject = {"kind": "ServiceAccount", "namespace": account, "name": user}
            ref = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": given["--role"]}
            rbac.create_namespaced_role_binding(namespace, {"metadata": {"name": name}, "roleRef": ref, "subjects": [subject]})


def test_the_printed_commands_grant_what_is_missing(
    api: client.ApiClient, resource: str, nobody: str, cluster: KubeCluster, capsys: pytest.CaptureFixture[str]
):
    where = ["chat", "-n", resource, "--kubeconfig", nobody]
    for argv in (["status", *where], ["approve", *where, "--wait", "0"]):
        deadline = time.monotonic() + 60
        assert main(argv) == 1
        said = capsys.readouterr().err
        assert "You may not do this" in said
        assert "system:serviceaccount" in said
        granted(api, said)
        while main(argv) != 0:  # the authorizer's cache learns of it soon
            assert time.monotonic() < deadline, capsys.readouterr().err
            time.sleep(0.2)
        capsys.readouterr()
    body = cluster.split_inference(resource, "chat")
    assert body is not None
    assert "splitinference.dev/approve" in body["metadata"]["annotations"]


def test_doctor_lists_what_the_user_may_not(resource: str, nobody: str, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", "-n", resource, "--kubeconfig", nobody, "-o", "json"]) in (0, 1)
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["items"]}
    assert checks["Kubernetes"]["state"] == "ok"
    for right in ("see resources", "see pods", "read logs", "approve and reject", "drain"):
        assert checks[f"right to {right}"]["state"] == "warning"
    assert "--serviceaccount=" in checks["right to drain"]["fix"]


def test_doctor_finds_the_crd_whole(resource: str, kubeconfig: str, capsys: pytest.CaptureFixture[str]):
    main(["doctor", "-n", resource, "--kubeconfig", kubeconfig, "-o", "json"])
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["items"]}
    assert checks["CRD"]["state"] == "ok"
    assert checks["rights"]["state"] == "ok"
    assert checks["clock"]["state"] == "ok"


# --- drain -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def node(api: client.ApiClient) -> Iterator[str]:
    """A node of the test's own."""
    core, name = client.CoreV1Api(api), f"split-{uuid.uuid4().hex[:6]}"
    core.create_node({"metadata": {"name": name}})
    yield name
    core.delete_node(name)


def usable(api: client.ApiClient, name: str, label: str) -> None:
    """A node that only the tests' resource selects, ready, as a kubelet would say."""
    core, size = client.CoreV1Api(api), {"cpu": "4", "memory": "8Gi", "pods": "110"}
    ready = {"type": "Ready", "status": "True", "reason": "Test", "message": "ready", "lastHeartbeatTime": None}
    core.patch_node_status(name, {"status": {"capacity": size, "allocatable": size, "conditions": [ready]}})
    core.patch_node(name, {"metadata": {"labels": {"split-test": label}}, "spec": {"taints": None}})


def test_a_drain_plans_with_the_solver_and_stops_where_no_other_node_would_do(
    api: client.ApiClient, namespace: str, node: str, kubeconfig: str, capsys: pytest.CaptureFixture[str]
):
    core, cluster, other = client.CoreV1Api(api), KubeCluster(api, 5.0), f"{node}-b"
    usable(api, node, node)
    cluster.create(a_resource(namespace, placement={"nodeSelector": {"split-test": node}}))
    cluster.patch_status(namespace, "chat", {"plan": {**PLAN, "segments": [a_segment("chat-0-4", 0, 4, node)]}})
    body = cluster.split_inference(namespace, "chat")
    assert body is not None
    cluster.create(profile_pod.cache_object(parsed(body), profile_pod.pack(CONFIG, TENSORS)))
    assert main(["drain", node, "--dry-run", "--kubeconfig", kubeconfig]) == 1
    assert f"{namespace}/chat: there is no plan without {node}: " in capsys.readouterr().out
    core.create_node({"metadata": {"name": other}})
    try:
        usable(api, other, node)
        assert main(["drain", node, "--dry-run", "--kubeconfig", kubeconfig]) == 0
        assert f"{namespace}/chat: without it, a plan is {other}[0:4]" in capsys.readouterr().out
    finally:
        core.delete_node(other)
    assert not core.read_node(node).spec.unschedulable


def test_a_drained_node_is_cordoned_until_the_segment_has_left_and_taken_back(
    api: client.ApiClient, resource: str, node: str, kubeconfig: str, capsys: pytest.CaptureFixture[str]
):
    core = client.CoreV1Api(api)
    pod: dict[str, Any] = a_pod("chat-0-4", "0-4", node)
    pod["metadata"]["namespace"] = resource
    pod["spec"]["containers"][0]["image"] = "none"
    core.create_namespaced_pod(resource, pod)

    def moves() -> None:
        """The operator's part."""
        while not core.read_node(node).spec.unschedulable:
            time.sleep(0.05)
        core.delete_namespaced_pod("chat-0-4", resource, grace_period_seconds=0)

    mover = threading.Thread(target=moves, daemon=True)
    mover.start()
    # The profile of this model was never read, so it cannot be planned here: only --force goes on.
    assert main(["drain", node, "--kubeconfig", kubeconfig]) == 1
    assert "it cannot be planned here" in capsys.readouterr().err
    assert not core.read_node(node).spec.unschedulable
    assert main(["drain", node, "--kubeconfig", kubeconfig, "--force", "--timeout", "120"]) == 0
    assert f"Nothing of ours is on {node}." in capsys.readouterr().out
    mover.join()
    assert main(["drain", node, "--kubeconfig", kubeconfig, "--undo"]) == 0
    found = core.read_node(node)
    assert not found.spec.unschedulable
    # The controller manager writes annotations of its own.
    assert [key for key in found.metadata.annotations or {} if key.startswith("splitinference.dev/")] == []
