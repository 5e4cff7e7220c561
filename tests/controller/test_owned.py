"""Objects that others delete or change are put right, without a quarrel with what else writes to them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.reconcile.upkeep.object_keeper import Keeper, difference
from splitinference.settings import Settings
from tests.controller.manifests.built import a_profile, a_resource
from tests.controller.objects import parsed

OBJECTS = list(Manifests(Settings(network_policies=True)).gateway(parsed(a_resource()), a_profile()))


def as_the_api_server_has_it(manifest: Any) -> dict[str, Any]:
    """With defaults filled in, empty fields left out, and quantities in their shortest form."""
    made: dict[str, Any] = copy.deepcopy(dict(manifest))
    made["metadata"] |= {"uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"}
    made["metadata"]["annotations"] = {**(made["metadata"].get("annotations") or {}), "deployment.kubernetes.io/revision": "3"}
    if made["kind"] == "Service":
        made["spec"] |= {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4"], "sessionAffinity": "None"}
        made["spec"]["ports"] = [{**port, "protocol": "TCP"} for port in made["spec"]["ports"]]
    if made["kind"] == "Deployment":
        pod = made["spec"]["template"]["spec"]
        pod |= {"dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler"}
        pod = {key: value for key, value in pod.items() if value not in ([], {}, "")}
        pod["containers"][0]["resources"]["requests"]["cpu"] = "0.05"
        made["spec"]["template"]["spec"] = pod
        made["status"] = {"readyReplicas": 1}
    return made


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda obj: obj["kind"])
def test_what_the_api_server_adds_is_no_difference(manifest):
    assert difference(manifest, as_the_api_server_has_it(manifest)) == ""


@pytest.mark.parametrize(
    ("kind", "change", "where"),
    [
        ("Service", lambda o: o["spec"]["ports"].pop(), "spec.ports"),
        (
            "Service",
            lambda o: o["spec"]["selector"].update({"app.kubernetes.io/instance": "other"}),
            "spec.selector.app.kubernetes.io/instance",
        ),
        ("Role", lambda o: o["rules"][0]["verbs"].remove("watch"), "rules[0].verbs"),
        ("RoleBinding", lambda o: o["subjects"].clear(), "subjects"),
        ("NetworkPolicy", lambda o: o["spec"]["ingress"].append({}), "spec.ingress"),
        ("ServiceAccount", lambda o: o["metadata"]["ownerReferences"].clear(), "metadata.ownerReferences"),
        ("PodDisruptionBudget", lambda o: o["spec"].update(minAvailable=0), "spec.minAvailable"),
        ("Deployment", lambda o: o["spec"].update(replicas=0), "spec.replicas"),
    ],
)
def test_what_others_change_is_named(kind, change, where):
    manifest = next(obj for obj in OBJECTS if obj["kind"] == kind)
    there = as_the_api_server_has_it(manifest)
    change(there)
    assert difference(manifest, there) == where


@dataclass
class Cluster:
    """A cluster with one webhook, if any, that changes what is written."""

    objects: dict[tuple[str, str], Any] = field(default_factory=dict)
    webhook: Any = None
    writes: int = 0

    def owned(self, kind: str, _: str, __: str) -> Sequence[Any]:
        return [obj for (of_kind, _), obj in self.objects.items() if of_kind == kind]

    def apply(self, manifest: Any) -> None:
        self.writes += 1
        made = as_the_api_server_has_it(manifest)
        if self.webhook:
            self.webhook(made)
        self.objects[manifest["kind"], manifest["metadata"]["name"]] = made


def test_each_deleted_object_is_made_again_and_said():
    cluster, keeper = Cluster(), Keeper()
    keeper.keep(cluster, OBJECTS)  # type: ignore[arg-type]
    assert keeper.keep(cluster, OBJECTS) == ()  # type: ignore[arg-type]
    for manifest in OBJECTS:
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        del cluster.objects[kind, name]
        assert keeper.keep(cluster, OBJECTS) == (f"{kind} {name} was missing and is created again",)  # type: ignore[arg-type]
        assert (kind, name) in cluster.objects
    writes = cluster.writes
    for _ in range(5):
        assert keeper.keep(cluster, OBJECTS) == ()  # type: ignore[arg-type]
    assert cluster.writes == writes, "at rest nothing is written"


def test_a_webhook_that_changes_an_object_is_not_fought():
    def more_replicas(obj: Any) -> None:
        if obj["kind"] == "Deployment":
            obj["spec"]["replicas"] = 9

    cluster, keeper = Cluster(webhook=more_replicas), Keeper()
    for _ in range(10):
        keeper.keep(cluster, OBJECTS)  # type: ignore[arg-type]
    assert cluster.writes == len(OBJECTS)
    changed = copy.deepcopy(cluster.objects["Service", "chat-gateway"])
    changed["spec"]["ports"] = []
    cluster.objects["Service", "chat-gateway"] = changed
    assert keeper.keep(cluster, OBJECTS) == ("Service chat-gateway was changed (spec.ports) and is created again",)  # type: ignore[arg-type]


def test_a_keeper_forgets_what_is_wanted_no_longer():
    """Segments come and go for as long as the operator runs."""
    keeper, cluster = Keeper(), Cluster()
    kind = next(found for found in OBJECTS if found["kind"] == "Service")
    for number in range(5):
        one = {**kind, "metadata": {**kind["metadata"], "name": f"segment-{number}"}}
        keeper.keep(cluster, [one])
    assert len(keeper._applied) == 1
