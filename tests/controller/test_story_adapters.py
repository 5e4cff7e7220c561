"""Adapters come and go while a resource serves: nothing that serves is replaced, and clients may name what all segments have."""

import hashlib
import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from splitinference.controller.api.conditions import stamp
from splitinference.controller.api.spec import Rejected, Spec, read_spec
from splitinference.controller.cluster_state.pods import requested_bytes
from splitinference.controller.reconcile.upkeep.adapters import LATEST
from splitinference.controller.trust.cluster_policy import violations
from splitinference.core.values.profile import LayerKind, Profile
from tests.controller.objects import a_node
from tests.controller.world import MIB, NAMESPACE, SETTINGS, Operator, World, a_body
from tests.core.planning import a_profile

FOLDER = "/models/adapters"
_HALVES = {"allowedSplitPoints": [2], "minSegments": 2}


def profile() -> Profile:
    """Blocks, as adapters change them alone."""
    made = a_profile()
    return made.model_copy(update={"layers": tuple(layer.model_copy(update={"kind": LayerKind.BLOCK}) for layer in made.layers)})


def adapter(name: str, folder: str = "") -> dict[str, Any]:
    return {"name": name, "source": {"hostPath": {"path": f"{FOLDER}/{folder or name}"}}}


def digest(folder: str) -> str:
    return hashlib.sha256(folder.encode()).hexdigest()[:32]


@dataclass
class AdapterWorld(World):
    """Pods that load adapters run for one step; then each segment that they were told of holds the adapter of their folder."""

    broken: dict[str, str] = field(default_factory=dict)
    loaded: list[tuple[str, list[str]]] = field(default_factory=list)

    def _run(self, pod: dict[str, Any]) -> None:
        super()._run(pod)
        if pod["metadata"]["labels"].get("app.kubernetes.io/component") != "loader" or pod["status"]["phase"] != "Running":
            return
        statuses = pod["status"]["containerStatuses"]
        if statuses[0]["name"] != "loader":
            pod["status"]["containerStatuses"] = [{"name": "loader", "restartCount": 0, "state": {"running": {}}}]
            return
        folder = next(volume["hostPath"]["path"] for volume in pod["spec"]["volumes"] if volume["name"] == "model").rpartition("/")[2]
        variables = {entry["name"]: entry.get("value", "") for entry in pod["spec"]["containers"][0]["env"]}
        targets = [hop["segment"] for hop in json.loads(variables["SI_ADAPTER_TARGETS"])]
        self.loaded.append((folder, targets))
        ended: dict[str, Any] = {"finishedAt": stamp(self.now)}
        if folder in self.broken:
            pod["status"]["phase"] = "Failed"
            ended |= {"exitCode": 1, "message": self.broken[folder]}
        else:
            for name in targets:
                self.adapters.setdefault(name, {})[digest(folder)] = MIB
            pod["status"]["phase"] = "Succeeded"
            ended |= {"exitCode": 0, "message": json.dumps({"digest": digest(folder), "rank": 8, "bytes": MIB * len(targets)})}
        statuses[0]["state"] = {"terminated": ended}

    @property
    def named(self) -> dict[str, str]:
        """What the route lets clients name."""
        document = json.loads(self.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
        return {each["name"]: each["digest"] for each in document.get("adapters") or ()}

    @property
    def loaders(self) -> list[dict[str, Any]]:
        found = (p for p in self._all("Pod") if p["metadata"]["labels"].get("app.kubernetes.io/component") == "loader")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def state(self, name: str) -> dict[str, Any]:
        return next((each for each in self.status().get("adapters", []) if each["name"] == name), {})


def served(*adapters: dict[str, Any], nodes: int = 3, memory: int = 8) -> tuple[AdapterWorld, Operator]:
    world = AdapterWorld({f"n{i}": a_node(f"n{i}", mib=400) for i in range(nodes)})
    world.add(a_body(segments={"adapterMemoryMiB": memory}, adapters=list(adapters), partition=_HALVES), profile())
    operator = Operator(world)
    operator.run(8)
    assert world.condition("Ready")["status"] == "True", world.status()
    return world, operator


def uids(world: AdapterWorld) -> dict[str, str]:
    """Of all pods that serve."""
    pods = (world.objects["Pod", NAMESPACE, name] for name in world.segments())
    gateway = (p for p in world._all("Pod") if p["metadata"]["labels"].get("app.kubernetes.io/component") == "gateway")
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in (*pods, *gateway)}


def test_adding_and_removing_an_adapter_replaces_nothing():
    world, operator = served()
    world.now += timedelta(seconds=120)
    before, revision = uids(world), world.status()["plan"]["revision"]
    assert (world.named, world.status().get("adapters"), world.condition("AdaptersReady")) == ({}, None, {})
    world.change(adapters=[adapter("french")])
    operator.run(6)
    assert world.named == {"french": digest("french")}
    assert world.state("french") == {
        "name": "french", "source": world.state("french")["source"], "state": "Serving", "digest": digest("french"), "rank": 8,
        "bytes": 2 * MIB, "serves": True, "segments": "2/2",
    }  # fmt: skip
    assert world.condition("AdaptersReady")["status"] == "True"
    assert world.loaders == [], "they have done their work"
    world.change(adapters=[adapter("french"), adapter("legal")])
    operator.run(6)
    assert set(world.named) == {"french", "legal"}
    world.change(adapters=[adapter("legal")])
    operator.look()
    assert set(world.named) == {"legal"}, "nobody may name it from now on"
    operator.run(4)
    assert [set(held) for held in world.adapters.values()] == [{digest("legal")}] * 2
    world.change(adapters=[])
    operator.run(4)
    assert (world.named, world.status().get("adapters"), world.condition("AdaptersReady")) == ({}, None, {})
    assert all(not held for held in world.adapters.values())
    assert (uids(world), world.status()["plan"]["revision"]) == (before, revision)


def test_a_removed_adapter_stays_in_segments_while_a_sequence_runs_with_it():
    world, operator = served(adapter("french"))
    operator.run(6)
    world.adapters_in_flight = {digest("french"): 1}
    world.change(adapters=[])
    operator.run(3)
    assert world.named == {}
    assert world.state("french")["state"] == "Removing"
    assert all(digest("french") in held for held in world.adapters.values())
    world.adapters_in_flight = {}
    world.now += timedelta(seconds=60)
    operator.run(3)
    assert all(not held for held in world.adapters.values())


def test_the_loader_has_a_certificate_of_its_own_and_only_there_is_a_secret_for_it():
    world, operator = served()
    assert ("Secret", NAMESPACE, "chat-loader-tls") not in world.objects
    world.change(adapters=[adapter("french")])
    operator.look()
    operator.look()
    assert ("Secret", NAMESPACE, "chat-loader-tls") in world.objects
    (pod,) = world.loaders
    assert {volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume} == {"chat-loader-tls"}
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert [mount["readOnly"] for mount in pod["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "model"] == [True]


def test_a_segment_that_lost_its_adapters_is_given_them_again():
    world, operator = served(adapter("french"), adapter("legal"))
    operator.run(6)
    lost, _ = world.segments()
    world.adapters[lost] = {}
    world.objects["Pod", NAMESPACE, lost]["status"]["containerStatuses"][0]["restartCount"] = 1
    world.loaded.clear()
    operator.run(1)
    assert set(world.named) == {"french", "legal"}, "requests wait for a moment, and are not refused"
    assert world.condition("AdaptersReady")["reason"] == "Loading"
    operator.run(6)
    assert sorted(world.loaded) == [("french", [lost]), ("legal", [lost])]
    assert set(world.adapters[lost]) == {digest("french"), digest("legal")}
    assert world.condition("AdaptersReady")["status"] == "True"


def test_an_adapter_that_cannot_be_had_is_said_and_the_rest_goes_on():
    world, operator = served(adapter("french"))
    world.broken["other"] = "the adapter is for another model: it changes block 9, and this model has blocks 0 to 3"
    world.change(adapters=[adapter("french"), adapter("other"), adapter("legal")])
    operator.run(6)
    assert set(world.named) == {"french", "legal"}
    assert world.state("other")["state"] == "Failed"
    condition = world.condition("AdaptersReady")
    assert (condition["status"], condition["reason"]) == ("False", "AdapterFailed")
    assert condition["message"] == f"other: {world.broken['other']}"
    assert world.condition("Ready")["status"] == "True"
    assert [event for event in world.events if event[1] == "AdapterFailed"]
    tried = len([folder for folder, _ in world.loaded if folder == "other"])
    operator.run(4)
    assert len([folder for folder, _ in world.loaded if folder == "other"]) == tried, "not again before its time"
    world.broken.clear()
    world.now += timedelta(seconds=SETTINGS.profile_retry_seconds)
    operator.run(8)
    assert set(world.named) == {"french", "other", "legal"}


def test_another_content_under_the_same_name_takes_over_when_it_is_there():
    world, operator = served(adapter("french", "one"))
    operator.run(6)
    assert world.named == {"french": digest("one")}
    world.change(adapters=[adapter("french", "two")])
    seen = []
    for _ in range(8):
        operator.look()
        seen.append(world.named["french"])
        world.step(5)
    assert seen[0] == digest("one")
    assert seen[-1] == digest("two")
    assert set(seen) == {digest("one"), digest("two")}, "never without one"
    operator.run(3)
    assert all(set(held) == {digest("two")} for held in world.adapters.values())
    world.change(adapters=[adapter("french", "one")])
    operator.run(8)
    assert world.named == {"french": digest("one")}, "and back"


def test_a_new_operator_goes_on_where_the_old_one_was():
    world, operator = served(adapter("french"))
    operator.run(6)
    world.loaded.clear()
    before = uids(world)
    Operator(world).run(4)
    assert (world.loaded, world.named, uids(world)) == ([], {"french": digest("french")}, before)


@pytest.mark.parametrize("arrives", [True, False])
def test_a_new_segment_serves_when_it_has_its_adapters_or_after_a_while(arrives: bool):
    world, operator = served(adapter("french"), nodes=4)
    operator.run(6)
    left = world.status()["plan"]["segments"][1]["node"]
    if not arrives:
        world.broken["french"] = "the folder is not there"
    world.nodes[left]["spec"]["unschedulable"] = True
    world.nodes[left]["spec"]["taints"] = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]
    began, lacked = world.now, []
    for _ in range(60):
        operator.look()
        route = json.loads(world.objects["ConfigMap", NAMESPACE, "chat-route"]["data"]["route.json"])
        assert route["adapters"], "a cutover keeps what clients may name"
        lacked += [hop["segment"] for hop in route["pipelines"][0] if digest("french") not in world.adapters.get(hop["segment"], {})]
        world.step(2)
        if left not in world.status().get("nodes", left) and not world.status().get("transition"):
            break
    assert left not in world.status()["nodes"]
    if arrives:
        assert lacked == []
    else:
        assert lacked, "the model does not wait for an adapter for ever"
        assert world.now - began > LATEST


def test_memory_for_adapters_is_planned():
    with_some, _ = served(memory=8)
    without = AdapterWorld({f"n{i}": a_node(f"n{i}", mib=400) for i in range(3)})
    without.add(a_body(partition=_HALVES), profile())
    Operator(without).run(8)
    held = sum(requested_bytes(with_some.objects["Pod", NAMESPACE, name]) for name in with_some.segments())
    plain = sum(requested_bytes(without.objects["Pod", NAMESPACE, name]) for name in without.segments())
    assert held - plain == pytest.approx(8 * MIB * 1.1, abs=4)
    for name in with_some.segments():
        variables = {
            entry["name"]: entry.get("value") for entry in with_some.objects["Pod", NAMESPACE, name]["spec"]["containers"][0]["env"]
        }
        assert int(variables["SI_ADAPTER_BYTES"]) == 4 * MIB + (1 << 20)
    crowded = AdapterWorld({f"n{i}": a_node(f"n{i}", mib=400) for i in range(3)})
    crowded.add(a_body(segments={"adapterMemoryMiB": 2000}), profile())
    Operator(crowded).run(4)
    assert crowded.condition("Planned")["status"] == "False"


# --- what cannot be -----------------------------------------------------------------------------------------------------------------------

_MODEL = {"id": "m", "source": {"hostPath": {"path": "/m"}}}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"adapters": [adapter("a")]}, "adapters need segments.adapterMemoryMiB"),
        ({"adapters": [adapter("a"), adapter("b"), adapter("a")]}, "adapters has a twice"),
        ({"adapters": [adapter("m")]}, "the model's own name"),
        ({"adapters": [adapter("a,b")]}, "String should match pattern"),
        ({"adapters": [adapter("a")], "verification": {"samplePercent": 1}}, "adapters contradict verification"),
        ({"adapters": [adapter("a")], "model": {**_MODEL, "engine": "LlamaCpp"}}, "adapters need engine Torch"),
        ({"adapters": [{"name": "a", "source": {"hostPath": {"path": "/a/x.gguf"}}}]}, "GGUF adapters are not served"),
        ({"adapters": [{"name": "a", "source": {}}]}, "must have exactly one of"),
    ],
)
def test_what_is_asked_for_wrongly_is_refused(spec: dict[str, Any], says: str):
    memory = {} if says.startswith("adapters need segments") else {"segments": {"adapterMemoryMiB": 8}}
    refused = read_spec({"model": _MODEL, **memory, **spec})
    assert isinstance(refused, Rejected)
    assert says in str(refused)


def test_a_folder_of_nodes_must_be_allowed():
    asked = {"model": _MODEL, "segments": {"adapterMemoryMiB": 8}, "adapters": [adapter("a"), adapter("b", "../../../etc")]}
    spec = read_spec(asked)
    assert isinstance(spec, Spec)
    (broken,) = violations(spec, SETTINGS)
    assert broken.path == "spec.adapters[1].source.hostPath.path"
