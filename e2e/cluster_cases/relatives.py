"""Rows from 18 on: relatives of the kinds that other operators met."""

import copy
import json
from typing import Any
from urllib.parse import urlsplit

import yaml

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.command import run
from e2e.cluster.kind import SERVICE_SUBNET
from e2e.cluster.supplies import tools
from e2e.cluster_cases.case import Happened, answers, applied, asked, case, figures, get, removed, said, shown_by, uid
from e2e.cluster_cases.rows import GATEWAY, SECONDS, another, holds, hook, host_address, inner_segment, patch, pods
from e2e.scene import NAME

LONGEST_NAME = 40
"""Of a SplitInference, by a rule of the CRD."""
NOWHERE = "http://192.0.2.1:3128"
"""A proxy that nobody reaches: the address is for documentation (RFC 5737)."""


@case(18, "an admission webhook is down", "a condition has the API server's words; put right without it", quick=True)
def webhook_down(cluster: Cluster) -> Happened:
    rule = {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["services"]}
    closed = {"url": f"https://{host_address(cluster)}:1/"}
    closing: dict[str, Any] = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "down.cases.test"},
        "webhooks": [hook("down", closed, rule)],
    }
    before = uid(cluster, "service", GATEWAY)
    with applied(cluster, closing):
        cluster.kubectl("delete", "service", GATEWAY, "--wait=false")
        quoted: str = stack.until(lambda: said(cluster, "failed calling webhook"), SECONDS, "a condition quotes the failed call")
    stack.until(lambda: uid(cluster, "service", GATEWAY) not in {"", before}, 2 * SECONDS, f"another service {GATEWAY}")
    return quoted


@case(19, "the API server is killed under load", "0 requests failed; the operator goes on")
def api_server_restarts(cluster: Cluster) -> Happened:
    with asked(cluster) as traffic:
        cluster.engine().execute(cluster.settings.control_plane, "kill -KILL $(pidof kube-apiserver)")
        answers(traffic)
        patch(cluster, {"podTemplate": {"gateway": {"annotations": {"cases.test/after": "restart"}}}})
        try:
            generation = get(cluster, "si", NAME)["metadata"]["generation"]
            stack.until(
                lambda: stack.resource(cluster, NAME)["status"]["observedGeneration"] >= generation,
                2 * SECONDS,
                "the operator sees a change",
            )
            return f"the operator saw the next change; {figures(traffic)}"
        finally:
            patch(cluster, {"podTemplate": None})


@case(20, "a namespace is deleted while its resource serves", "all is gone soon; the operator serves others")
def namespace_deleted(cluster: Cluster) -> Happened:
    removed(cluster)
    manifest = yaml.safe_load(stack.SAMPLE.read_text())
    manifest["metadata"]["namespace"] = "doomed"
    namespace: dict[str, Any] = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "doomed"}}
    with applied(cluster, namespace):
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        stack.wait_ready(cluster, NAME, "doomed")
        cluster.kubectl("delete", "namespace", "doomed", "--wait=false")
        stack.until(lambda: not get(cluster, "namespace", "doomed"), 2 * SECONDS, "the namespace is gone")
    restarts = json.loads(cluster.kubectl("-n", stack.SYSTEM, "get", "pods", "-o", "json"))["items"]
    assert all(c.get("restartCount", 0) == 0 for pod in restarts for c in pod["status"].get("containerStatuses", [])), "the operator ended"
    return "the namespace is gone with all that was in it, and no operator was restarted"


@case(21, "the CRD in the cluster is of an older chart", "Accepted names the fields that are dropped", quick=True)
def older_crd(cluster: Cluster) -> Happened:
    crd = yaml.safe_load((stack.ROOT / "crds/splitinference.yaml").read_text())
    older = copy.deepcopy(crd)
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["podTemplate"]
    try:
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(older))
        quoted: str = stack.until(lambda: said(cluster, "spec.podTemplate"), 2 * SECONDS, "a condition names spec.podTemplate")
    finally:
        cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(crd))
    return quoted  # the CRD is looked at once a minute, so the condition says so for a while


@case(22, "names at their limits", f"{LONGEST_NAME} characters work, one more is refused with a sentence", quick=True)
def longest_names(cluster: Cluster) -> Happened:
    longest = "n" * LONGEST_NAME
    manifest = yaml.safe_load(stack.SAMPLE.read_text())
    manifest["metadata"]["name"] = f"{longest}n"
    refused = run(
        [cluster.tool(tools.KUBECTL), "apply", "--dry-run=server", "-f", "-"], env=cluster.env(), stdin=json.dumps(manifest), check=False
    )
    assert "created" not in refused, "a name that is too long was taken"
    with another(cluster, longest) as name:
        stack.until(lambda: holds(cluster, name, "Accepted", "True"), 2 * SECONDS, "the model of the longest name is read")
        assert not said(cluster, "must be no more than", "Invalid value", name=name)
    return f"a name of {LONGEST_NAME} characters was read and planned for; {LONGEST_NAME + 1} were refused"


shown_by(
    23,
    "values: digests, registries, numbers for strings, umbrella charts with condition and global",
    "rendered as Kubernetes wants them",
    *(
        f"tests/chart/test_values.py::test_{name}"
        for name in (
            "a_digest_goes_before_a_tag",
            "images_may_come_from_a_registry_with_a_port",
            "numbers_stand_where_kubernetes_wants_strings",
            "the_operator_takes_what_such_values_become",
            "an_umbrella_chart_may_have_a_condition_and_globals",
            "a_condition_that_is_false_leaves_it_out",
        )
    ),
    "tests/chart/test_chart.py::test_names_stay_within_kubernetes_limits_for_the_longest_release",
)
shown_by(
    24,
    "the API server throttles, or refuses for a while",
    "tried again; what somebody must mend is quoted",
    "tests/adapters/kubernetes/test_refusals.py",
)
shown_by(
    25,
    "clocks jump",
    "the operator, its measurements and certificates go on",
    "tests/controller/story/test_story_starting.py::test_a_clock_that_is_set_back_does_not_stop_the_operator",
    "tests/controller/history/test_times.py",
    "tests/controller/history/test_calibration.py::test_a_clock_that_was_set_back_begins_a_new_window",
    "tests/adapters/peers/test_certificates.py",
)


@case(26, "proxies are set, and cannot be reached", "operator, gateway and segments reach each other past them; 0 requests failed")
def dead_proxies(cluster: Cluster) -> Happened:
    """With NO_PROXY for the operator as the docs say. Segments and the gateway ask nobody by HTTP proxy, so they need none."""
    images, env = (
        cluster.load_images(stack.IMAGES),
        [{"name": name, "value": NOWHERE} for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy")],
    )
    past = {"name": "NO_PROXY", "value": f".svc,.cluster.local,{urlsplit(cluster.prometheus_url).hostname},{SERVICE_SUBNET}"}
    manifest = yaml.safe_load(stack.SAMPLE.read_text())
    manifest["spec"]["podTemplate"] = {"segments": {"env": env}, "gateway": {"env": env}}
    removed(cluster)  # on full nodes a change of variables could not replace the segments
    try:
        stack.install_operator(cluster, images, "--set-json", f"operator.env={json.dumps([*env, past])}")
        cluster.apply(json.dumps(manifest))
        stack.wait_ready(cluster, NAME)
        pod = inner_segment(cluster)
        assert NOWHERE in json.dumps(get(cluster, "pod", pod)["spec"]["containers"]), f"the segment {pod} has no proxy"
        stack.until(lambda: holds(cluster, NAME, "MetricsAvailable", "True"), 2 * SECONDS, "Prometheus is reached")
        with asked(cluster) as traffic:
            cluster.kubectl("delete", "pod", pod, "--wait=false")
            answers(traffic)
            return f"{pod}, the gateway and the operator have proxies; {figures(traffic)}"
    finally:
        stack.install_operator(cluster, images)
        removed(cluster)


@case(27, "a PriorityClass that does not exist is named", "a condition has the API server's words; segments stay", quick=True)
def no_such_priority(cluster: Cluster) -> Happened:
    patch(cluster, {"adaptation": {"mode": "Frozen"}})  # a better plan would replace a segment, too
    serving = settled_pods(cluster)
    patch(cluster, {"podTemplate": {"gateway": {"priorityClassName": "of-nobody"}}})
    try:
        quoted: str = stack.until(lambda: said(cluster, "of-nobody"), 2 * SECONDS, "a condition names the class")
        assert serving.items() <= pods(cluster).items(), "a pod that served was replaced"
        with asked(cluster) as traffic:
            answers(traffic)
        return f"{quoted}; {figures(traffic)}"
    finally:
        patch(cluster, {"podTemplate": None, "adaptation": {"mode": "Auto"}})


def settled_pods(cluster: Cluster) -> dict[str, str]:
    """UIDs of the sample's pods by name, once nothing is under way."""
    stack.until(lambda: stack.settled(stack.resource(cluster, NAME)), stack.STUCK_SECONDS, "nothing is under way")
    return pods(cluster)
