"""Pressure stall information as node-exporter and the kubelet export it, by a real Prometheus → what is lost to waiting."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinference.adapters.prometheus import PrometheusMetrics
from splitinference.controller.cluster_state.node_metrics import Judge, Measured, read_metrics
from splitinference.controller.cluster_state.pressure import lost
from splitinference.controller.cluster_state.series_owners import Directory
from splitinference.controller.ports import Manifest
from splitinference.settings import QuerySet, Settings
from tests.adapters.real_prometheus import serving_samples
from tests.adapters.test_link_queries import segment_pod
from tests.adapters.test_node_queries import SHOWN, counter, uses

NODES: list[Manifest] = [{"metadata": {"name": name}} for name in ("pressed", "limited", "serving", "held", "old-kernel")]
PODS = [segment_pod("serving"), segment_pod("held")]


def node_waits(query_set: QuerySet, node: str, share: float) -> list[str]:
    if query_set == "nodeExporter":
        return counter(f'node_pressure_cpu_waiting_seconds_total{{instance="{node}:9100"}}', uses(share))
    return counter(f'container_pressure_cpu_waiting_seconds_total{{node="{node}",id="/",instance="{node}"}}', uses(share))


def of_container(metric: str, node: str, pod: str, container: str, rate: float) -> list[str]:
    labels = f'container="{container}",id="/kubepods/{pod}/{container}",instance="{node}",namespace="team",node="{node}",pod="{pod}"'
    return counter(f"container_{metric}_total{{{labels}}}", uses(rate))


def limited(node: str, pod: str, container: str, share: float) -> list[str]:
    """A CPU limit: ten periods a second, in so many of which the container was held back."""
    return [
        *of_container("cpu_cfs_periods", node, pod, container, 10.0),
        *of_container("cpu_cfs_throttled_periods", node, pod, container, 10.0 * share),
    ]


def samples(query_set: QuerySet) -> Iterator[str]:
    def a_node(name: str) -> list[str]:
        shown = SHOWN[query_set](name, uses(0.3))
        return [*shown["cpu"], *shown["uname"]]

    found = [line for node in NODES for line in a_node(node["metadata"]["name"])]
    found += node_waits(query_set, "pressed", 0.9)
    found += [*node_waits(query_set, "limited", 0.9), *limited("limited", "batch", "x", 0.8), *limited("limited", "batch", "y", 0.5)]
    found += node_waits(query_set, "serving", 0.9)
    found += of_container("cpu_usage_seconds", "serving", "segment-serving", "segment", 0.2)
    found += of_container("pressure_cpu_waiting_seconds", "serving", "segment-serving", "segment", 0.9)
    found += of_container("cpu_usage_seconds", "held", "segment-held", "segment", 0.5)
    found += limited("held", "segment-held", "segment", 0.6)
    yield from sorted(found, key=lambda line: line.partition("{")[0])


@pytest.fixture(scope="module", params=sorted(SHOWN))
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with serving_samples(samples(request.param), tmp_path_factory.mktemp("prometheus")) as url:
        given = Settings(prometheus_url=url, query_set=request.param)
        found = read_metrics(PrometheusMetrics(given), Directory(NODES, PODS), given)
        assert not found.problem
        assert not found.notes
        yield found


@pytest.mark.parametrize(
    ("node", "share"),
    [("pressed", 0.75), ("limited", 0.0), ("serving", 0.9), ("held", 0.3), ("old-kernel", None)],
)
def test_what_of_a_node_is_lost_to_waiting(measured: Measured, node: str, share: float | None):
    own = [f"team/segment-{node}"] if node in ("serving", "held") else []
    found = lost(measured, node, 2.0, own, Judge(max_age_seconds=60))
    assert found == (None if share is None else pytest.approx(share, abs=0.02))


def test_containers_that_are_held_back_at_different_times_add_up(measured: Measured):
    assert measured.node_cpu_limited.by_name["limited"].value == pytest.approx(1 - 0.2 * 0.5, abs=0.01)
    assert set(measured.node_cpu_limited.by_name) == {"limited"}


def test_pressure_can_be_left_out(tmp_path: Path):
    with serving_samples(samples("nodeExporter"), tmp_path) as url:
        given = Settings(prometheus_url=url, use_pressure=False)
        found = read_metrics(PrometheusMetrics(given), Directory(NODES, PODS), given)
    assert found.node_cpu_cores.by_name
    assert not found.node_cpu_waiting.by_name
