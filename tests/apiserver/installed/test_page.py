"""The page against a real API server: its rights are those that it uses, and people see what they may list."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.cli.bench.control.control_plane import NotStartedError
from splitinference.controller.ports import RefusedError
from splitinference.settings import Settings
from splitinference.ui.access import ForbiddenError, ReviewedAccess, UnauthenticatedError
from splitinference.ui.origins.kube import LiveCluster, Reviews
from splitinference.ui.page.document import Scope
from splitinference.ui.questions.asked import UnanswerableError
from tests.apiserver.api_server import ApiServer, api_server, programs
from tests.apiserver.conftest import install_crd
from tests.apiserver.rights import difference, read_log, requests_of, rights_of
from tests.apiserver.test_admission import KINDS, post
from tests.apiserver.test_rights import POLICY, a_node
from tests.chart.rendered import render
from tests.integration.conftest import a_resource

ACCOUNT = ("ops", "si-splitinference-page")
USER = f"system:serviceaccount:{ACCOUNT[0]}:{ACCOUNT[1]}"
CHART = ("page.enabled=true", "page.whatIf.enabled=true")
SETTINGS = Settings(operator_namespace="ops")
PEOPLE = {"alice": ("system:authenticated",), "bob": ("system:authenticated",), "nobody": ("system:authenticated",)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    try:
        programs()
    except NotStartedError as error:
        pytest.skip(str(error))
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{ACCOUNT[0]}", "system:authenticated")
    with api_server(tmp_path_factory.mktemp("page"), {USER: groups, **PEOPLE}, POLICY) as found:
        api = found.api()
        install_crd(api)
        for name in ("ops", "team", "other"):
            client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
        for obj in render(*CHART):
            if "page" not in obj["metadata"]["name"] or "Role" not in obj["kind"]:
                continue
            namespace = obj["metadata"].get("namespace", "")
            where = f"namespaces/{namespace}/{obj['kind'].lower()}s" if namespace else KINDS[obj["kind"]]
            post(api, f"/apis/rbac.authorization.k8s.io/v1/{where}", obj)
        a_node(api, "a")
        cluster = KubeCluster(api, 5)
        for namespace in ("team", "other"):
            cluster.create(a_resource(namespace))
        bind(api, "alice", "ClusterRole", "")
        bind(api, "bob", "Role", "team")
        yield found


def bind(api: client.ApiClient, user: str, kind: str, namespace: str) -> None:
    """May list SplitInferences: everywhere, with nodes, or in one namespace."""
    resources = [{"apiGroups": ["splitinference.dev"], "resources": ["splitinferences"], "verbs": ["list"]}]
    if not namespace:
        resources.append({"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]})
    base = "/apis/rbac.authorization.k8s.io/v1/" + (f"namespaces/{namespace}/" if namespace else "")
    group = "rbac.authorization.k8s.io"
    post(api, f"{base}{kind.lower()}s", {"apiVersion": f"{group}/v1", "kind": kind, "metadata": {"name": user}, "rules": resources})
    binding: dict[str, Any] = {
        "apiVersion": f"{group}/v1",
        "kind": f"{kind}Binding",
        "metadata": {"name": user},
        "roleRef": {"apiGroup": group, "kind": kind, "name": user},
        "subjects": [{"kind": "User", "name": user, "apiGroup": group}],
    }
    post(api, f"{base}{kind.lower()}bindings", binding)


def test_what_it_reads_it_may_read_and_it_uses_each_right(server: ApiServer):
    source = LiveCluster(server.api(USER), SETTINGS)
    try:
        document = source.read()
        assert set(document.resources) == {"team/chat", "other/chat"}
        assert set(document.nodes) == {"a"}
        with pytest.raises(UnanswerableError, match="has not read this model"):
            source.basis("team/chat")
    finally:
        source.close()
    reviews = Reviews(server.api(USER), 5)
    who = reviews.who(server.tokens["alice"], "")
    assert who is not None
    assert reviews.may(who, "list", "nodes")
    found = difference(requests_of(USER, read_log(server.audit_log.read_text())), rights_of(ACCOUNT, render(*CHART)))
    assert not found.missing, [str(one) for one in found.missing]
    assert not found.unused, [str(one) for one in found.unused]


def test_people_see_what_they_may_list(server: ApiServer):
    async def play() -> None:
        access = ReviewedAccess(Reviews(server.api(USER), 5), "")
        spaces = {"team", "other"}
        assert await access.scope(server.tokens["alice"], spaces) == Scope(None, nodes=True)
        assert await access.scope(server.tokens["bob"], spaces) == Scope(frozenset({"team"}), nodes=False)
        with pytest.raises(ForbiddenError):
            await access.scope(server.tokens["nobody"], spaces)
        with pytest.raises(UnauthenticatedError):
            await access.scope("guess", spaces)

    asyncio.run(play())


def test_a_token_for_another_audience_is_refused(server: ApiServer):
    """Tokens that pods carry are for the API server: with an audience set, the page takes none of them."""
    api = server.api()
    client.CoreV1Api(api).create_namespaced_service_account("team", {"metadata": {"name": "robot"}})

    def token(*audiences: str) -> str:
        body = {"spec": {"audiences": list(audiences), "expirationSeconds": 600}}
        path = "/api/v1/namespaces/team/serviceaccounts/robot/token"
        answer = api.call_api(path, "POST", body=body, auth_settings=["BearerToken"], response_type="str", _return_http_data_only=True,
                              _preload_content=False)  # fmt: skip
        return str(json.loads(answer.data)["status"]["token"])

    reviews = Reviews(server.api(USER), 5)
    found = reviews.who(token("splitinference-page"), "splitinference-page")
    assert found is not None
    assert found.user == "system:serviceaccount:team:robot"
    assert reviews.who(token("https://bare"), "splitinference-page") is None


def test_who_may_list_one_namespace_alone_sees_it_and_a_note(server: ApiServer):
    source = LiveCluster(server.api("bob"), SETTINGS, fallback="team")
    with pytest.raises(RefusedError, match="may not list and watch SplitInferences in all namespaces"):
        source.read()
    api = server.api()
    role = {"rules": [{"apiGroups": ["splitinference.dev"], "resources": ["splitinferences"], "verbs": ["list", "watch"]}]}
    client.RbacAuthorizationV1Api(api).patch_namespaced_role("bob", "team", role)
    source = LiveCluster(server.api("bob"), SETTINGS, fallback="team")
    try:
        document = source.read()
        assert set(document.resources) == {"team/chat"}
        assert document.nodes == {}
        assert any("nodes and pods" in note for note in document.notes)
        assert any("shows team alone" in note for note in document.notes)
        assert document.resources["team/chat"]["plan"] is None
    finally:
        source.close()
