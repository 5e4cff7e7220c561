"""The link probe on the test cluster. Off unless a test asks for it: workers have no memory to spare, so each is given what a probe takes.

What it and the segments measured is asked as the operator asks it, through the API server.
"""

import json
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from e2e import stack
from e2e.cluster import Cluster, monitoring
from e2e.cluster.progress import together
from e2e.cluster.supplies.images import unpack
from splitinference.adapters.promql.prometheus import samples
from splitinference.adapters.promql.queries import SETS, Query
from splitinference.controller.ports import Samples

PROBE_MIB = 32  # its memory request in the chart's values
BUDGET = 4 << 20  # bytes a minute and node: small beside what the links of the tests carry
PACE = {"intervalSeconds": 5, "budgetBytesPerMinute": BUDGET, "burstBytes": 128 << 10, "burstIntervalSeconds": 5}
LINKS = SETS["cadvisor"]


@contextmanager
def probed(cluster: Cluster) -> Iterator[None]:
    """With a probe on every worker; then as before. The operator is installed if it was not."""
    images = cluster.load_images(stack.IMAGES)
    unpack(cluster.settings, cluster.engine(), [images["operator"]], cluster.settings.worker_names())
    _sized(cluster, PROBE_MIB)
    words = [word for name, value in PACE.items() for word in ("--set", f"probe.{name}={value}")]
    try:
        stack.install_operator(cluster, images, "--set", "probe.enabled=true", *words)
        yield
    finally:
        stack.install_operator(cluster, images)
        # A kubelet that starts anew with less memory counts pods that are still on their way out, and may refuse another in their place.
        stack.until(lambda: not _probes(cluster), 60, "the probes are gone")
        _sized(cluster, 0)


def _probes(cluster: Cluster) -> str:
    return cluster.kubectl("-n", stack.SYSTEM, "get", "pods", "-l", "app.kubernetes.io/component=probe", "-o", "name").strip()


def _sized(cluster: Cluster, more_mib: int) -> None:
    nodes = cluster.settings.worker_names()
    together([lambda node=node: cluster.memory(node, cluster.size(node).memory_mib + more_mib) for node in nodes])  # type: ignore[misc]


def links_mbps(cluster: Cluster) -> Samples:
    """Mbit/s by source/target, as the operator sees it."""
    return _asked(cluster, LINKS.links_mbps)


def links_rtt_ms(cluster: Cluster) -> Samples:
    """Round trips in ms, likewise."""
    return _asked(cluster, LINKS.links_rtt_ms)


def value(cluster: Cluster, query: str) -> float:
    """The one value of a query."""
    ((found,),) = ([series["value"] for series in _result(cluster, query)],)
    return float(found[1])


def _asked(cluster: Cluster, query: Query) -> Samples:
    return samples(_result(cluster, query.text(15, 300)), query.by)


def _result(cluster: Cluster, query: str) -> list[dict[str, list[str]]]:
    path = f"/api/v1/namespaces/{monitoring.NAMESPACE}/services/prometheus:9090/proxy/api/v1/query"
    answer = json.loads(cluster.kubectl("get", "--raw", f"{path}?{urllib.parse.urlencode({'query': query})}"))
    result: list[dict[str, list[str]]] = answer["data"]["result"]
    return result
