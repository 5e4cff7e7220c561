"""The links' queries, evaluated by a real Prometheus: what segments and probes export → one value with its age for each link."""

import json
import subprocess
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.adapters.promql.queries import SETS, Queries
from splitinference.controller.cluster_state.figures.node_metrics import Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.ports import Manifest, Sample, Samples
from splitinference.settings import QuerySet, Settings
from tests.adapters.real_prometheus import programs, serving_samples, serving_series

NAN = "NaN"


OPERATORS = "splitinference-system"


def address(name: str) -> str:
    """An address that no other pod of the test has."""
    return f"10.{zlib.crc32(name.encode()) % 250}.{zlib.adler32(name.encode()) % 250}.{len(name)}"


def probe(source: str, target: str, figure: str, value: object, *, age: float) -> list[str]:
    """What a probe exports, with labels as a scrape by pods gives them."""
    pod = f"probe-{source}"
    scraped = f'instance="{address(pod)}:8082",namespace="{OPERATORS}",node="{source}",pod="{pod}"'
    labels = f'{{{scraped},source="{source}",target="{target}"}}'
    name = f"splitinference_link_{figure}"
    return [f"{name}{labels} {value}", f"{name.removesuffix('_ms')}_age_seconds{labels} {age}"]


def segment(source: str, target: str, figure: str, value: object, *, age: float, to: str = "s2", pod: str = "") -> list[str]:
    """What a segment exports of its hops to segment `to`."""
    pod = pod or f"segment-{source}"
    scraped = f'instance="{address(pod)}:8002",namespace="team",pod="{pod}"'
    labels = f'{{{scraped},segment="{pod}",source="{source}",target="{target}",to="{to}"}}'
    name = f"splitinference_segment_link_{figure}"
    return [f"{name}{labels} {value}", f"{name.removesuffix('_ms')}_age_seconds{labels} {age}"]


def probe_pod(node: str) -> Manifest:
    labels = {"app.kubernetes.io/name": "splitinference", "app.kubernetes.io/component": "probe"}
    name = f"probe-{node}"
    metadata = {"namespace": OPERATORS, "name": name, "labels": labels}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": "Running", "podIP": address(name)}}


def segment_pod(node: str) -> Manifest:
    labels = {
        "app.kubernetes.io/managed-by": "splitinference",
        "app.kubernetes.io/component": "segment",
        "app.kubernetes.io/instance": "chat",
    }
    name = f"segment-{node}"
    owner = {"kind": "SplitInference", "name": "chat", "uid": "u"}
    metadata = {"namespace": "team", "name": name, "labels": labels, "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {"nodeName": node}, "status": {"phase": "Running", "podIP": address(name)}}


def read(url: str, sources: Iterable[str], **settings: Any) -> Measured:
    """What the operator reads, with a probe and a segment on each of these nodes."""
    given, names = Settings(prometheus_url=url, **settings), list(sources)
    nodes: list[Manifest] = [{"metadata": {"name": name}} for name in names]
    pods = [make(name) for name in names for make in (probe_pod, segment_pod)]
    return read_metrics(PrometheusMetrics(given), Directory(nodes, pods, OPERATORS), given)


SOURCES = ("only-probe", "only-segment", "both", "slowed", "left", "quick", "quick-alone", "shared", "old", "zero")
SERIES = [
    *probe("only-probe", "x", "mbps", 940, age=20),
    *probe("only-probe", "x", "rtt_ms", 0.25, age=5),
    *segment("only-segment", "x", "mbps", 85, age=3),
    *segment("only-segment", "x", "rtt_ms", 1.5, age=3),
    # both fresh: what disturbed one of them did not disturb the other
    *probe("both", "x", "mbps", 900, age=10),
    *segment("both", "x", "mbps", 300, age=1),
    *probe("both", "x", "rtt_ms", 0.2, age=10),
    *segment("both", "x", "rtt_ms", 0.9, age=1),
    # a probe that came round long ago, and traffic that sees the link as it is now
    *probe("slowed", "x", "mbps", 1000, age=200),
    *segment("slowed", "x", "mbps", 10, age=2),
    # neither is fresh: traffic left the slow link, the probe has not come round since
    *probe("left", "x", "mbps", 1000, age=250),
    *segment("left", "x", "mbps", 10, age=100),
    # too quick to be seen by traffic
    *probe("quick", "x", "mbps", 2000, age=90),
    *segment("quick", "x", "mbps", NAN, age=1),
    *segment("quick-alone", "x", "mbps", NAN, age=1),
    # two segments on the link, one of them disturbed
    *segment("shared", "x", "mbps", 40, age=1, to="s2"),
    *segment("shared", "x", "mbps", 80, age=8, to="s3"),
    *probe("old", "x", "mbps", 700, age=400),
    *segment("zero", "x", "rtt_ms", 0, age=4),
    *segment("zero", "x", "mbps", 0, age=4),
]


@pytest.fixture(scope="module", params=["nodeExporter", "cadvisor"])
def measured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    with serving_series(SERIES, tmp_path_factory.mktemp("prometheus")) as url:
        yield read(url, SOURCES, query_set=request.param, metrics_max_age_seconds=60, link_max_age_seconds=300)


def said(samples: Samples, source: str) -> Sample | None:
    assert not samples.problem
    assert not samples.notes
    return samples.by_name.get(f"{source}/x")


@pytest.mark.parametrize(
    ("source", "mbps", "age"),
    [
        ("only-probe", 940, 20),
        ("only-segment", 85, 3),
        ("both", 900, 1),
        ("slowed", 10, 2),
        ("left", 10, 100),
        ("quick", 2000, 90),
        ("shared", 80, 1),
    ],
)
def test_the_best_fresh_bandwidth_counts_and_else_the_newest(measured: Measured, source: str, mbps: float, age: float):
    found = said(measured.links_mbps, source)
    assert found is not None
    assert found.value == mbps
    assert age + 2 <= found.age_seconds < age + 30, "the time since the scrape counts too"


@pytest.mark.parametrize("source", ["quick-alone", "old", "zero", "nobody"])
def test_what_is_not_known_is_missing(measured: Measured, source: str):
    assert said(measured.links_mbps, source) is None


def test_the_shortest_fresh_round_trip_counts_and_none_is_too_short(measured: Measured):
    found = measured.links_rtt_ms
    assert {name: sample.value for name, sample in found.by_name.items()} == {
        "only-probe/x": 0.25,
        "only-segment/x": 1.5,
        "both/x": 0.2,
        "zero/x": 0,
    }


def test_what_a_segment_measured_outlives_it(tmp_path: Path):
    """A link is left because it is slow; who measured that is deleted."""
    now = time.time()
    ended = now - 400  # no instant query looks back so far
    lines = [f"{line} {ended:.3f}" for line in segment("thin", "x", "mbps", 1.5, age=3)]
    lines += [f"{line} {ended:.3f}" for line in segment("thin-and-new", "x", "mbps", 1.5, age=3, to="s2")]
    lines += [f"{line} {now - 2:.3f}" for line in segment("thin-and-new", "x", "mbps", 90, age=1, to="s3")]
    lines += [f"{line} {now - 2000:.3f}" for line in segment("long-ago", "x", "mbps", 1.5, age=3)]
    with serving_samples(sorted(lines), tmp_path) as url:
        found = read(url, ["thin", "thin-and-new", "long-ago"]).links_mbps
    assert found.problem == ""
    assert {name: sample.value for name, sample in found.by_name.items()} == {"thin/x": 1.5, "thin-and-new/x": 90}
    assert 400 <= found.by_name["thin/x"].age_seconds <= 450
    assert found.by_name["thin-and-new/x"].age_seconds < 30


@pytest.mark.parametrize("query_set", SETS)
def test_of_a_segment_that_is_gone_there_is_a_value_with_its_age_or_neither(query_set: QuerySet, tmp_path: Path):
    """Also where it was scraped only once or twice: by the second, from its first scrape to its last, and while it is still there."""
    tools = programs()
    if isinstance(tools, str):
        pytest.skip(tools)
    lives = [(first, first + length) for first in range(20) for length in (1, 2, 7, 15, 40)] + [(50, 200)]
    for figure in ("mbps", "rtt_ms"):
        series = [
            {"series": line.rpartition(" ")[0], "values": f"{'_ ' * first}1x{last - first} stale"}
            for first, last in lives
            for line in segment("thin", "x", figure, 1, age=1, pod=f"pod-{first}-{last}")
        ]
        query = getattr(SETS[query_set], f"links_{figure}").text(20, 300)
        long_enough = [life for life in lives if life[0] // 15 != life[1] // 15 or life[0] % 15 == 0]
        counted = [{"labels": f'{{si_kind="{kind}"}}', "value": len(long_enough)} for kind in ("age", "value")]
        at = {"eval_time": "100s", "expr": f"count by (si_kind) ({query})", "exp_samples": counted}
        about = tmp_path / f"{figure}.yml"
        about.write_text(json.dumps({"tests": [{"interval": "1s", "input_series": series, "promql_expr_test": [at]}]}))
        done = subprocess.run([tools["promtool"], "test", "rules", about], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_a_set_is_one_that_prometheus_understands(tmp_path: Path):
    with serving_series(SERIES[:1], tmp_path) as url:
        for query_set in SETS:
            metrics = PrometheusMetrics(Settings(prometheus_url=url, query_set=query_set))
            for name in Queries.__dataclass_fields__:
                assert not getattr(metrics, name)().problem, name
