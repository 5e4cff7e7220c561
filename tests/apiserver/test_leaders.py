"""Replicas and releases as processes: one acts, another takes over when it is killed, stopped or frozen, and two releases do not fight."""

import signal
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.adapters.kubernetes.leases import KubeLeases
from splitinference.controller.runtime.leadership import Lease
from tests.apiserver.api_server import ApiServer
from tests.apiserver.operators import Operator, an_operator, until
from tests.integration.conftest import a_resource


def replica(server: ApiServer, namespace: str, name: str = "operator", **settings: str) -> Any:
    return an_operator(server.kubeconfig(), NAMESPACES=namespace, LEASE=f"{namespace}/{name}", LEASE_SECONDS="8", **settings)


def lease(api: client.ApiClient, namespace: str, name: str = "operator") -> Lease:
    found = KubeLeases(api, 8).read(namespace, name)
    return found or Lease("", "", 0)


def unreadable(api: client.ApiClient, namespace: str, name: str, **spec: Any) -> None:
    """A resource for which nothing is made but conditions."""
    KubeCluster(api, 5).create(a_resource(namespace, name, placement={"nodeSelector": {"no-such": "label"}}, **spec))


def status(api: client.ApiClient, namespace: str, name: str) -> dict[str, Any]:
    found = KubeCluster(api, 5).split_inference(namespace, name)
    assert found is not None
    return dict(found.get("status") or {})


def is_looked_at(api: client.ApiClient, namespace: str, name: str) -> bool:
    return bool(status(api, namespace, name).get("conditions"))


def leading(first: Operator, second: Operator, api: client.ApiClient, namespace: str) -> tuple[Operator, Operator]:
    """The two in the order leader, standby, once it is settled."""
    until(lambda: first.healthy and second.healthy, "both are healthy, the one that stands by too")
    until(lambda: first.leads or second.leads, "one leads")
    assert not (first.leads and second.leads)
    assert lease(api, namespace).holder
    return (first, second) if first.leads else (second, first)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_leader_that_goes_is_replaced_and_the_next_goes_on(server: ApiServer, api: client.ApiClient, namespace: str, how: signal.Signals):
    with replica(server, namespace) as first, replica(server, namespace) as second:
        leader, standby = leading(first, second, api, namespace)
        unreadable(api, namespace, "chat")
        until(lambda: is_looked_at(api, namespace, "chat"), "the leader looks at it")
        before = lease(api, namespace)
        leader.send(how)
        code = leader.ends()
        if how is signal.SIGTERM:
            assert code == 0
            now = lease(api, namespace)
            assert now.holder != before.holder, "it is given back, or taken already"
        until(lambda: standby.leads, "the other takes over")
        now = lease(api, namespace)
        assert now.holder not in ("", before.holder)
        assert now.transitions > before.transitions
        unreadable(api, namespace, "next")
        until(lambda: is_looked_at(api, namespace, "next"), "it serves what comes")
        assert status(api, namespace, "chat")["operator"] == f"{namespace}/operator"


def test_a_leader_that_was_frozen_finds_that_it_is_none_any_more_and_ends(server: ApiServer, api: client.ApiClient, namespace: str):
    with replica(server, namespace) as first, replica(server, namespace) as second:
        leader, standby = leading(first, second, api, namespace)
        unreadable(api, namespace, "chat")
        until(lambda: is_looked_at(api, namespace, "chat"), "the leader looks at it")
        leader.send(signal.SIGSTOP)
        until(lambda: standby.leads, "the other takes over")
        leader.send(signal.SIGCONT)
        assert leader.ends() == 1
        assert standby.leads


def test_who_stands_by_ends_at_once_and_cleanly(server: ApiServer, api: client.ApiClient, namespace: str):
    with replica(server, namespace) as first, replica(server, namespace) as second:
        leader, standby = leading(first, second, api, namespace)
        standby.send(signal.SIGTERM)
        assert standby.ends() == 0
        assert leader.leads


def events(api: client.ApiClient, namespace: str) -> list[tuple[str, str]]:
    return [(e.reason, e.involved_object.name) for e in client.CoreV1Api(api).list_namespaced_event(namespace).items]


def test_two_releases_do_not_fight_and_the_second_takes_over_when_the_first_is_gone(
    server: ApiServer, api: client.ApiClient, namespace: str
):
    with replica(server, namespace, "old") as old, replica(server, namespace, "new", OPERATOR_CLASS="canary") as canary:
        unreadable(api, namespace, "chat")
        unreadable(api, namespace, "trial", operatorClass="canary")
        until(lambda: is_looked_at(api, namespace, "chat") and is_looked_at(api, namespace, "trial"), "each looks at its own")
        assert status(api, namespace, "chat")["operator"] == f"{namespace}/old"
        assert status(api, namespace, "trial")["operator"] == f"{namespace}/new"
        assert old.leads
        assert canary.leads
        with replica(server, namespace, "second") as second:
            until(lambda: second.leads, "it leads its own Lease")
            until(lambda: ("ServedByAnother", "chat") in events(api, namespace), "it says that it leaves the resource alone")
            assert status(api, namespace, "chat")["operator"] == f"{namespace}/old"
            assert ("ServedByAnother", "trial") not in events(api, namespace), "another class is not its business"
            old.send(signal.SIGKILL)
            old.ends()
            until(lambda: status(api, namespace, "chat")["operator"] == f"{namespace}/second", "it takes over")


def test_a_resource_goes_to_the_operator_of_its_new_class_at_once(server: ApiServer, api: client.ApiClient, namespace: str):
    with replica(server, namespace, "old"), replica(server, namespace, "new", OPERATOR_CLASS="canary"):
        unreadable(api, namespace, "chat")
        until(lambda: status(api, namespace, "chat").get("operator") == f"{namespace}/old", "claimed")
        client.CustomObjectsApi(api).patch_namespaced_custom_object(
            "splitinference.dev", "v1alpha1", namespace, "splitinferences", "chat", {"spec": {"operatorClass": "canary"}}
        )
        until(lambda: status(api, namespace, "chat").get("operator") == f"{namespace}/new", "handed over while both live")
