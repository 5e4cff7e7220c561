"""What goes wrong between a user and a cluster: each verb says it in a sentence, with what to do, and never with a traceback."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from splitinference.cli.errors import grant, one_line
from splitinference.cli.main import main
from tests.adapters.serving import Response
from tests.cli.pretend_api import GROUP, api_server, items, kubeconfig, refusal

VERBS = [
    ["status"],
    ["explain"],
    ["history"],
    ["diff"],
    ["approve", "chat"],
    ["reject", "chat"],
    ["logs", "chat"],
    ["drain", "n1"],
    ["doctor"],
]
every_verb = pytest.mark.parametrize("verb", VERBS, ids=[verb[0] for verb in VERBS])


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The command fails with 1; what it said."""
    assert main(list(argv)) == 1
    said = capsys.readouterr()
    text = said.err + said.out
    assert "Traceback" not in text
    assert "this is a bug" not in text
    return text


@every_verb
def test_without_a_cluster(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = kubeconfig(tmp_path, "http://127.0.0.1:1")
    text = fails(capsys, *verb, "--kubeconfig", str(path))
    assert "did not answer" in text
    assert "kubectl cluster-info" in text


@every_verb
@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"{",
        b"- a\n- b\n",
        b"\xff\xfe\x00",
        b"apiVersion: v1\nkind: Config\ncurrent-context: gone\n",
        b"just words",
        b"contexts: 7\n",
    ],
    ids=["absent", "empty", "half", "list", "binary", "no-context", "words", "number"],
)
def test_a_broken_kubeconfig(verb: list[str], content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "broken"
    if content is not None:
        path.write_bytes(content)
    assert "kubeconfig" in fails(capsys, *verb, "--kubeconfig", str(path))


@pytest.mark.parametrize(
    "user", [{"client-certificate-data": "no base64!", "client-key-data": "x"}, {"exec": {"command": "/none", "apiVersion": "x"}}]
)
def test_credentials_that_cannot_be_used(user: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fails(capsys, "status", "--kubeconfig", str(kubeconfig(tmp_path, "https://127.0.0.1:1", **user)))


def test_an_unknown_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = fails(capsys, "status", "--context", "prod", "--kubeconfig", str(kubeconfig(tmp_path, "http://127.0.0.1:1")))
    assert "prod" in text
    assert "kubectl config get-contexts" in text


@every_verb
def test_a_server_that_answers_with_html(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = Response(b"<html><style>p{}</style><body>Please <b>log in</b></body></html>", 200, {"Content-Type": "text/html"})
    paths = ["/version", "/api/v1/nodes/n1", f"{GROUP}/namespaces/team/splitinferences", f"{GROUP}/namespaces/team/splitinferences/chat"]
    with api_server(tmp_path, dict.fromkeys(paths, page)) as (path, _):
        text = fails(capsys, *verb, "--kubeconfig", path)
    assert "not JSON" in text
    assert "proxy or a login page" in text


def test_a_gateway_page_with_an_error_is_one_plain_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    page = Response(b"<html><head><style>a{}</style></head><body><h1>502 Bad\nGateway</h1>\x1b[31m" + b"x" * 9000 + b"</body></html>", 502)
    with api_server(tmp_path, {f"{GROUP}/namespaces/team/splitinferences": page}) as (path, _):
        text = fails(capsys, "status", "--kubeconfig", path)
    assert "502 Bad Gateway" in text
    assert "<" not in text
    assert "\x1b" not in text
    assert len(text) < 600


@every_verb
def test_a_server_that_is_slow(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    over = threading.Event()

    def waits(_: object) -> Response:
        over.wait(60)
        return Response()

    paths = ["/version", "/api/v1/nodes/n1", f"{GROUP}/namespaces/team/splitinferences", f"{GROUP}/namespaces/team/splitinferences/chat"]
    with api_server(tmp_path, dict.fromkeys(paths, waits)) as (path, _):
        text = fails(capsys, *verb, "--kubeconfig", path, "--request-timeout", "0.3")
        over.set()
    assert "did not answer" in text
    assert "--request-timeout" in text


@every_verb
def test_credentials_that_are_not_accepted(verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    denied = refusal(401, "Unauthorized", "Unauthorized")
    paths = ["/version", "/api/v1/nodes/n1", f"{GROUP}/namespaces/team/splitinferences", f"{GROUP}/namespaces/team/splitinferences/chat"]
    with api_server(tmp_path, dict.fromkeys(paths, denied)) as (path, _):
        assert "credentials are not accepted" in fails(capsys, *verb, "--kubeconfig", path)


FORBIDDEN = (
    'splitinferences.splitinference.dev is forbidden: User "jane" cannot list resource "splitinferences" in API group '
    '"splitinference.dev" in the namespace "team"'
)


def test_a_missing_right_is_said_with_the_commands_that_grant_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with api_server(tmp_path, {f"{GROUP}/namespaces/team/splitinferences": refusal(403, FORBIDDEN)}) as (path, _):
        text = fails(capsys, "status", "--kubeconfig", path)
    assert 'User "jane" cannot list resource "splitinferences"' in text
    assert (
        "kubectl create role split-view-splitinferences -n team --verb=get,list,watch --resource=splitinferences.splitinference.dev" in text
    )
    assert "kubectl create rolebinding split-view-splitinferences -n team --role=split-view-splitinferences --user='jane'" in text


def test_grants_are_for_the_cluster_for_accounts_and_for_subresources():
    cluster = grant({"user": "system:serviceaccount:ci:bot", "verb": "patch", "resource": "nodes", "group": "", "namespace": ""})
    assert "kubectl create clusterrole split-patch-nodes --verb=patch --resource=nodes" in cluster
    assert "--clusterrole=split-patch-nodes --serviceaccount=ci:bot" in cluster
    log = grant({"user": "j", "verb": "get", "resource": "pods/log", "group": "", "namespace": "team"})
    assert "--resource=pods/log" in log


def test_a_cluster_without_the_crd(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with api_server(tmp_path, {}) as (path, _):
        text = fails(capsys, "status", "--kubeconfig", path)
    assert "its CRD is not installed" in text
    assert "helm install" in text


CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/splitinferences.splitinference.dev"


def an_old_crd() -> dict[str, Any]:
    status = {"type": "object", "properties": {"plan": {}, "conditions": {}}}
    schema = {"properties": {"spec": {"type": "object", "properties": {"model": {"type": "object"}}}, "status": status}}
    versions = [{"name": "v1alpha1", "schema": {"openAPIV3Schema": schema}}]
    return {"metadata": {"name": "splitinferences.splitinference.dev"}, "spec": {"versions": versions}}


def a_resource(**more: Any) -> dict[str, Any]:
    return {"metadata": {"name": "chat", "namespace": "team", "resourceVersion": "1"}, "spec": {"adaptation": {"mode": "Advisory"}}, **more}


def test_an_older_crd_is_said_where_its_fields_are_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers = {f"{GROUP}/namespaces/team/splitinferences/chat": a_resource(), CRD: an_old_crd()}
    with api_server(tmp_path, answers) as (path, _):
        text = fails(capsys, "approve", "chat", "--kubeconfig", path)
    assert "older than this plugin: it drops status.proposal" in text
    assert "kubectl apply --server-side -f crds/splitinference.yaml" in text


def test_an_older_crd_and_its_odd_status_do_not_stop_what_only_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    old = a_resource(status={"plan": {"segments": [{"layers": "0-4"}]}, "conditions": None})
    with api_server(tmp_path, {f"{GROUP}/namespaces/team/splitinferences/chat": old, "/api/v1/namespaces/team/pods": items()}) as (path, _):
        for verb in ("status", "explain", "history"):
            assert main([verb, "chat", "--kubeconfig", path]) == 0
            assert "team/chat" in capsys.readouterr().out


def test_doctor_names_what_the_old_crd_drops_and_goes_on_after_what_it_may_not_see(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    answers = {
        "/version": {"gitVersion": "v1.29.3"},
        CRD: an_old_crd(),
        "/api/v1/nodes": refusal(403, 'nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope'),
        f"{GROUP}/namespaces/team/splitinferences": items(a_resource()),
    }
    with api_server(tmp_path, answers) as (path, _):
        assert main(["doctor", "--kubeconfig", path, "-o", "json"]) == 1
    checks = {check["check"]: check for check in json.loads(capsys.readouterr().out)["items"]}
    assert checks["Kubernetes"]["state"] == "problem"
    assert "status.proposal" in checks["CRD"]["message"]
    assert checks["nodes"]["state"] == "unknown"
    assert "kubectl create clusterrole split-view-nodes" in checks["nodes"]["fix"]
    assert "no operator has looked at it" in checks["resource"]["message"]


def test_unknown_names_are_answered_with_near_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    found = items(a_resource(), {"metadata": {"name": "search", "namespace": "other"}})
    with api_server(tmp_path, {f"{GROUP}/splitinferences": found}) as (path, _):
        assert "Did you mean chat?" in fails(capsys, "status", "chta", "--kubeconfig", path)
        assert "There is one in other: add -n other" in fails(capsys, "status", "search", "--kubeconfig", path)
        assert "There are: chat" in fails(capsys, "status", "zzz", "--kubeconfig", path)


@pytest.mark.parametrize(("argv", "words"), [(["statsu"], "Did you mean status?"), (["zz"], "There is no verb 'zz'."), ([], "Usage")])
def test_an_unknown_verb(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]):
    assert main(argv) == 2
    said = capsys.readouterr()
    assert words in said.err + said.out


def test_a_fault_of_ours_is_a_sentence_too_and_shown_whole_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from splitinference.cli.connection import Connection
    from splitinference.cli.live import history

    def fault(*_: object) -> None:
        raise TypeError("odd\nthing")

    assert history.command is not None
    monkeypatch.setattr(Connection, "resources", fault)
    assert main(["history"]) == 70
    assert "this is a bug: TypeError: odd thing" in capsys.readouterr().err
    monkeypatch.setenv("SPLITINFERENCE_DEBUG", "1")
    with pytest.raises(TypeError):
        main(["history"])


def test_text_from_elsewhere_is_one_plain_short_line():
    assert one_line("a\n<b>b</b>\x1b[0m") == "a b [0m"
    assert len(one_line("x" * 5000)) == 400
