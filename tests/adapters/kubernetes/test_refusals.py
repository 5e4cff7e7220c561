"""What an answer of the API server means: refused, so that its words become a condition, or not now, so that it is tried again."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.adapters.kubernetes.crd import CrdNotes
from splitinference.controller.ports import RefusedError, UnavailableError
from tests.adapters.serving import Request, Response, serving
from tests.controller.api.test_crd_gaps import CRD, without

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "team"}}
DOWN = 'Internal error occurred: failed calling webhook "check.example": Post "https://check.ops.svc:443": connect: connection refused'
QUOTA = 'pods "p" is forbidden: failed quota: team: must specify limits.cpu for: segment'


def answered(status: int, message: str) -> Callable[[Request], Response]:
    body = json.dumps({"kind": "Status", "status": "Failure", "message": message, "code": status}).encode()
    return lambda _: Response(body=body, status=status, headers={"Content-Type": "application/json"})


def asking(answer: Callable[[Request], Response], ask: Callable[[KubeCluster], Any]) -> Any:
    with serving(answer) as port:
        configuration = client.Configuration(host=f"http://127.0.0.1:{port}")
        configuration.retries = False
        return ask(KubeCluster(client.ApiClient(configuration), 5.0))


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, DOWN),
        (403, QUOTA),
        (403, 'pods "p" is forbidden: unable to create new content in namespace team because it is being terminated'),
        (400, 'admission webhook "check.example" denied the request: no'),
        (422, "Pod is invalid: spec.containers[0].image: Required value"),
    ],
)
def test_what_somebody_must_mend_is_refused_in_the_servers_words(status, message):
    with pytest.raises(RefusedError) as refused:
        asking(answered(status, message), lambda cluster: cluster.create(POD))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (429, "Too many requests, please try again later."),
        (500, "etcdserver: request timed out"),
        (500, "etcdserver: leader changed"),
        (503, "apiserver is shutting down"),
        (504, "Timeout: request did not complete within requested timeout"),
    ],
)
def test_what_passes_is_tried_again(status, message):
    with pytest.raises(UnavailableError, match=message[:20]):
        asking(answered(status, message), lambda cluster: cluster.create(POD))


def test_events_that_may_not_be_read_are_no_trouble():
    assert asking(answered(403, "events is forbidden"), lambda cluster: cluster.pod_warning("team", "u")) == ""


def test_the_log_is_asked_of_our_own_container():
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.append(request.path)
        return Response(body=b"words")

    assert asking(answer, lambda cluster: cluster.pod_log("team", "p", "profile")) == "words"
    assert "container=profile" in asked[0]


def test_a_log_that_is_refused_is_said_in_the_operators_own_log(caplog):
    message = "a container name must be specified for pod p, choose one of: [istio-proxy profile]"
    assert asking(answered(400, message), lambda cluster: cluster.pod_log("team", "p", "profile")) == ""
    assert message in caplog.text


def test_the_crd_is_looked_at_and_one_that_may_not_be_read_is_no_trouble():
    def crd(of: dict[str, Any]) -> Callable[[Request], Response]:
        return lambda _: Response(body=json.dumps(of).encode(), headers={"Content-Type": "application/json"})

    assert asking(crd(CRD), lambda cluster: CrdNotes(cluster)()) == ""
    assert "spec.podTemplate" in asking(crd(without("podTemplate")), lambda cluster: CrdNotes(cluster)())
    assert asking(answered(403, "forbidden"), lambda cluster: CrdNotes(cluster)()) == ""
