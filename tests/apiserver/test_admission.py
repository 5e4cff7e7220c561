"""The chart's admission policies on a real API server: what a resource may ask of nodes, and which Roles the operator may write.

The operator applies the same rules itself (controller/trust/cluster_policy.py); both are asked the same here.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import api_path
from splitinference.cli.bench.control.control_plane import NotStartedError
from splitinference.controller.api.spec import Resource, read_resource
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.trust.cluster_policy import violations
from splitinference.settings import Settings
from tests.apiserver.api_server import ApiServer, api_server, programs
from tests.apiserver.conftest import install_crd
from tests.apiserver.operators import until
from tests.chart.rendered import render
from tests.controller.manifests.built import a_profile
from tests.controller.objects import parsed
from tests.integration.conftest import a_resource

OPERATOR = "system:serviceaccount:ops:si-splitinference-operator"
FOLDERS = ("/models", "/srv/x/")
TOLERATIONS = [{"key": "edge", "operator": "Exists"}, {"key": "gpu", "value": "yes", "effect": "NoSchedule"}]
CHART = (
    "policy.allowedHostPaths={/models,/srv/x/}",
    "policy.allowedTolerations[0].key=edge",
    "policy.allowedTolerations[0].operator=Exists",
    "policy.allowedTolerations[1].key=gpu",
    "policy.allowedTolerations[1].value=yes",
    "policy.allowedTolerations[1].effect=NoSchedule",
)
KINDS = {
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
}

PATHS = {
    "/models": True, "/models/m": True, "/models/m/": True, "/srv/x": True, "/srv/x/deep/er": True, "/models//m": True,
    "/": False, "/etc": False, "/modelsx": False, "/models-of-others": False, "/srv": False, "/srv/xy": False, "//models": False,
    "/models/./m": False, "/Models": False, "/models/..hidden": True,
}  # fmt: skip
ASKED = [
    ({"key": "edge", "operator": "Exists"}, True),
    ({"key": "edge", "operator": "Equal", "value": "any"}, True),
    ({"key": "edge", "operator": "Exists", "effect": "NoExecute"}, True),
    ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
    ({"key": "gpu", "operator": "Equal", "value": "no", "effect": "NoSchedule"}, False),
    ({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, False),
    ({"key": "gpu", "operator": "Equal", "value": "yes"}, False),
    ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"}, False),
    ({"operator": "Exists"}, False),
    ({"operator": "Exists", "effect": "NoSchedule"}, False),
    ({"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}, False),
]


def post(api: client.ApiClient, path: str, body: dict[str, Any], method: str = "POST") -> dict[str, Any]:
    found: dict[str, Any] = api.call_api(
        path, method, body=body, auth_settings=["BearerToken"], response_type="object", _return_http_data_only=True
    )
    return found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server with the chart's rights and policies, and the operator's account."""
    try:
        programs()
    except NotStartedError as error:
        pytest.skip(str(error))
    folder: Path = tmp_path_factory.mktemp("guarded")
    with api_server(folder, {OPERATOR: ("system:serviceaccounts", "system:authenticated")}) as found:
        api = found.api()
        install_crd(api)
        client.CoreV1Api(api).create_namespace({"metadata": {"name": "team"}})
        for obj in render(*CHART):
            if obj["kind"] in KINDS:
                group = "rbac.authorization.k8s.io" if "Role" in obj["kind"] else "admissionregistration.k8s.io"
                post(api, f"/apis/{group}/v1/{KINDS[obj['kind']]}", obj)
        until(lambda: refusal(found, with_path("/etc")) != "", "the policy is in force")
        yield found


def with_path(path: str) -> dict[str, Any]:
    return a_resource("team", model={"id": "m", "source": {"hostPath": {"path": path}}})


def with_toleration(toleration: dict[str, Any]) -> dict[str, Any]:
    return a_resource("team", placement={"tolerations": [toleration]})


def refusal(server: ApiServer, resource: dict[str, Any]) -> str:
    """What the API server says to it; empty where it takes it. Nothing is kept."""
    try:
        post(server.api(), api_path("SplitInference", "team") + "?dryRun=All", resource)
    except client.ApiException as error:
        return str(json.loads(error.body)["message"])
    return ""


def own_words(resource: dict[str, Any]) -> str:
    """What the operator says to it."""
    settings = Settings(allowed_host_paths=FOLDERS, allowed_tolerations=TOLERATIONS)  # type: ignore[arg-type]
    read = read_resource(resource)
    assert isinstance(read, Resource)
    return "; ".join(map(str, violations(read.spec, settings)))


@pytest.mark.parametrize("path", PATHS)
def test_folders_are_compared_by_whole_components(guarded: ApiServer, path: str):
    for words in (refusal(guarded, with_path(path)), own_words(with_path(path))):
        assert (words == "") is PATHS[path], words
        if words:
            assert path in words
            assert "allowedHostPaths allows (/models, /srv/x" in words


@pytest.mark.parametrize(("asked", "allowed"), ASKED)
def test_a_toleration_is_allowed_that_tolerates_no_more(guarded: ApiServer, asked: dict[str, Any], allowed: bool):
    for words in (refusal(guarded, with_toleration(asked)), own_words(with_toleration(asked))):
        assert (words == "") is allowed, words
        if words:
            assert "(edge; gpu=yes:NoSchedule)" in words


def test_what_is_there_may_be_labelled_and_deleted_but_not_changed(guarded: ApiServer):
    api = guarded.api()
    path = api_path("SplitInference", "team")
    made = post(api, path, with_path("/models/m"))
    # As one that was written before the policy was: the policy is gone for a moment.
    binding = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/si-splitinference-policy-ops"
    kept = post(api, binding, {}, "GET")
    post(api, binding, {}, "DELETE")
    until(lambda: refusal(guarded, with_path("/etc") | {"metadata": {"name": "other", "namespace": "team"}}) == "", "no policy")
    made["spec"]["model"]["source"]["hostPath"]["path"] = "/etc"
    made = post(api, f"{path}/chat", made, "PUT")
    kept["metadata"] = {"name": kept["metadata"]["name"]}
    post(api, binding.rpartition("/")[0], kept)
    until(lambda: refusal(guarded, with_path("/etc") | {"metadata": {"name": "other", "namespace": "team"}}) != "", "the policy is back")
    made["metadata"]["labels"] = {"a": "b"}
    made = post(api, f"{path}/chat", made, "PUT")
    changed = copy.deepcopy(made)
    changed["spec"]["model"]["dtype"] = "float32"
    with pytest.raises(client.ApiException, match="allowedHostPaths"):
        post(api, f"{path}/chat", changed, "PUT")
    post(api, f"{path}/chat", {}, "DELETE")


def a_gateways(kind: str, name: str = "chat") -> dict[str, Any]:
    body = a_resource("team", name)
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000001"
    (found,) = [dict(obj) for obj in Manifests(Settings()).gateway(parsed(body), a_profile()) if obj["kind"] == kind]
    return found


def test_the_operator_may_write_a_gateways_role_and_no_other(guarded: ApiServer):
    api = guarded.api(OPERATOR)
    roles, bindings = (f"/apis/rbac.authorization.k8s.io/v1/namespaces/team/{what}?dryRun=All" for what in ("roles", "rolebindings"))
    post(api, roles.partition("?")[0], a_gateways("Role"))
    post(api, bindings, a_gateways("RoleBinding"))
    more = a_gateways("Role", "more")
    for rules in (
        [{"apiGroups": [""], "resources": ["pods"], "verbs": ["create"]}],
        [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}],
        [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a"], "verbs": ["patch"]}],
        [*more["rules"], {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}],
        [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["a", "b"], "verbs": ["get"]}],
    ):
        with pytest.raises(client.ApiException, match="The operator may only write Roles"):
            post(api, roles, {**more, "rules": rules})
    with pytest.raises(client.ApiException, match="forbidden"):
        post(api, roles, {**more, "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]})
    for change in (
        {"subjects": [{"kind": "User", "name": "mallory", "apiGroup": "rbac.authorization.k8s.io"}]},
        {"subjects": [{"kind": "ServiceAccount", "name": "chat-gateway", "namespace": "other"}]},
        {"subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "team"}]},
    ):
        with pytest.raises(client.ApiException, match="may only bind"):
            post(api, bindings, {**a_gateways("RoleBinding"), **change})
