"""The rows. A new one is a function of the cluster that does something, waits with `stack.until`, and returns what was seen."""

from typing import Any

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster_cases.case import Happened, applied, case, said, serves, uid
from e2e.scene import NAME

SECONDS = 60.0
GATEWAY = f"{NAME}-gateway"


@case(7, "the gateway's Service is deleted", "created again", quick=True)
def service_deleted(cluster: Cluster) -> Happened:
    return _made_again(cluster, "service")


@case(7, "the gateway's Role is deleted", "created again", quick=True)
def role_deleted(cluster: Cluster) -> Happened:
    return _made_again(cluster, "role")


@case(7, "the gateway's RoleBinding is deleted", "created again", quick=True)
def role_binding_deleted(cluster: Cluster) -> Happened:
    return _made_again(cluster, "rolebinding")


def _made_again(cluster: Cluster, kind: str) -> Happened:
    before = uid(cluster, kind, GATEWAY)
    cluster.kubectl("delete", kind, GATEWAY)
    stack.until(lambda: uid(cluster, kind, GATEWAY) not in {"", before}, SECONDS, f"another {kind} {GATEWAY}")
    return f"another {kind} {GATEWAY} is there"


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
    return quoted
