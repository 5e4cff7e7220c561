"""The release before is upgraded to this one and rolled back by Helm, while clients ask: no request fails."""

import json

import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.release_before import RELEASE, release_before
from e2e.scene import NAME
from e2e.traffic import STEADY, Traffic

pytestmark = pytest.mark.cluster


def fields(cluster: Cluster) -> set[str]:
    """Fields of the spec that the cluster's CRD has."""
    crd = json.loads(cluster.kubectl("get", "crd", "splitinferences.splitinference.dev", "-o", "json"))
    return set(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"])


def images(cluster: Cluster) -> dict[str, set[str]]:
    """Which images run, by component."""
    found: dict[str, set[str]] = {}
    for namespace, component in ((stack.SYSTEM, "operator"), ("default", "gateway"), ("default", "segment")):
        selector = f"app.kubernetes.io/component={component}"
        pods = json.loads(cluster.kubectl("-n", namespace, "get", "pods", "-l", selector, "-o", "json"))["items"]
        found[component] = {pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}
    return found


def rests(cluster: Cluster, wanted: dict[str, str]) -> bool:
    """Whether operator and gateway run these images, and the resource is at rest."""
    now = images(cluster)
    return (
        now["operator"] == {wanted["operator"]} and now["gateway"] == {wanted["gateway"]} and stack.settled(stack.resource(cluster, NAME))
    )


@pytest.mark.long
def test_an_upgrade_and_a_rollback_fail_no_request(cluster: Cluster) -> None:
    with release_before() as before:
        old = before.install(cluster)
        stack.apply_sample(cluster)
        stack.wait_ready(cluster, NAME)
        new = cluster.load_images(stack.IMAGES)
        had, revision = fields(cluster), str(json.loads(cluster.helm("history", RELEASE, "-n", stack.SYSTEM, "-o", "json"))[-1]["revision"])
        with stack.endpoint(cluster, NAME) as base_url, Traffic(base_url, stack.MODEL, STEADY) as traffic:

            def answers(count: int) -> None:
                done = len(traffic.report().requests)
                stack.until(lambda: len(traffic.report().requests) >= done + count, 240, f"{count} more answers")

            answers(4)
            stack.install_operator(cluster, new)
            stack.until(lambda: rests(cluster, new), 600, "the new release serves", progress=lambda: images(cluster))
            answers(4)
            said = cluster.helm("test", RELEASE, "-n", stack.SYSTEM, "--logs")
            upgraded, with_new = fields(cluster), images(cluster)
            before.roll_back(cluster, revision)
            stack.until(lambda: rests(cluster, old), 600, "the old release serves again", progress=lambda: images(cluster))
            answers(4)
            report = traffic.report()
    cluster.progress.say(
        f"{before.revision[:7]} → this tree → back: {len(report.failed)} of {len(report.requests)} requests failed, "
        f"longest wait {report.longest_wait:.1f} s; segments with the new release: {', '.join(sorted(with_new['segment']))}"
    )
    assert [request.error for request in report.failed] == []
    checked = [line for line in said.splitlines() if line.startswith(("ok ", "failed "))]
    cluster.progress.say("helm test: " + "; ".join(checked))
    assert len(checked) >= 4, said
    assert all(line.startswith("ok ") for line in checked), said
    assert upgraded >= had, "the upgrade brought this tree's CRD"
