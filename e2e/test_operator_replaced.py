"""The operator goes while it moves a segment, and certificates change while requests run: no request fails, and nothing is lost."""

import base64
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any

import pytest

from e2e import stack
from e2e.cluster import Cluster, faults
from e2e.scene import NAME, OURS, Scene, disturbed
from e2e.traffic import STEADY

pytestmark = pytest.mark.cluster

LEASE = "splitinference-operator"
LEASE_SECONDS = 15.0
"""Within this a standby takes over, on a machine that has a processor for it; on a busy one PATIENCE times that."""
ROOT_KEY = "splitinference-root-key"
MOUNTED = "/var/run/splitinference/tls"
Play = Callable[[str], AbstractContextManager[Scene]]


@pytest.fixture
def play(serving: Cluster) -> Iterator[Play]:
    """Clients ask all the time, and none of their requests fails. The sample may have been deleted by a test before.

    Its mode is Frozen meanwhile: what moves then, must. A better plan would be a move that the test did not cause, and a stabilization
    window of an earlier test would have to be waited for, up to ten minutes.
    """
    stack.apply_sample(serving)
    stack.wait_ready(serving, NAME)
    _mode(serving, "Frozen")

    @contextmanager
    def playing(what: str) -> Iterator[Scene]:
        try:
            with stack.endpoint(serving, NAME) as base_url, disturbed(serving, base_url, STEADY) as scene:
                yield scene
        except stack.NotInTimeError as error:
            raise stack.NotInTimeError("\n".join([f"{what}: {error}", *stack.circumstances(serving, NAME)])) from error
        report = scene.traffic.report()
        gap = f"longest gap between tokens {report.longest_gap:.1f} s"
        serving.progress.say(f"{what}: {len(report.failed)} of {len(report.requests)} requests failed, {gap}")
        assert [request.error for request in report.failed] == []

    yield playing
    _mode(serving, "Auto")


def _mode(cluster: Cluster, mode: str) -> None:
    """Of the sample's adaptation."""
    cluster.kubectl("patch", "si", NAME, "--type=merge", "-p", json.dumps({"spec": {"adaptation": {"mode": mode}}}))


def lease(cluster: Cluster) -> dict[str, Any]:
    """The spec of the operator's Lease."""
    found: dict[str, Any] = json.loads(cluster.kubectl("-n", stack.SYSTEM, "get", "lease", LEASE, "-o", "json"))["spec"]
    return found


@pytest.mark.timeout(1500)  # each wait ends before that, with its own words
def test_a_leader_that_is_killed_during_a_move_is_replaced_and_the_move_ends(serving: Cluster, play: Play) -> None:
    with play("the leader is killed during a move") as scene:
        left, before = scene.inner_node(), lease(serving)
        serving.kubectl("cordon", left)
        try:
            stack.until(lambda: not stack.settled(scene.found()), 60, "a move begins")
            pod, renewed = before["holderIdentity"].partition("_")[0], lease(serving)["renewTime"]
            node = serving.kubectl("-n", stack.SYSTEM, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}").strip()
            faults.kill_pod(serving.engine(), node, pod)  # a pod that is deleted would give its Lease back
            after = stack.until(lambda: _taken(serving, before), 60, "another replica leads")
            serving.progress.say(f"{after['holderIdentity']} leads")
            scene.leaves(left)
        finally:
            serving.kubectl("uncordon", left)
    took = (datetime.fromisoformat(after["acquireTime"]) - datetime.fromisoformat(renewed)).total_seconds()
    serving.progress.say(f"taken over {took:.1f} s after the leader's last renewal that was seen (wanted {LEASE_SECONDS:g})")
    assert after["leaseTransitions"] > before["leaseTransitions"]
    assert before["leaseDurationSeconds"] < LEASE_SECONDS
    assert took < stack.PATIENCE * LEASE_SECONDS
    assert scene.moves() == 1, "the next leader went on with the move and began no other"
    names = {segment["name"] for segment in scene.found()["status"]["plan"]["segments"]}
    pods = json.loads(serving.kubectl("get", "pods", "-l", f"{OURS},app.kubernetes.io/component=segment", "-o", "json"))["items"]
    assert {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]} == names, "nothing was left behind"


def _taken(cluster: Cluster, before: dict[str, Any]) -> dict[str, Any] | None:
    now = lease(cluster)
    return now if now.get("holderIdentity") not in {"", None, before["holderIdentity"]} else None


@pytest.mark.long
def test_all_certificates_and_the_root_key_are_replaced_while_requests_run(serving: Cluster, play: Play) -> None:
    """In three steps, as docs/concepts/security.md has it: the new key is trusted, then signs, then the old one is forgotten."""
    old = _root_keys(serving)["root.key"]
    new = base64.b64encode(secrets.token_bytes(32)).decode()
    placed = stack.placement(stack.resource(serving, NAME))
    with play("the root key is replaced") as scene:
        for keys in ({"root.key": old, "next.key": new}, {"root.key": new, "previous.key": old}, {"root.key": new}):
            seen = {pod: _mounted(serving, pod) for pod in _pods(serving)}
            _replace(serving, keys)
            for pod, content in seen.items():
                stack.until(lambda pod=pod, content=content: _mounted(serving, pod) != content, 240, f"{pod} has other certificates")  # type: ignore[misc]
            scene.answers()
    assert stack.placement(stack.resource(serving, NAME)) == placed
    assert scene.moves() == 0
    assert _root_keys(serving) == {"root.key": new}


def _pods(cluster: Cluster) -> list[str]:
    """Segments and gateway."""
    words = cluster.kubectl("get", "pods", "-l", f"{OURS},app.kubernetes.io/component in (segment,gateway)", "-o", "name").split()
    return [word.partition("/")[2] for word in words]


def _mounted(cluster: Cluster, pod: str) -> str:
    """The certificates that the pod's programs read; empty while it cannot be asked."""
    return cluster.kubectl("exec", pod, "--", "sh", "-c", f"cat {MOUNTED}/tls.crt {MOUNTED}/ca.crt", check=False)


def _root_keys(cluster: Cluster) -> dict[str, str]:
    found: dict[str, str] = json.loads(cluster.kubectl("-n", stack.SYSTEM, "get", "secret", ROOT_KEY, "-o", "json"))["data"]
    return found


def _replace(cluster: Cluster, keys: dict[str, str]) -> None:
    """These root keys, and no other."""
    content = [{"op": "replace", "path": "/data", "value": keys}]
    cluster.kubectl("-n", stack.SYSTEM, "patch", "secret", ROOT_KEY, "--type=json", "-p", json.dumps(content))
