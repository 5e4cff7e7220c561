"""GPUs and power, evaluated by a real Prometheus over what dcgm-exporter and node-exporter say: a share that others use, and watts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.ports import Manifest
from splitinference.settings import QuerySet, Settings
from tests.adapters.promql.test_node_queries import SHOWN, counter, uses
from tests.adapters.real_prometheus import programs, serving_samples

why = programs()
pytestmark = pytest.mark.skipif(isinstance(why, str), reason=str(why))

NAMES = ("two", "ours", "part", "scraped", "relabelled", "shared", "late", "a")
GPU = {"labels": {"splitinference.dev/processor": "gpu"}, "annotations": {"splitinference.dev/idle-watts": "50"}}
NODES: list[Manifest] = [{"metadata": {"name": name, **GPU}} for name in NAMES]
PLAIN: list[Manifest] = [{"metadata": {"name": "two"}}]


def read(given: Settings, nodes: list[Manifest]) -> Measured:
    return read_metrics(PrometheusMetrics(given), Directory(nodes), given)


def gpu(
    node: str, number: int, percent: float, watts: float, more: str = "", *, name: str = "Hostname", newest_ago: float = 5.0
) -> list[str]:
    """One GPU as dcgm-exporter shows it: its use in per cent, its watts."""
    labels = f'{name}="{node}",gpu="{number}",UUID="GPU-{node}-{number}",device="nvidia{number}"{more}'
    return [
        *counter(f"DCGM_FI_DEV_GPU_UTIL{{{labels}}}", lambda _: percent, newest_ago),
        *counter(f"DCGM_FI_DEV_POWER_USAGE{{{labels}}}", lambda _: watts, newest_ago),
    ]


def inside(container: str, prefix: str = "") -> str:
    """Labels of a GPU that Kubernetes gave to this container."""
    return f',{prefix}namespace="team",{prefix}pod="p",{prefix}container="{container}"'


OURS = inside("segment")


def samples(query_set: QuerySet) -> Iterator[str]:
    found = [
        *gpu("two", 0, 80, 300),
        *gpu("two", 1, 20, 100),
        *gpu("ours", 0, 90, 350, OURS),
        *gpu("part", 0, 90, 350, OURS),
        *gpu("part", 1, 60, 200, inside("train")),
        *gpu("scraped", 0, 90, 350, inside("segment", "exported_")),
        *gpu("scraped", 1, 30, 100, inside("train", "exported_")),
        *gpu("relabelled", 0, 40, 100, ',Hostname="dcgm-exporter-x7k2"', name="node"),
        *gpu("shared", 0, 70, 250, inside("segment")),
        *gpu("shared", 0, 70, 250, inside("train")),
        *gpu("late", 0, 70, 250, newest_ago=75.0),
    ]
    found.sort(key=lambda line: line.partition("{")[0])
    cpus = SHOWN[query_set]("two", uses(1.0))
    packages = [
        counter(f'node_rapl_{part}_joules_total{{instance="two:9100",index="0",path="/sys/class/powercap/intel-rapl:0"}}', uses(watts))
        for part, watts in (("package", 60.0), ("dram", 10.0))
    ]
    return iter([*found, *cpus["cpu"], *cpus["uname"], *(line for package in packages for line in package)])


@pytest.fixture(scope="module", params=sorted(SHOWN))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with serving_samples(samples(request.param), tmp_path_factory.mktemp("prometheus")) as url:
        yield Settings(prometheus_url=url, query_set=request.param)


@pytest.fixture(scope="module")
def measured(server: Settings) -> Measured:
    return read(server, NODES)


@pytest.mark.parametrize(
    ("node", "used", "by_others"),
    [
        ("two", 0.5, 0.5),
        ("ours", 0.9, 0.0),
        ("part", 0.75, 0.3),
        ("scraped", 0.6, 0.15),
        ("relabelled", 0.4, 0.4),
        ("shared", 0.7, 0.7),
    ],
)
def test_the_share_of_gpu_time_that_is_used_and_what_of_it_others_use(measured: Measured, node: str, used: float, by_others: float) -> None:
    judge = Judge(max_age_seconds=60)
    assert judge.share(measured.node_gpu_used, node, "GPU use") == pytest.approx(used)
    assert judge.share(measured.node_gpu_used_by_others, node, "GPU use by others") == pytest.approx(by_others)
    assert judge.notes == []
    assert not measured.notes


def test_what_is_old_is_unknown(measured: Measured) -> None:
    assert Judge(max_age_seconds=60).share(measured.node_gpu_used_by_others, "late", "GPU use by others") is None
    assert Judge(max_age_seconds=60).share(measured.node_gpu_used_by_others, "nobody", "GPU use by others") is None


def test_power_is_that_of_all_processors_that_say_it(server: Settings, measured: Measured) -> None:
    watts = {name: sample.value for name, sample in measured.node_watts.by_name.items()}
    packages = 70.0 if server.query_set == "nodeExporter" else 0.0
    assert watts["two"] == pytest.approx(400.0 + packages, rel=0.01)
    assert watts["part"] == pytest.approx(550.0)
    assert watts["shared"] == pytest.approx(250.0), "one GPU, however many containers share it"


def test_nothing_is_asked_that_no_node_needs(server: Settings) -> None:
    found = read(server, PLAIN)
    assert (found.node_gpu_used.by_name, found.node_gpu_used_by_others.by_name, found.node_watts.by_name) == ({}, {}, {})
    assert found.node_cpu_cores.by_name


def test_a_query_of_the_users_own_counts_instead(tmp_path: Path) -> None:
    lines = [*counter('mine{node="a"}', lambda _: 0.25), *counter('node_cpu_seconds_total{instance="a:9100",mode="user"}', uses(1))]
    with serving_samples(iter(lines), tmp_path) as url:
        given = Settings(prometheus_url=url, query_node_gpu_used_by_others="mine", query_node_watts="mine * 400")
        found = read(given, NODES)
    assert found.node_gpu_used_by_others.by_name["a"].value == 0.25
    assert found.node_watts.by_name["a"].value == 100.0
