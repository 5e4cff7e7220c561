"""The operator has the rights that it uses, and no other: its process against an API server that enforces the chart's roles and keeps an
audit log. Of what needs a kubelet or certificates, the adapter's own methods are called with the operator's account."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.cli.bench.control.control_plane import NotStartedError
from splitinference.cli.bench.control.pretend import profile_of
from splitinference.controller.api.spec import Resource, read_resource
from splitinference.controller.manifests.disruption_budget import BUDGET, budget_name, segments_budget
from splitinference.controller.manifests.pod_parts import metadata
from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.apiserver.api_server import ApiServer, api_server, programs
from tests.apiserver.conftest import install_crd
from tests.apiserver.operators import an_operator, until
from tests.apiserver.rights import Request, Right, difference, read_log, requests_of, rights_of
from tests.apiserver.test_admission import KINDS, post
from tests.chart.rendered import render, settings
from tests.controller.manifests.built import a_profile
from tests.integration.conftest import a_resource

ACCOUNT = ("ops", "si-splitinference-operator")
USER = f"system:serviceaccount:{ACCOUNT[0]}:{ACCOUNT[1]}"
POLICY = Path(__file__).parent / "audit-policy.yaml"
MODES = {"everywhere": (), "in one namespace": ("watchNamespaces={team}",)}

WITHOUT_A_REQUEST = {
    ("splitinference.dev", "splitinferences/finalizers", "update"): "asked by admission where objects get owner references, not requested",
}


@pytest.fixture(params=MODES)
def chart(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return (*MODES[request.param], "measureNodes.enabled=false", "policy.allowedHostPaths={/models}")


@pytest.fixture
def audited(tmp_path: Path, chart: tuple[str, ...]) -> Iterator[ApiServer]:
    """A server that enforces what the chart gives, and logs what is asked."""
    try:
        programs()
    except NotStartedError as error:
        pytest.skip(str(error))
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{ACCOUNT[0]}", "system:authenticated")
    with api_server(tmp_path, {USER: groups}, POLICY) as found:
        api = found.api()
        install_crd(api)
        for name in ("ops", "team"):
            client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
        for obj in render(*chart):
            namespace = obj["metadata"].get("namespace", "")
            if obj["kind"] in KINDS:
                group = "rbac.authorization.k8s.io" if "Role" in obj["kind"] else "admissionregistration.k8s.io"
                post(api, f"/apis/{group}/v1/{KINDS[obj['kind']]}", obj)
            elif obj["kind"] in ("Role", "RoleBinding"):
                post(api, f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{obj['kind'].lower()}s", obj)
        yield found


def a_node(api: client.ApiClient, name: str) -> None:
    core = client.CoreV1Api(api)
    core.create_node({"metadata": {"name": name}})
    capacity = {"cpu": "8", "memory": "16Gi", "pods": "100"}
    status = {"capacity": capacity, "allocatable": capacity, "conditions": [{"type": "Ready", "status": "True"}]}
    core.patch_node_status(name, {"status": status})


def finish(api: client.ApiClient, component: str) -> None:
    """As a kubelet would: pods of the component have run."""
    core = client.CoreV1Api(api)
    for pod in core.list_namespaced_pod("team", label_selector=f"app.kubernetes.io/component={component}").items:
        core.patch_namespaced_pod_status(pod.metadata.name, "team", {"status": {"phase": "Succeeded"}})


def the_process(server: ApiServer, chart: tuple[str, ...]) -> None:
    """The operator, from reading a model to making gateway and segments."""
    api = server.api()
    for name in ("a", "b"):
        a_node(api, name)
    given = {name.removeprefix("SPLITINFERENCE_"): value for name, value in settings(*chart).items()}
    wanted = (
        "NAMESPACES",
        "OPERATOR_NAMESPACE",
        "MEASURE_NODES",
        "DISRUPTION_BUDGETS",
        "LEASE",
        "NETWORK_POLICIES",
        "ALLOWED_HOST_PATHS",
        "ALLOWED_TOLERATIONS",
    )
    cluster = KubeCluster(api, 5)
    with an_operator(server.kubeconfig(USER), **{name: given[name] for name in wanted}) as operator:
        cluster.create(a_resource("team"))
        until(lambda: bool(cluster.owned("Pod", "team", "chat")), "a pod is to read the model")
        finish(api, "profile")
        log = server.audit_log
        until(lambda: '"subresource":"log"' in log.read_text(), "its log is asked for")
        until(lambda: '"verb":"delete"' in log.read_text(), "and it is deleted, as it has none")
        read = read_resource(dict(cluster.split_inference("team", "chat") or {}))
        assert isinstance(read, Resource)
        cluster.apply(profile_of(read))
        until(lambda: bool(cluster.owned("Deployment", "team", "chat")), "the gateway is made")
        segments = "app.kubernetes.io/component=segment"
        core = client.CoreV1Api(api)
        until(lambda: bool(core.list_namespaced_pod("team", label_selector=segments).items), "segments are made")
        operator.process.terminate()
        operator.ends()


def the_rest(server: ApiServer) -> None:
    """What a real cluster would bring about: a cutover, a segment that goes, certificates."""
    admin = KubeCluster(server.api(), 5)
    body = dict(admin.split_inference("team", "chat") or {})
    read = read_resource(body)
    assert isinstance(read, Resource)
    cluster, builder = KubeCluster(server.api(USER), 5), Manifests(Settings())
    cluster.apply(builder.route(read, {"route.json": "{}"}))
    made = builder.segment(read, a_profile(), Segment(start=0, end=1, node="a"), 2**28, 2**20)
    for _ in range(2):
        cluster.create(made.pod)
    cluster.apply(made.service)
    cluster.delete("Service", "team", made.name)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata(read, "chat-gateway-tls", "gateway"), "data": {"tls.key": "YQ=="}}
    for _ in range(2):
        cluster.apply(secret)
    cluster.apply(segments_budget(read, (made.name,)))
    cluster.delete(BUDGET, "team", budget_name("chat"))
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata(read, "chat-verifiers", "verifier")}
    cluster.apply({**policy, "spec": {"podSelector": {}}})
    cluster.delete("NetworkPolicy", "team", "chat-verifiers")  # as where verification has ended
    assert cluster.pod_warning("team", "a-pod-that-does-not-start") == ""


def test_rights_are_those_that_are_used(audited: ApiServer, chart: tuple[str, ...]):
    the_process(audited, chart)
    the_rest(audited)
    asked = requests_of(USER, read_log(audited.audit_log.read_text()))
    found = difference(asked, rights_of(ACCOUNT, render(*chart)))
    assert [str(request) for request in found.missing] == []
    unused = [right for right in found.unused if (right.group, right.resource, right.verb) not in WITHOUT_A_REQUEST]
    assert [str(right) for right in unused] == []


# --- the comparison itself -----------------------------------------------------------------------------------------------------------

ROLE = {
    "kind": "ClusterRole",
    "metadata": {"name": "r"},
    "rules": [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"]}],
}
BINDING = {
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "b"},
    "roleRef": {"kind": "ClusterRole", "name": "r"},
    "subjects": [{"kind": "ServiceAccount", "namespace": "ops", "name": "x"}],
}
EVENT = {"verb": "get", "user": {"username": "u"}, "objectRef": {"resource": "pods", "namespace": "team", "name": "p", "apiVersion": "v1"}}


def test_both_directions_are_found():
    rights = rights_of(("ops", "x"), [ROLE, BINDING])
    wider = copy.deepcopy(EVENT)
    wider["verb"] = "delete"
    found = difference(requests_of("u", [EVENT, wider, {**EVENT, "user": {"username": "other"}, "verb": "patch"}]), rights)
    assert found.missing == (Request("", "pods", "delete", "team", "p"),)
    assert found.unused == (Right("", "pods/log", "get"),)


def test_a_right_in_one_namespace_or_for_one_name_covers_no_other():
    role = {**ROLE, "kind": "Role", "metadata": {"name": "r", "namespace": "a"}}
    ref = {"kind": "Role", "name": "r"}
    namespaced = [role, {**BINDING, "kind": "RoleBinding", "metadata": {"name": "b", "namespace": "a"}, "roleRef": ref}]
    rights = rights_of(("ops", "x"), namespaced)
    assert {right.namespace for right in rights} == {"a"}
    assert difference([Request("", "pods", "get", "team", "p")], rights).missing
    assert not difference([Request("", "pods", "get", "a", "p")], rights).missing
    assert difference([Request("", "pods", "get", "a", "p")], [Right("", "pods", "get", "a", "q")]).missing
    assert rights_of(("ops", "somebody"), namespaced) == frozenset()


def test_what_is_created_is_not_limited_by_its_name():
    event: dict[str, Any] = {**EVENT, "verb": "create"}
    assert requests_of("u", [event]) == {Request("", "pods", "create", "team", "")}
