"""The operator as a process, against a real API server: woken within a second, no traces of its own on the resource, and a clean end."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.cli.bench.control.control_plane import free_port
from splitinference.controller.manifests.pod_parts import labels
from tests.integration.conftest import a_resource, delete_resource
from tests.waiting import until

RESYNC_SECONDS = 60


@dataclass
class Operator:
    """The process, and what it says of itself."""

    process: "subprocess.Popen[bytes]"
    metrics_port: int
    health_port: int
    log: Path

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def passes(self, ended: str = "") -> float:
        """Passes so far; those that ended in this way."""
        found = [line for line in self.get(self.metrics_port, "/metrics").splitlines() if line.startswith("splitinference_passes_total")]
        return sum(float(line.split()[-1]) for line in found if not ended or f'ended="{ended}"' in line)

    def over(self) -> str | None:
        """What it said at its end; None while it runs."""
        code = self.process.poll()
        return None if code is None else f"the operator ended with {code}:\n{self.log.read_text()[-3000:]}"

    def waits(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        """Wait, unless it has ended."""
        until(holds, seconds, what, ended=self.over)


@pytest.fixture
def operator(kubeconfig: str, api: client.ApiClient, namespace: str, tmp_path: Path) -> Iterator[Operator]:
    """Looks again only once a minute by itself, so that what happens sooner is because it was woken."""
    metrics_port, health_port = free_port(), free_port()
    settings = {
        "NAMESPACES": namespace,
        "OPERATOR_NAMESPACE": namespace,
        "RESYNC_SECONDS": str(RESYNC_SECONDS),
        "METRICS_PORT": str(metrics_port),
        "HEALTH_PORT": str(health_port),
        "ALLOWED_HOST_PATHS": '["/models"]',
    }
    environment = {**os.environ, "KUBECONFIG": kubeconfig} | {f"SPLITINFERENCE_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-W", "ignore", "-m", "splitinference"]
    log = tmp_path / "operator.log"  # a pipe that nobody reads would stop it when it is full
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=environment, stderr=said)
    found = Operator(process, metrics_port, health_port, log)
    try:
        found.waits(lambda: found.get(health_port, "/healthz") != "", 15, "the operator is healthy")
        yield found
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def quiet(operator: Operator) -> float:
    """Passes so far, once none followed for a while."""
    before, since = operator.passes(), time.monotonic()
    while time.monotonic() - since < 3:
        time.sleep(0.2)
        if (now := operator.passes()) != before:
            before, since = now, time.monotonic()
    return before


def unreadable(namespace: str) -> dict[str, Any]:
    """A resource whose model is on no node: nothing is made for it but conditions."""
    return a_resource(namespace, placement={"nodeSelector": {"no-such": "label"}})


def test_from_apply_to_a_word_about_it_and_to_its_end(operator: Operator, cluster: KubeCluster, api: client.ApiClient, namespace: str):
    cluster.create(unreadable(namespace))

    def conditions() -> dict[str, Any]:
        found = cluster.split_inference(namespace, "chat") or {}
        return {c["type"]: c for c in (found.get("status") or {}).get("conditions") or ()}

    operator.waits(lambda: "Accepted" in conditions(), 10, "the status says something")
    assert conditions()["Accepted"]["status"] == "False"
    assert "no node is ready and matches spec.placement" in conditions()["Accepted"]["message"]
    assert conditions()["Ready"]["status"] == "False"
    found = cluster.split_inference(namespace, "chat")
    assert found is not None
    assert "finalizers" not in found["metadata"], "nothing keeps a resource from being deleted when the operator is away"
    assert "annotations" not in found["metadata"]

    delete_resource(api, namespace)
    until(lambda: cluster.split_inference(namespace, "chat") is None, 5, "the resource is gone")
    operator.waits(lambda: operator.passes("gone") > 0, 5, "the last pass")
    quiet(operator)
    assert operator.passes("gone") == 1, "its loop has ended"


def test_changes_wake_a_pass_long_before_it_would_look_by_itself(
    operator: Operator, cluster: KubeCluster, api: client.ApiClient, namespace: str
):
    cluster.create(unreadable(namespace))
    operator.waits(lambda: operator.passes() > 0, 10, "the first pass")
    core = client.CoreV1Api(api)

    def change_the_resource() -> None:
        where = ("splitinference.dev", "v1alpha1", namespace, "splitinferences", "chat")
        client.CustomObjectsApi(api).patch_namespaced_custom_object(*where, {"spec": {"workload": {"promptTokens": 7}}})

    def make_a_pod() -> None:
        container = {"name": "c", "image": "none"}
        metadata = {"name": "of-ours", "namespace": namespace, "labels": labels("chat", "segment")}
        # Bound to a node that is not there: no kubelet touches it.
        cluster.create(
            {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], "nodeName": "nowhere"}}
        )

    def delete_the_pod() -> None:
        core.delete_namespaced_pod("of-ours", namespace, grace_period_seconds=0)

    def make_a_node() -> None:
        core.create_node({"metadata": {"name": f"node-of-{namespace}"}})

    def label_the_node() -> None:
        core.patch_node(f"node-of-{namespace}", {"metadata": {"labels": {"splitinference.dev/compute-gflops": "7"}}})

    try:
        for change in (change_the_resource, make_a_pod, delete_the_pod, make_a_node, label_the_node):
            before = quiet(operator)
            change()
            # On a busy machine that may take longer than to the next look unasked; on an idle one it does not.
            operator.waits(lambda before=before: operator.passes() > before, RESYNC_SECONDS / 6, change.__name__)  # type: ignore[misc]
    finally:
        core.delete_node(f"node-of-{namespace}")


def test_what_the_operator_writes_itself_does_not_wake_it(operator: Operator, cluster: KubeCluster, namespace: str):
    cluster.create(unreadable(namespace))
    operator.waits(lambda: operator.passes() > 0, 10, "the first pass")

    def stays_quiet(number: int) -> bool:
        before = quiet(operator)
        cluster.patch_status(namespace, "chat", {"latency": f"{number}s"})
        return quiet(operator) == before

    # It may look again for another reason, once; but not each time.
    assert any(stays_quiet(number) for number in range(1, 6))


def test_it_ends_when_told_to_and_says_nothing_went_wrong(operator: Operator, cluster: KubeCluster, namespace: str):
    cluster.create(unreadable(namespace))
    operator.waits(lambda: operator.passes() > 0, 10, "the first pass")
    operator.process.send_signal(signal.SIGTERM)
    until(lambda: operator.over() is not None, 30, "it ends")
    assert operator.process.returncode == 0, operator.over()
    assert "Traceback" not in operator.log.read_text()


def test_wrong_settings_are_named(kubeconfig: str):
    environment = {**os.environ, "KUBECONFIG": kubeconfig, "SPLITINFERENCE_RESYNC_SECONDS": "soon", "SPLITINFERENCE_QUERY_SET": "guess"}
    done = subprocess.run(
        [sys.executable, "-m", "splitinference"], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 2
    assert "SPLITINFERENCE_RESYNC_SECONDS" in done.stderr
    assert "SPLITINFERENCE_QUERY_SET" in done.stderr


def test_no_cluster_is_said_in_one_sentence(tmp_path):
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "none"), "SPLITINFERENCE_METRICS_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-m", "splitinference"], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 1
    assert "not in a cluster, and there is no usable kubeconfig" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_resource_gets_its_certificates_and_one_that_was_deleted_comes_back(
    cluster: KubeCluster, api: client.ApiClient, namespace: str, operator: Operator
):
    cluster.create(a_resource(namespace))
    names = ("chat-segment-tls", "chat-gateway-tls")
    until(lambda: all(cluster.get("Secret", namespace, name) for name in names), 10, "the Secrets are there", ended=operator.over)
    made = cluster.get("Secret", namespace, "chat-segment-tls")
    assert made is not None
    assert cluster.get("Secret", namespace, "splitinference-root-key") is not None
    core = client.CoreV1Api(api)
    core.delete_namespaced_secret("chat-segment-tls", namespace)
    # A pod of the resource that waits to start: nothing else tells the operator, which cannot read Secrets.
    # The cluster may collect it, as its node does not exist, so each look makes it again or changes it: both wake a pass.
    container = {"name": "segment", "image": "none"}

    def wake() -> None:
        about = {"name": "waits", "labels": labels("chat", "segment"), "annotations": {"time": str(time.monotonic())}}
        try:
            core.patch_namespaced_pod("waits", namespace, {"metadata": about})
        except client.ApiException as error:
            if error.status != 404:
                raise
            core.create_namespaced_pod(namespace, {"metadata": about, "spec": {"nodeName": "nowhere", "containers": [container]}})

    def back() -> bool:
        wake()
        return cluster.get("Secret", namespace, "chat-segment-tls") is not None

    until(back, 15, "the Secret is there again", ended=operator.over)
    again = cluster.get("Secret", namespace, "chat-segment-tls")
    assert again is not None
    assert again["data"] == made["data"]
