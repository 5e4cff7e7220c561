"""The nodes' queries, evaluated by a real Prometheus: counters of exporters → use by others, and what becomes of odd ones."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.ports import Manifest
from splitinference.settings import QuerySet, Settings
from tests.adapters.real_prometheus import programs, serving_samples

why = programs()
pytestmark = pytest.mark.skipif(isinstance(why, str), reason=str(why))

EVERY_S, SAMPLES = 10, 9
CORES = 4.0
Counter = Callable[[float], float]
"""Seconds ago → value of a counter."""


def counter(metric: str, value: Counter, newest_ago: float = 5.0) -> list[str]:
    """Samples every ten seconds, the newest so many seconds ago (below 0: from the future)."""
    now = time.time()
    moments = [newest_ago + EVERY_S * n for n in reversed(range(SAMPLES))]
    return [f"{metric} {value(ago)} {now - ago:.3f}" for ago in moments]


def uses(cores: float) -> Counter:
    """So many cores in use all the time."""
    return lambda ago: 1000.0 - cores * ago


def started_anew(ago: float) -> float:
    """Three cores in use; the exporter started anew 40 seconds ago."""
    return 3.0 * (40 - ago) if ago < 40 else 1000.0 - 3.0 * ago


def by_exporter(node: str, value: Counter, newest_ago: float = 5.0) -> dict[str, list[str]]:
    """A machine as node-exporter shows it: what is in use, and idle time that is none."""
    at = f'instance="{node}:9100"'
    return {
        "cpu": [
            *counter(f'node_cpu_seconds_total{{{at},cpu="0",mode="user"}}', value, newest_ago),
            *counter(f'node_cpu_seconds_total{{{at},cpu="0",mode="idle"}}', uses(0.5), newest_ago),
        ],
        "uname": counter(f'node_uname_info{{{at},nodename="{node}"}}', lambda _: 1.0),
    }


def by_kubelet(node: str, value: Counter, newest_ago: float = 5.0) -> dict[str, list[str]]:
    """A node as the kubelet's cAdvisor shows it: the whole of it, and one container that must not count again."""
    return {
        "cpu": [
            *counter(f'container_cpu_usage_seconds_total{{node="{node}",id="/",instance="{node}"}}', value, newest_ago),
            *counter(f'container_cpu_usage_seconds_total{{node="{node}",id="/x",container="x",instance="{node}"}}', value, newest_ago),
        ],
        "uname": [],
    }


SHOWN: dict[QuerySet, Callable[..., dict[str, list[str]]]] = {"nodeExporter": by_exporter, "cadvisor": by_kubelet}
NODES: dict[str, tuple[Counter, float]] = {
    "busy": (uses(3.0), 5.0),
    "idle": (uses(0.0), 5.0),
    "late": (uses(3.0), 35.0),
    "restarted": (started_anew, 5.0),
    "silent": (uses(3.0), 70.0),
    "future": (uses(3.0), -200.0),
    "odd": (lambda _: float("nan"), 5.0),
    "absurd": (uses(1e6), 5.0),
}


def read(url: str, names: Iterable[str] = (), **settings: Any) -> Measured:
    """What the operator reads of nodes with these names."""
    given = Settings(prometheus_url=url, **settings)
    nodes: list[Manifest] = [{"metadata": {"name": name}} for name in names]
    return read_metrics(PrometheusMetrics(given), Directory(nodes), given)


def samples(query_set: QuerySet) -> Iterator[str]:
    shown = [SHOWN[query_set](node, *how) for node, how in NODES.items()]
    for part in ("cpu", "uname"):
        for found in shown:
            yield from found[part]


@pytest.fixture(scope="module", params=sorted(SHOWN))
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with serving_samples(samples(request.param), tmp_path_factory.mktemp("prometheus")) as url:
        yield read(url, NODES, query_set=request.param)


def used(measured: Measured, node: str) -> tuple[float | None, list[str]]:
    """Share of the node that others use, with a minute as the oldest age; and the notes."""
    judge = Judge(max_age_seconds=60)
    return judge.used_by_others(measured, node, CORES, []), judge.notes


def test_use_is_the_slope_of_the_counters(measured: Measured) -> None:
    assert not measured.problem
    assert used(measured, "busy") == (pytest.approx(0.75, abs=0.01), [])
    assert used(measured, "idle") == (pytest.approx(0.0, abs=0.01), [])


def test_samples_that_come_late_do_not_make_a_node_look_idle(measured: Measured) -> None:
    assert used(measured, "late") == (pytest.approx(0.75, abs=0.01), [])
    assert measured.node_cpu_cores.by_name["late"].age_seconds == pytest.approx(36, abs=10)


def test_what_the_hypervisor_takes_from_a_machine_is_not_there_for_us(tmp_path: Path) -> None:
    node = by_exporter("guest", uses(1.0))
    stolen = counter('node_cpu_seconds_total{instance="guest:9100",cpu="0",mode="steal"}', uses(2.0))
    waiting = counter('node_cpu_seconds_total{instance="guest:9100",cpu="0",mode="iowait"}', uses(0.5))
    with serving_samples([*node["cpu"], *stolen, *waiting, *node["uname"]], tmp_path) as url:
        found = read(url, ["guest"])
    assert used(found, "guest") == (pytest.approx(0.75, abs=0.01), [])


@pytest.mark.parametrize("node", ["restarted", "silent", "future", "odd", "nobody"])
def test_what_is_not_known_is_unknown_and_never_zero(measured: Measured, node: str) -> None:
    assert used(measured, node)[0] is None


def test_more_than_a_node_has_is_not_believed(measured: Measured) -> None:
    share, notes = used(measured, "absurd")
    assert share is None
    assert notes == ["CPU use of absurd is 1000000.0 cores, it has 4.0"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sum by (node) (", "refused a query"),
        ("no_such_function(up)", "refused a query"),
        ("up * on (job) up_twice", "refused a query"),
    ],
)
def test_a_query_that_fails_is_a_problem_in_words(query: str, said: str, tmp_path: Path) -> None:
    twice = [f'up{{node="{n}",job="j"}} 1 {time.time() - 5:.3f}' for n in "ab"]
    lines = [*twice, *(line.replace("up{", "up_twice{") for line in twice)]
    with serving_samples(lines, tmp_path) as url:
        found = read(url, ["a"], query_node_cpu_cores=query)
    assert said in found.problem
    assert url in found.problem
    assert used(found, "a")[0] is None


def test_a_query_with_several_series_for_a_node_takes_none_of_them(tmp_path: Path) -> None:
    now = time.time() - 5
    lines = [f'cores{{node="a",disk="{disk}"}} 1 {now:.3f}' for disk in "xy"] + [f'cores{{node="b"}} 1 {now:.3f}']
    with serving_samples(lines, tmp_path) as url:
        found = read(url, ["a", "b"], query_node_cpu_cores="cores")
    assert used(found, "a")[0] is None
    assert used(found, "b")[0] == 0.25
    assert found.notes == ("a: 2 series where one was expected, so none is used",)
