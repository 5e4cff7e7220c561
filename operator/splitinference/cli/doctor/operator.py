"""Checks of the operator: it runs, its version, its Prometheus, and how links are measured."""

from collections.abc import Iterator, Sequence

from splitinference import __version__
from splitinference.cli.connection import Connection
from splitinference.cli.doctor.check import BAD, CHART, GOOD, UNKNOWN, WARN, Check, Json
from splitinference.cli.errors import INSTALL, from_cluster
from splitinference.controller.ports import RefusedError
from splitinference.view import ResourceView

_SELECTOR = "app.kubernetes.io/name=splitinference,app.kubernetes.io/component="
_LINKS = ("splitinference.dev/link-mbps", "splitinference.dev/link-rtt-ms", "splitinference.dev/links")


def check_operator(connection: Connection) -> Iterator[Check]:
    """It is installed, ready, and of this plugin's version; and what its settings say of Prometheus."""
    try:
        found: Sequence[Json] = connection.cluster.in_namespace("Deployment", "", f"{_SELECTOR}operator")
    except RefusedError as error:
        yield Check("operator", UNKNOWN, "you may not list Deployments of all namespaces", from_cluster(error).fix)
        return
    if not found:
        yield Check("operator", BAD, "no Deployment of the operator is in this cluster", INSTALL)
        return
    for deployment in found:
        yield from _one(deployment)


def _one(deployment: Json) -> Iterator[Check]:
    about = deployment["metadata"]
    where = f"{about['namespace']}/{about['name']}"
    ready = int((deployment.get("status") or {}).get("readyReplicas") or 0)
    if ready:
        yield Check("operator", GOOD, f"{where}: {ready} ready")
    else:
        yield Check("operator", BAD, f"{where}: no pod is ready", f"kubectl -n {about['namespace']} describe deployment {about['name']}")
    version = str((about.get("labels") or {}).get("app.kubernetes.io/version", ""))
    if version and version != __version__:
        yield Check(
            "versions", WARN, f"the operator has version {version}, this plugin {__version__}", f"pip install splitinference=={version}"
        )
    elif version:
        yield Check("versions", GOOD, f"operator and plugin have version {version}")
    pod = ((deployment.get("spec") or {}).get("template") or {}).get("spec") or {}
    variables = {str(v.get("name")): str(v.get("value", "")) for c in pod.get("containers") or () for v in c.get("env") or ()}
    address = variables.get("SPLITINFERENCE_PROMETHEUS_URL")
    if address == "":
        message = "no Prometheus is named: the operator plans from labels alone and never moves because of load"
        yield Check("Prometheus", WARN, message, f"{CHART} --set prometheus.url=http://prometheus.monitoring:9090")
    elif address:
        yield Check("Prometheus", GOOD, f"the operator asks {address}")


def check_metrics(views: Sequence[ResourceView]) -> Iterator[Check]:
    """What the operator says of Prometheus' figures."""
    said: dict[tuple[str, str], ResourceView] = {}
    for view in views:
        condition = view.condition("MetricsAvailable")
        if condition is not None and not condition.good:
            said.setdefault((condition.reason, condition.message), view)
    for (reason, message), view in said.items():
        yield Check("metrics", BAD, f"{view.title}: {reason}: {message}", "See docs/how-to/connect-prometheus.md#what-can-go-wrong")
    if not said and any(view.condition("MetricsAvailable") for view in views):
        yield Check("metrics", GOOD, "the operator has figures of the nodes")


def check_links(connection: Connection, nodes: Sequence[Json]) -> Iterator[Check]:
    """Links are measured by the probe, or said by labels or annotations of nodes; else one default counts for all."""
    said = [
        node
        for node in nodes
        if any(key in {**(node["metadata"].get("labels") or {}), **(node["metadata"].get("annotations") or {})} for key in _LINKS)
    ]
    try:
        probes: Sequence[Json] = connection.cluster.in_namespace("Pod", "", f"{_SELECTOR}probe")
    except RefusedError:
        probes = []
    if probes:
        silent = [p for p in probes if (p.get("status") or {}).get("phase") != "Running"]
        state, more = (WARN, f"; {len(silent)} do not run") if silent else (GOOD, "")
        yield Check(
            "links", state, f"{len(probes)} link probes{more}", "kubectl get pods -A -l app.kubernetes.io/component=probe" if silent else ""
        )
    elif said:
        yield Check("links", GOOD, f"{len(said)} of {len(nodes)} nodes have labels or annotations about links")
    else:
        message = "links are neither measured nor labelled: the chart's nodeDefaults count for all"
        yield Check("links", WARN, message, f"{CHART} --set probe.enabled=true (or: docs/how-to/measure-links.md)")
