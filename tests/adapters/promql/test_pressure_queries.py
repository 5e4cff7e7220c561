"""Pressure stall information as node-exporter and the kubelet export it, by a real Prometheus → what is lost to waiting."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured, read_metrics
from splitinference.controller.cluster_state.figures.pressure import lost
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.cluster_state.snapshot import Sources, read_snapshot
from splitinference.controller.ports import Manifest
from splitinference.core.cost import predict
from splitinference.core.decide.base.policy import Memory, Policy
from splitinference.core.decide.base.triggers import Reason, check
from splitinference.core.values.problem import Problem
from splitinference.settings import QuerySet, Settings
from tests.adapters.promql.test_link_queries import segment_pod
from tests.adapters.promql.test_node_queries import SHOWN, counter, uses
from tests.adapters.real_prometheus import serving_samples
from tests.controller.objects import a_node
from tests.controller.pretend import SETTINGS
from tests.core.planning import START, a_plan, a_profile, inputs

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


def test_from_exposition_to_snapshot_trigger_and_prediction(measured: Measured):
    """A stage on a node of which others use 15 %: three quarters count as gone, which is a reason to move, and predicted."""
    nodes = [a_node(name, cores=2) for name in ("pressed", "old-kernel")]
    sources = Sources(now=START, nodes=nodes, pods=(), measured=measured, held={}, owner=("team", "chat"))
    snapshot = read_snapshot(sources, SETTINGS).snapshot
    (pressed, other) = sorted(snapshot.nodes, key=lambda node: node.name, reverse=True)
    assert (pressed.utilization, pressed.waiting) == (pytest.approx(0.75, abs=0.02), pytest.approx(0.75, abs=0.02))
    assert (other.utilization, other.waiting) == (pytest.approx(0.15, abs=0.02), None)

    problem = Problem(profile=a_profile(), snapshot=snapshot)
    plan, elsewhere = a_plan("pressed[0:4]", problem), a_plan("old-kernel[0:4]", problem)
    policy, memory, found = Policy(window=timedelta(seconds=20), review=timedelta(hours=1)), Memory(reviewed=START), None
    for seconds in range(0, 35, 5):
        found, memory = check(inputs(problem, plan, seconds), policy, memory)
    assert found is not None
    assert found.reason is Reason.UTILIZATION_SHIFTED
    assert re.fullmatch(r"stage 0 on pressed: 7[4-6] % lost to waiting for a processor for \d+ s \(limit 70 %\)", found.message)

    slow, quick = (predict(each, problem).time_per_output_token_ms for each in (plan, elsewhere))
    assert 2.5 < slow / quick < 0.85 / 0.25, "what is left of the nodes, but for the server's own millisecond"


def test_pressure_can_be_left_out(tmp_path: Path):
    with serving_samples(samples("nodeExporter"), tmp_path) as url:
        given = Settings(prometheus_url=url, use_pressure=False)
        found = read_metrics(PrometheusMetrics(given), Directory(NODES, PODS), given)
    assert found.node_cpu_cores.by_name
    assert not found.node_cpu_waiting.by_name
