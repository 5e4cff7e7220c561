"""The rows. A new one is a function of the cluster that does something, waits with `stack.until`, and returns what was seen.

Rows 1 to 17 are the kinds that other operators met. Those from 18 on are relatives of them, in relatives.py.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.command import run
from e2e.cluster.machine.speed import BANDWIDTH, COMPUTE, LAUNCH
from e2e.cluster.supplies import tools
from e2e.cluster_cases.case import Happened, answers, applied, asked, case, figures, get, removed, said, serves, shown_by, uid
from e2e.cluster_cases.webhook import Patch, webhook
from e2e.scene import NAME, OURS
from splitinference.controller.cluster_state.pods import requested_bytes
from splitinference.controller.kube_values.quantity import quantity

SECONDS = 60.0
GATEWAY = f"{NAME}-gateway"


@case(1, "a node does not have the segment image, and cannot pull it", "a condition names the cause; it serves again on other nodes")
def image_not_on_a_node(cluster: Cluster) -> Happened:
    found = serves(cluster)
    used = {node for _, _, node in stack.placement(found)}
    spare = next(node for node in cluster.settings.worker_names() if node not in used)
    left = stack.busiest_inner_node(found)
    image = cluster.image("segment")
    cluster.engine().execute(
        spare, f"ctr -n k8s.io images ls -q | grep -F {image.rpartition(':')[0]} | xargs -r ctr -n k8s.io images rm --sync"
    )
    try:
        cluster.kubectl("cordon", left)  # so that the plan must go to the spare node
        quoted: str = stack.until(lambda: said(cluster, "ImagePull"), 2 * SECONDS, "a condition names the image that cannot be pulled")
    finally:
        cluster.kubectl("uncordon", left)
    stack.until(lambda: spare not in {n for _, _, n in stack.placement(stack.resource(cluster, NAME))}, 4 * SECONDS, f"{spare} is avoided")
    cluster.load_images(("segment",), [spare])
    removed(cluster)  # a new resource avoids no node: the next rows need all of them
    return quoted


@case(2, "a mesh injects a sidecar before our own container", "the segment is judged by its own container, and serves")
def sidecar_in_a_segment(cluster: Cluster) -> Happened:
    with _sidecars(cluster, "segment", "while :; do /bin/busybox sleep 60; done"):
        pod = inner_segment(cluster)
        before = uid(cluster, "pod", pod)
        cluster.kubectl("delete", "pod", pod, "--wait=false")
        new = stack.until(lambda: _injected(cluster, pod, before), 2 * SECONDS, "another segment, with a sidecar")
        serves(cluster)
        assert uid(cluster, "pod", pod) == new, "it was replaced again"
    cluster.kubectl("delete", "pod", pod, "--wait=false")
    stack.until(lambda: uid(cluster, "pod", pod) not in {"", new}, 2 * SECONDS, "another segment, without")
    return f"{pod} serves with two containers, and was made once"


@case(2, "a mesh injects a sidecar into the pod that reads the model", "the model is read once", quick=True)
def sidecar_in_the_pod_that_reads_the_model(cluster: Cluster) -> Happened:
    with _sidecars(cluster, "profile", "while :; do /bin/busybox sleep 60; done"), another(cluster, "sidecar") as name:
        stack.until(lambda: holds(cluster, name, "Accepted", "True"), 2 * SECONDS, "the model is read beside the sidecar")
        return said(cluster, "layers", name=name)


def inner_segment(cluster: Cluster) -> str:
    segments = stack.resource(cluster, NAME)["status"]["plan"]["segments"]
    return str(segments[1]["name"])


def _injected(cluster: Cluster, pod: str, before: str) -> str:
    """The UID of the pod that came after this one, once it has two containers."""
    found = get(cluster, "pod", pod)
    made = str(found.get("metadata", {}).get("uid", ""))
    return made if made not in {"", before} and len(found["spec"]["containers"]) == 2 else ""


@contextmanager
def _sidecars(cluster: Cluster, component: str, script: str) -> Iterator[None]:
    """Pods of this component that are made meanwhile get a first container of somebody else's, whatever their annotations say."""
    cluster.load_images(("burner",), cluster.settings.worker_names())
    added = {
        "name": "mesh-proxy",
        "image": cluster.image("burner"),
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script],
        "resources": {"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"memory": "16Mi"}},
    }
    added_first: Patch = [{"op": "add", "path": "/spec/containers/0", "value": added}]
    with webhook(host_address(cluster), lambda _: added_first) as where, applied(cluster, _mutating("sidecars", where, component)):
        yield


def _mutating(name: str, where: dict[str, str], component: str) -> dict[str, Any]:
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": f"{name}.cases.test"},
        "webhooks": [
            hook(name, where, {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}, component)
        ],
    }


def hook(name: str, where: dict[str, str], rule: dict[str, Any], component: str = "") -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "splitinference"} | ({"app.kubernetes.io/component": component} if component else {})
    return {
        "name": f"{name}.cases.test",
        "clientConfig": where,
        "rules": [rule],
        "objectSelector": {"matchLabels": labels},
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "default"}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 10,
    }


def host_address(cluster: Cluster) -> str:
    """Where nodes reach this machine."""
    words = cluster.engine().execute(cluster.settings.control_plane, "ip -4 route show default").split()
    return words[words.index("via") + 1]


@contextmanager
def another(cluster: Cluster, name: str, **changes: Any) -> Iterator[str]:
    """A second resource of the sample's model, for which the cluster has no room: its model is read, and no more."""
    manifest = yaml.safe_load(stack.SAMPLE.read_text())
    manifest["metadata"]["name"] = name
    manifest["spec"].update(changes)
    with applied(cluster, manifest):
        yield name
    selector = f"app.kubernetes.io/instance={name}"
    stack.until(lambda: not cluster.kubectl("get", "pods", "-l", selector, "-o", "name").strip(), SECONDS, f"the pods of {name} are gone")


def holds(cluster: Cluster, name: str, kind: str, status: str) -> bool:
    return bool(stack.condition(stack.resource(cluster, name), kind).get("status") == status)


@case(3, "a ResourceQuota requires limits of CPU", "Ready is False with the API server's words; Ready again without the quota", quick=True)
def quota_requires_limits(cluster: Cluster) -> Happened:
    quota: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "limits-needed", "namespace": "default"},
        "spec": {"hard": {"limits.cpu": "100"}},
    }
    with applied(cluster, quota):
        cluster.kubectl("delete", "pod", "-l", f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=gateway", "--wait=false")
        quoted: str = stack.until(lambda: said(cluster, "must specify limits.cpu"), SECONDS, "a condition quotes `must specify limits.cpu`")
    serves(cluster)
    return quoted


shown_by(
    4,
    "OpenShift assigns user IDs",
    "no user in any pod on request",
    "tests/controller/manifests/test_pod_template.py::test_users_are_left_to_the_cluster_on_request",
)
shown_by(
    5,
    "Prometheus names nodes otherwise than Kubernetes (real Prometheus)",
    "names are matched; else both sets are named",
    "tests/adapters/promql/test_names_of_nodes.py",
)
shown_by(
    6,
    "Prometheus wants a tenant, a token, a CA",
    "they come from files; passwords are in no message",
    "tests/adapters/promql/test_prometheus_access.py",
)

OWNED = ("service", "role", "rolebinding", "serviceaccount", "deployment", "networkpolicy", "poddisruptionbudget")


@case(7, f"the gateway's objects are deleted: {', '.join(OWNED)}", "each is made again", quick=True)
def objects_deleted(cluster: Cluster) -> Happened:
    took = []
    for kind in OWNED:
        name = _name_of(cluster, kind)
        before = uid(cluster, kind, name)
        cluster.kubectl("delete", kind, name, "--wait=false")
        stack.until(lambda kind=kind, name=name, old=before: uid(cluster, kind, name) not in {"", old}, SECONDS, f"another {kind} {name}")  # type: ignore[misc]
        took.append(f"{kind} {name}")
    return f"made again: {', '.join(took)}"


def _name_of(cluster: Cluster, kind: str) -> str:
    """The gateway's object of this kind."""
    selector = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=gateway"
    found = json.loads(cluster.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
    names = [each["metadata"]["name"] for each in found if not each["metadata"]["name"].startswith(f"{NAME}-outside")]
    assert names, f"the gateway has no {kind}"
    return str(names[0])


shown_by(
    8,
    "a checkout without symbolic links",
    "the chart's CRD is a file that equals the repository's",
    "tests/chart/test_chart.py::test_the_charts_crd_is_a_file_of_its_own_that_equals_the_repositorys",
    "tests/chart/test_chart.py::test_a_packaged_chart_brings_the_crd_and_lints",
)
shown_by(
    9,
    "pods have IPv6 addresses, alone or beside IPv4",
    "everything listens on both families (`make e2e-long` plays a cluster with IPv6 alone)",
    "tests/adapters/test_listen.py",
    "tests/gateway/access/test_inside.py",
    "tests/controller/manifests/test_pod_template.py::test_services_take_both_families_where_the_cluster_has_both",
)


@case(10, "a pod with resources of its own, beside those of its containers", "the same sums as the scheduler's", quick=True)
def pod_level_resources(cluster: Cluster) -> Happened:
    used = {node for _, _, node in stack.placement(stack.resource(cluster, NAME))}
    spare = next(node for node in cluster.settings.worker_names() if node not in used)
    container = {"name": "c", "image": cluster.image("burner"), "command": ["/bin/busybox", "sleep", "3600"]}
    small = {"requests": {"cpu": "3m", "memory": "1Mi"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "whole", "namespace": "default"},
        "spec": {
            "nodeName": spare,
            "terminationGracePeriodSeconds": 0,
            "resources": {"requests": {"cpu": "17m", "memory": "33Mi"}},
            "initContainers": [{**container, "name": "side", "restartPolicy": "Always", "resources": small}],
            "containers": [{**container, "resources": small}],
        },
    }
    with applied(cluster, pod):
        stack.until(lambda: get(cluster, "pod", "whole").get("status", {}).get("phase") != "Pending", SECONDS, "the pod is admitted")
        free = _free_bytes(cluster, spare)
        fits, more = _scheduled(cluster, spare, free), _scheduled(cluster, spare, free + (1 << 20))
    assert fits == "", f"{free >> 20} MiB are free on {spare} by our sums, and the scheduler says: {fits}"
    assert "Insufficient memory" in more, f"1 MiB more than is free on {spare} by our sums, and the scheduler says: {more or 'it fits'}"
    return f"{free >> 20} MiB are free on {spare} by our sums: a pod of that size is scheduled, one of 1 MiB more is not"


def _free_bytes(cluster: Cluster, node: str) -> int:
    """Memory that nobody requested, by our sums."""
    pods = json.loads(cluster.kubectl("get", "pods", "-A", "--field-selector", f"spec.nodeName={node}", "-o", "json"))["items"]
    living = [pod for pod in pods if pod["status"].get("phase") not in {"Succeeded", "Failed"}]
    allocatable = quantity(get(cluster, "node", node)["status"]["allocatable"]["memory"])
    assert allocatable is not None
    return int(allocatable) - sum(map(requested_bytes, living))


def _scheduled(cluster: Cluster, node: str, size: int) -> str:
    """What the scheduler says of a pod that requests so many bytes there; empty where it takes it."""
    container = {"name": "c", "image": "none", "imagePullPolicy": "Never", "resources": {"requests": {"memory": str(size)}}}
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "size", "namespace": "default"},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": 0, "containers": [container]},
    }

    def decided() -> dict[str, str] | None:
        conditions = get(cluster, "pod", "size").get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == "PodScheduled"), None)

    with applied(cluster, pod):
        found: dict[str, str] = stack.until(decided, SECONDS, "the scheduler says something")
    return "" if found["status"] == "True" else found["message"]


@case(11, "a second release of another version serves the same class", "it leaves alone what the first serves, and says so")
def second_release(cluster: Cluster) -> Happened:
    before, there = stack.resource(cluster, NAME)["status"]["operator"], pods(cluster)
    values = json.loads(cluster.helm("get", "values", "splitinference", "-n", stack.SYSTEM, "-o", "json"))
    values["operator"]["replicas"] = 1
    values["crds"] = {"install": False}
    values["images"]["segment"]["tag"] = "of-another-version"
    values["policy"] = {"admission": False, **values.get("policy", {})}
    try:
        words = ("upgrade", "--install", "second", str(stack.CHART), "-n", "second", "--create-namespace", "-f", "-")
        run([cluster.tool(tools.HELM), *words], env=cluster.env(), stdin=yaml.safe_dump(values))
        event = stack.until(lambda: _event(cluster, "ServedByAnother"), 2 * SECONDS, "an event ServedByAnother")
        assert stack.resource(cluster, NAME)["status"]["operator"] == before
        assert pods(cluster) == there, "pods were made or deleted"
    finally:
        cluster.helm("uninstall", "second", "-n", "second", "--ignore-not-found")
        cluster.kubectl("delete", "namespace", "second", "--ignore-not-found", "--wait=false")
    return str(event)


def pods(cluster: Cluster) -> dict[str, str]:
    found = json.loads(cluster.kubectl("get", "pods", "-l", OURS, "-o", "json"))["items"]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}


def _event(cluster: Cluster, reason: str) -> str:
    found = json.loads(cluster.kubectl("get", "events", "--field-selector", f"reason={reason}", "-o", "json"))["items"]
    return str(found[0]["message"]) if found else ""


shown_by(12, "Argo CD shows a resource's health", "by the health check of the docs, in Argo CD's own Lua", "tests/test_gitops.py")


@case(13, "a node is drained under load", "the replacement serves before the eviction; 0 requests failed")
def drained(cluster: Cluster) -> Happened:
    left = stack.busiest_inner_node(stack.resource(cluster, NAME))
    with asked(cluster) as traffic:
        try:
            cluster.kubectl("drain", left, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=900s")
            placed = {node for _, _, node in stack.placement(stack.resource(cluster, NAME))}
            assert left not in placed, "it was evicted before the route left the node"
        finally:
            cluster.kubectl("uncordon", left)
        answers(traffic)
        return f"{left} is drained; {figures(traffic)}"


@case(14, "annotations, labels and pull secrets for pods", "the gateway is rolled out, and no segment is replaced for that", quick=True)
def template_of_pods(cluster: Cluster) -> Happened:
    before = {name: made for name, made in pods(cluster).items() if not name.startswith(GATEWAY)}
    given = {"annotations": {"cases.test/team": "blue"}, "labels": {"cases.test/team": "blue"}, "imagePullSecrets": ["registry"]}
    patch(cluster, {"podTemplate": {"segments": given, "gateway": given}})
    try:
        selector = "cases.test/team=blue,app.kubernetes.io/component=gateway"
        stack.until(lambda: cluster.kubectl("get", "pods", "-l", selector, "-o", "name").strip(), SECONDS, "a gateway with the label")
        serves(cluster)
        now = pods(cluster)
        assert before.items() <= now.items(), "a segment was replaced"
    finally:
        patch(cluster, {"podTemplate": None})
    return f"the gateway has the label, {len(before)} segments are the same"


def patch(cluster: Cluster, spec: dict[str, Any], name: str = NAME) -> None:
    cluster.kubectl("patch", "si", name, "--type=merge", "-p", json.dumps({"spec": spec}))


shown_by(
    15,
    "the Prometheus operator ignores scrape annotations",
    "PodMonitors find segments and gateways",
    "tests/chart/test_chart.py::test_pod_monitors_find_segments_and_gateways_by_their_metrics_port",
)
shown_by(
    16,
    "others contend for the processor (series of PSI, as kubelets and node-exporter show them, in a real Prometheus)",
    "waiting counts as not there in snapshot, trigger and prediction",
    "tests/adapters/promql/test_pressure_queries.py",
    "tests/controller/cluster_state/figures/test_pressure.py",
)


@case(17, "nodes have no labels of their speed", "they are measured before the first plan, which says so")
def nodes_without_labels(cluster: Cluster) -> Happened:
    workers = cluster.settings.worker_names()
    images = cluster.load_images(stack.IMAGES)
    removed(cluster)
    try:
        cluster.kubectl("label", "nodes", *workers, *(f"{label}-" for label in (COMPUTE, BANDWIDTH, LAUNCH)))
        stack.install_operator(cluster, images, "--set", "measureNodes.enabled=true", "--set", "measureNodes.waitSeconds=600")
        found = serves(cluster)
        planned = str(stack.condition(found, "Planned")["message"])
        assert "measured" in planned, planned
        assert "assumed" not in planned, planned
    finally:
        stack.install_operator(cluster, images)
        cluster.tell_speeds(workers, anew=True)
    return planned
