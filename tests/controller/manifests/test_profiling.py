"""Reading a model that only nodes have: which pods are made, when their word is taken, and what is said when nobody could."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.api.spec import Resource, read_resource
from splitinference.controller.cluster_state.node_capacity import NOBODY, ground_of
from splitinference.controller.manifests import profile_pod
from splitinference.controller.manifests.profile_pod import ANY_NODE, Failed, Start, Step, Take, Wait, next_step
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.values.problem import Constraints
from splitinference.settings import Settings
from tests.controller import kubelet
from tests.controller.manifests.built import CLAIM, a_resource
from tests.core.planning import a_problem

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SETTINGS = Settings(profile_seconds=60, profile_retry_seconds=120)


def resource(**spec: Any) -> Resource:
    read = read_resource(a_resource(**spec))
    assert isinstance(read, Resource)
    return read


def a_node(name: str, ready: bool = True, taints: tuple[dict[str, str], ...] = (), **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": list(taints)},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def a_pod(on: str, phase: str, seconds_ago: float = 5, message: str = "", of: Resource | None = None) -> dict[str, Any]:
    created = (NOW - timedelta(seconds=seconds_ago)).isoformat().replace("+00:00", "Z")
    states = [{"name": "profile", "state": {"terminated": {"message": message}}}] if message else []
    name = profile_pod.pod_name(of or resource(), on, SETTINGS)
    return {"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": phase, "containerStatuses": states}}


NODES = [a_node(name) for name in ("a", "b", "c", "d")]


def step(*pods: dict[str, Any], nodes: list[dict[str, Any]] = NODES, of: Resource | None = None) -> Step:
    return next_step(of or resource(), pods, nodes, NOW, SETTINGS)


def test_a_few_nodes_are_asked_at_once():
    assert step() == Start(("a", "b", "c"))


def test_while_they_read_nothing_is_done():
    waiting = step(*[a_pod(node, "Pending") for node in "abc"])
    assert isinstance(waiting, Wait)
    assert "/models/m" in waiting.message


def test_the_next_node_takes_the_place_of_one_that_does_not_have_it():
    assert step(a_pod("a", "Pending"), a_pod("b", "Failed"), a_pod("c", "Running")) == Start(("d",))


def test_the_first_that_read_it_is_taken():
    pods = [a_pod("a", "Failed"), a_pod("b", "Succeeded"), a_pod("c", "Pending")]
    assert step(*pods) == Take(pods[1]["metadata"]["name"])


def test_when_nobody_could_it_says_why_for_each_and_asks_again_later():
    early = step(*[a_pod(node, "Failed", 60, message=f"noise\nno config.json on {node}") for node in "abcd"])
    assert isinstance(early, Failed)
    assert not early.again
    assert "a: no config.json on a; b: no config.json on b" in early.message
    late = step(*[a_pod(node, "Failed", 121) for node in "abcd"])
    assert isinstance(late, Failed)
    assert len(late.again) == 4


def test_a_pod_that_no_kubelet_took_is_given_up():
    pod = a_pod("a", "Pending", 100)
    pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available"}]
    failed = step(pod, nodes=[a_node("a")])
    assert isinstance(failed, Failed)
    assert "0/1 nodes are available" in failed.message


def test_a_folder_that_a_node_does_not_have_shows_as_a_deadline():
    pod = a_pod("a", "Failed")
    pod["status"]["reason"] = "DeadlineExceeded"
    failed = step(pod, nodes=[a_node("a")])
    assert isinstance(failed, Failed)
    assert "no such folder" in failed.message


def test_only_nodes_that_may_run_segments_are_asked():
    taint = {"key": "control-plane", "effect": "NoSchedule"}
    nodes = [a_node("a", ready=False, pool="x"), a_node("b", taints=(taint,), pool="x"), a_node("c", pool="y"), a_node("d", pool="x")]
    selected = {"nodeSelector": {"pool": "x"}}
    assert step(nodes=nodes, of=resource(placement=selected)) == Start(("d",))
    tolerant = selected | {"tolerations": [{"key": "control-plane", "operator": "Exists", "effect": "NoSchedule"}]}
    assert step(nodes=nodes, of=resource(placement=tolerant)) == Start(("b", "d"))


def test_no_node_at_all_is_said():
    failed = step(nodes=[])
    assert isinstance(failed, Failed)
    assert "spec.placement" in failed.message


def test_a_claim_is_read_wherever_the_scheduler_can():
    claimed = resource(model=CLAIM)
    assert step(of=claimed) == Start((ANY_NODE,))
    pod = profile_pod.profile_pod(claimed, ANY_NODE, SETTINGS)
    (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert {e["key"] for e in term["matchExpressions"]} == {"kubernetes.io/os", "kubernetes.io/arch"}
    assert isinstance(step(a_pod(ANY_NODE, "Running", of=claimed), of=claimed), Wait)


def test_the_pod_is_short_lived_restricted_and_told_the_users_path():
    pod = profile_pod.profile_pod(resource(), "a", SETTINGS)
    assert pod["spec"]["activeDeadlineSeconds"] == 60 + 20, "and for the digests"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
    assert pod["spec"]["containers"][0]["command"][5] == "/models/m"
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "profile"


def test_what_is_kept_is_kept_for_its_source_alone():
    kept = profile_pod.cache_object(resource(), profile_pod.pack({"a": 1}, {}))
    assert profile_pod.cached(resource(), kept) is not None
    assert profile_pod.cached(resource(model=CLAIM), kept) is None
    assert profile_pod.cached(resource(adaptation={"mode": "Frozen"}), kept) is not None


@pytest.mark.parametrize("damaged", ["", "!", "aGVsbG8=", profile_pod.pack({}, {})[:-8]])
def test_what_is_damaged_is_not_unpacked(damaged):
    assert profile_pod.unpack(damaged) is None


# --- pods as real clusters make them -------------------------------------------------------------------------------------------------


def with_sidecar(on: str, ended: dict[str, Any] | None, phase: str = "Running") -> dict[str, Any]:
    pod = a_pod(on, phase)
    own = kubelet.status("profile", {"terminated": ended} if ended else kubelet.RUNNING)
    pod["status"]["containerStatuses"] = [kubelet.MESH, own]
    return pod


def test_a_sidecar_that_runs_on_does_not_keep_what_was_read_from_being_taken():
    pod = with_sidecar("a", {"exitCode": 0, "reason": "Completed"})
    assert step(pod) == Take(pod["metadata"]["name"])


def test_our_own_container_says_why_it_failed_wherever_it_stands():
    pods = [with_sidecar(node, {"exitCode": 1, "reason": "Error", "message": "no config.json in /models/m"}) for node in "abcd"]
    failed = step(*pods)
    assert isinstance(failed, Failed)
    assert "a: no config.json in /models/m" in failed.message


def test_what_hinders_a_reading_pod_is_said_while_it_waits():
    pods = [a_pod(node, "Pending") for node in "abc"]
    pods[0]["status"]["containerStatuses"] = [kubelet.REGISTRY_DOWN | {"name": "profile"}]
    waiting = step(*pods)
    assert isinstance(waiting, Wait)
    assert "connection refused" in waiting.message


def test_a_model_is_not_read_on_machines_that_the_image_does_not_run_on():
    arm = a_node("a", **{"kubernetes.io/arch": "arm64"})
    windows = a_node("b", **{"kubernetes.io/os": "windows", "kubernetes.io/arch": "amd64"})
    assert step(nodes=[arm, windows, a_node("c", **{"kubernetes.io/arch": "amd64"})]) == Start(("c",))


TAINTS: list[dict[str, Any]] = [
    {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
    {"key": "gpu", "effect": "NoExecute"},
    {"key": "gpu", "value": "yes", "effect": "PreferNoSchedule"},
    {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
]
TOLERATIONS: list[list[dict[str, str]]] = [
    [],
    [{"key": "gpu", "operator": "Exists"}],
    [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    [{"key": "gpu", "value": "yes"}],
    [{"key": "gpu", "value": "no"}],
    [{"operator": "Exists"}],
]


@pytest.mark.parametrize("tolerations", TOLERATIONS, ids=str)
@pytest.mark.parametrize("taint", [*TAINTS, None], ids=str)
def test_a_model_is_read_on_the_nodes_that_the_planner_may_use_and_on_no_others(taint: dict[str, Any] | None, tolerations: Any):
    asked = resource(placement={"tolerations": tolerations})
    node = a_node("a", taints=(taint,) if taint else ())
    node["spec"]["unschedulable"] = taint is None
    node["status"]["allocatable"] = {"cpu": "8", "memory": "8Gi", "pods": "10"}
    problem = a_problem(ground_of(node, (), NOBODY, Settings()).node)
    problem = problem.model_copy(update={"constraints": Constraints(tolerations=plan_constraints.tolerations(asked.spec))})
    planned = unusable(problem.snapshot.nodes[0], problem) is None
    assert (profile_pod.candidates(asked, [node], Settings()) == ("a",)) is planned


ROOT = "sha256:" + "5" * 64


def test_another_digest_is_asked_of_another_reading():
    plain, asked = resource(), resource(model={**a_resource()["spec"]["model"], "digest": ROOT})
    assert profile_pod.cache_name(plain) != profile_pod.cache_name(asked)
    command = profile_pod.profile_pod(asked, "a", SETTINGS)["spec"]["containers"][0]["command"]
    assert command[-4:] == ["20", ROOT, "Auto", ""]
    assert profile_pod.profile_pod(plain, "a", SETTINGS)["spec"]["containers"][0]["command"][-4:] == ["20", "", "Auto", ""]
    assert profile_pod.deadline_seconds(asked, SETTINGS) > 3600


def test_a_node_with_another_model_does_not_end_the_search_and_is_said_in_the_end():
    why = f"ModelDigestMismatch: the model's digest is sha256:{'6' * 64}, expected {ROOT}"
    assert isinstance(step(a_pod("a", "Failed", message=why)), Start)
    everywhere = step(*[a_pod(node, "Failed", message=why) for node in "abcd"])
    assert isinstance(everywhere, Failed)
    assert everywhere.mismatch
    assert f"a: {why}" in everywhere.message
    assert not step(*[a_pod(node, "Failed", message="no such folder") for node in "abcd"]).mismatch  # type: ignore[union-attr]
