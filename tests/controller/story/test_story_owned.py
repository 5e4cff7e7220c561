"""Stories of objects that others delete or change while a model is served, and of nodes that are drained."""

import pytest

from splitinference.controller.ports import Manifest
from tests.controller.stories import busy_node, reasons, serving, small
from tests.controller.world import NAMESPACE

OWNED = [
    ("Service", "chat-gateway"),
    ("Role", "chat-gateway"),
    ("RoleBinding", "chat-gateway"),
    ("ServiceAccount", "chat-gateway"),
    ("Deployment", "chat-gateway"),
    ("PodDisruptionBudget", "chat-gateway"),
]


@pytest.mark.parametrize(("kind", "name"), OWNED)
def test_what_is_deleted_is_made_again_and_the_resource_is_not_ready_meanwhile(kind, name):
    world, operator = serving()
    before = world.serving()
    del world.objects[kind, NAMESPACE, name]
    again = operator.look().again_seconds
    assert (kind, NAMESPACE, name) in world.objects
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "ObjectsMissing")
    assert f"{kind} {name} was missing" in ready["message"]
    assert again == 1.0
    world.step(1)
    operator.run(2)
    assert world.condition("Ready")["status"] == "True"
    assert world.serving() == before


def test_what_is_changed_is_put_right():
    world, operator = serving()
    world.objects["Role", NAMESPACE, "chat-gateway"]["rules"] = []
    operator.look()
    assert world.objects["Role", NAMESPACE, "chat-gateway"]["rules"]
    assert "Role chat-gateway was changed (rules)" in world.condition("Ready")["message"]


def test_a_segments_service_and_budget_are_kept_too():
    world, operator = serving()
    segment = world.segments()[0]
    del world.objects["Service", NAMESPACE, segment]
    del world.objects["PodDisruptionBudget", NAMESPACE, "chat-segments"]
    operator.look()
    assert ("Service", NAMESPACE, segment) in world.objects
    assert f"Service {segment} was missing" in world.condition("Ready")["message"]
    assert ("PodDisruptionBudget", NAMESPACE, "chat-segments") in world.objects
    operator.look()
    world.objects["Service", NAMESPACE, segment]["spec"]["selector"] = {"x": "y"}
    operator.look()
    assert world.objects["Service", NAMESPACE, segment]["spec"]["selector"] != {"x": "y"}


def test_a_service_that_is_deleted_during_a_move_is_made_again_at_once():
    world, operator = serving()
    world.stuck.update({f"chat-{i}" for i in range(1)})
    node = busy_node(world)
    world.nodes[node]["spec"]["unschedulable"] = True
    operator.look()
    assert world.condition("Progressing")["status"] == "True"
    del world.objects["Service", NAMESPACE, "chat-gateway"]
    operator.look()
    assert ("Service", NAMESPACE, "chat-gateway") in world.objects


def test_at_rest_nothing_is_written():
    world, operator = serving()
    operator.run(2)
    writes = len(world.writes)
    operator.run(5)
    assert [write for write in world.writes[writes:] if not write.startswith("status")] == []


# --- drains --------------------------------------------------------------------------------------------------------------------------


def may_evict(world, pod: str) -> bool:  # type: ignore[no-untyped-def]
    """What the eviction API would say: a budget that selects the pod lets it go only if enough others are ready."""
    found = world.objects["Pod", NAMESPACE, pod]
    for (kind, _, _), budget in world.objects.items():
        if kind != "PodDisruptionBudget":
            continue
        selector = budget["spec"]["selector"]

        def selected(other, selector=selector) -> bool:  # type: ignore[no-untyped-def]
            labels = other["metadata"]["labels"]
            names = [e["values"] for e in selector.get("matchExpressions", [])]
            equal = selector["matchLabels"].items() <= labels.items()
            return equal and all(labels.get("splitinference.dev/segment") in values for values in names)

        if not selected(found):
            continue
        ready = [p for (k, _, _), p in world.objects.items() if k == "Pod" and selected(p) and not p["metadata"].get("deletionTimestamp")]
        if len(ready) - 1 < budget["spec"]["minAvailable"]:
            return False
    return True


@pytest.mark.parametrize(
    "taint",
    [
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"},
        {"key": "DeletionCandidateOfClusterAutoscaler", "effect": "PreferNoSchedule"},
        {"key": "aws-node-termination-handler/spot-itn", "effect": "NoExecute"},
        {"key": "cloud.google.com/impending-node-termination", "effect": "NoSchedule"},
    ],
    ids=lambda taint: taint["key"],
)
def test_a_node_that_announces_that_it_leaves_is_moved_from_before_anything_is_evicted(taint):
    """Even where everything is tolerated, and with the route whole all the time."""
    everything = {"tolerations": [{"operator": "Exists"}]}
    world, operator = serving(small("a", "b", "c"), placement=everything)
    node = next(s["node"] for s in world.status()["plan"]["segments"] if s["node"] != world.gateway_node())
    victim = next(s["name"] for s in world.status()["plan"]["segments"] if s["node"] == node)
    assert not may_evict(world, victim)
    world.nodes[node]["spec"]["taints"] = [taint]
    moved = False
    for _ in range(10):
        operator.run(1, seconds=2.0)
        if victim in world.serving():
            assert not may_evict(world, victim), "a drain waits while it serves"
        else:
            moved = True
            assert victim not in world.segments() or may_evict(world, victim), "a drain need not wait any more"
        assert world.condition("Ready")["status"] == "True"
    assert moved
    assert reasons(world)[0] == "NodeLost"
    assert f"about to leave, by its taint {taint['key']}" in world.status()["decisions"][0]["message"]


def test_the_gateway_leaves_a_cordoned_node_before_its_pod_is_evicted():
    world, operator = serving(small("a", "b", "c"))
    node = world.gateway_node()
    (old,) = [key[2] for key in world.objects if key[0] == "Pod" and key[2].startswith("chat-gateway-")]
    assert not may_evict(world, old)
    world.nodes[node]["spec"]["unschedulable"] = True
    operator.run(12)
    annotations = world.objects["Deployment", NAMESPACE, "chat-gateway"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["splitinference.dev/left"], "its Deployment makes another pod"
    assert world.condition("Ready")["status"] == "True"
    world.nodes[node]["spec"].pop("unschedulable")


def test_the_budgets_name_what_serves():
    world, _ = serving(small("a", "b", "c"))
    budgets = [key for key in world.objects if key[0] == "PodDisruptionBudget"]
    assert sorted(name for _, _, name in budgets) == ["chat-gateway", "chat-segments"]
    spec = world.objects["PodDisruptionBudget", NAMESPACE, "chat-segments"]["spec"]
    assert spec["minAvailable"] == len(world.serving())
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_a_webhook_that_changes_the_services_of_segments_is_not_fought(monkeypatch: pytest.MonkeyPatch):
    """It changes each write of ours: to put that right would be changed again, for ever, at each pass."""
    world, operator = serving()
    apply = world.apply

    def changing(manifest: Manifest) -> None:
        if manifest["kind"] == "Service":
            manifest = {**manifest, "spec": {**manifest["spec"], "type": "NodePort"}}
        apply(manifest)

    monkeypatch.setattr(world, "apply", changing)
    names = world.serving()
    for name in names:
        world.objects["Service", NAMESPACE, name]["spec"]["type"] = "NodePort"
    operator.run(3)
    world.writes.clear()
    operator.run(3)
    assert [written for written in world.writes if "Service" in written] == []
    assert world.condition("Ready")["status"] == "True"
    del world.objects["Service", NAMESPACE, names[0]]
    operator.look()
    assert ("Service", NAMESPACE, names[0]) in world.objects, "what is missing is made again all the same"
