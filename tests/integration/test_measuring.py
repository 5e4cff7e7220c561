"""Nodes are measured with a real API server, with the chart's rights alone, in a namespace that admits restricted pods only.

No kubelet runs the pod: the test says in its place what the measurement ended with.
"""

import json
import subprocess
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.adapters.clock import SystemClock
from splitinference.adapters.kubernetes.client import KubeCluster, connect
from splitinference.adapters.kubernetes.own_namespace import OwnNamespace
from splitinference.controller.cluster_state.figures.node_benchmark import MEASURE, STORE
from splitinference.controller.cluster_state.node_capacity import NOBODY, ground_of
from splitinference.controller.ports import Listing, Manifest, RefusedError
from splitinference.controller.reconcile.upkeep.node_measuring import Measuring
from splitinference.settings import Settings
from tests.chart.helm import helm
from tests.controller.cluster_state.figures.measured_nodes import SAID
from tests.integration.conftest import ROOT


@pytest.fixture
def restricted(api: client.ApiClient) -> Iterator[str]:
    """A namespace with Pod Security "restricted"."""
    name = f"measure-{uuid.uuid4().hex[:8]}"
    client.CoreV1Api(api).create_namespace({"metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    yield name
    client.CoreV1Api(api).delete_namespace(name)


@pytest.fixture
def node(api: client.ApiClient) -> Iterator[str]:
    """A node that is ready, as a kubelet would say."""
    core, name = client.CoreV1Api(api), f"measured-{uuid.uuid4().hex[:6]}"
    core.create_node({"metadata": {"name": name}})
    ready = {"type": "Ready", "status": "True", "reason": "Test", "message": "ready", "lastHeartbeatTime": None}
    size = {"cpu": "2", "memory": "2Gi", "pods": "10"}
    core.patch_node_status(name, {"status": {"capacity": size, "allocatable": size, "conditions": [ready]}})
    core.patch_node(name, {"spec": {"taints": None}})
    yield name
    core.delete_node(name)


@pytest.fixture
def operators_own(api: client.ApiClient, kubeconfig: str, restricted: str) -> Iterator[OwnNamespace]:
    """The API as a ServiceAccount with nothing but the chart's rights for measuring sees it."""
    words = ["template", "m", str(ROOT / "charts" / "splitinference"), "-n", restricted, "--set", "watchNamespaces={elsewhere}"]
    text = subprocess.run([helm(), *words], capture_output=True, text=True, check=True, timeout=120).stdout
    rbac, account = client.RbacAuthorizationV1Api(api), ""
    for obj in filter(None, yaml.safe_load_all(text)):
        if obj["metadata"]["name"].endswith("-measure") and obj["kind"] == "Role":
            rbac.create_namespaced_role(restricted, obj)
        if obj["metadata"]["name"].endswith("-measure") and obj["kind"] == "RoleBinding":
            account = obj["subjects"][0]["name"]
            rbac.create_namespaced_role_binding(restricted, obj)
    impersonating = connect(kubeconfig)
    impersonating.set_default_header("Impersonate-User", f"system:serviceaccount:{restricted}:{account}")
    yield OwnNamespace(impersonating, 5.0)
    impersonating.close()


class Watched:
    """What the operator watches, of which only the test's node counts here: there may be others in the cluster."""

    def __init__(self, cluster: KubeCluster, node: str) -> None:
        self._cluster, self._node, self._looks = cluster, node, 0

    def nodes(self) -> Listing:
        return self._listed(node for node in self._cluster.nodes() if node["metadata"]["name"] == self._node)

    def pods(self) -> Listing:
        return self._listed(self._cluster.pods())

    def _listed(self, found: Iterable[Manifest]) -> Listing:
        self._looks += 1
        return Listing(found, (self._looks,))


def test_a_node_is_measured_and_the_figures_are_kept(
    api: client.ApiClient, cluster: KubeCluster, operators_own: OwnNamespace, node: str, restricted: str
):
    core, settings, watched = client.CoreV1Api(api), Settings(operator_namespace=restricted), Watched(cluster, node)
    measuring = Measuring(watched, operators_own, SystemClock(), settings)
    assert measuring.pending(watched.nodes()) == (node,)
    measuring.look()
    (pod,) = operators_own.owned("Pod", restricted, MEASURE)
    measuring.look()
    assert len(operators_own.owned("Pod", restricted, MEASURE)) == 1, "it is made once"
    ended: dict[str, Any] = {
        "phase": "Succeeded",
        "containerStatuses": [
            {
                "name": MEASURE,
                "image": "x",
                "imageID": "x@sha256:" + "a" * 64,
                "ready": False,
                "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "message": json.dumps(SAID)}},
            }
        ],
    }
    core.patch_namespaced_pod_status(pod["metadata"]["name"], restricted, {"status": ended})
    measuring.look()
    assert not [p for p in operators_own.owned("Pod", restricted, MEASURE) if not p["metadata"].get("deletionTimestamp")]
    kept = core.read_namespaced_config_map(STORE, restricted)
    assert list(kept.data) == [watched.nodes()[0]["metadata"]["uid"]]
    again = Measuring(watched, operators_own, SystemClock(), settings)
    again.look()
    (shown,) = again.shown(watched.nodes())
    found = ground_of(shown, (), NOBODY, settings).node
    assert (found.flops_per_s, found.memory_bandwidth_bytes_per_s, found.figures) == (200e9, 9e9, "measured")


def test_with_these_rights_nothing_else_is_read_or_written(operators_own: OwnNamespace, restricted: str, node: str):
    for kind, name in (("Secret", "x"), ("ConfigMap", "another"), ("Deployment", "x")):
        with pytest.raises(RefusedError, match="forbidden"):
            operators_own.get(kind, restricted, name)
    with pytest.raises(RefusedError, match="forbidden"):
        operators_own.delete("Pod", "default", "x")
