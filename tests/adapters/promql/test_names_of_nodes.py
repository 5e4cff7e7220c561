"""Nodes are told from series as usual installations label them, by a real Prometheus; and what is said where none is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.adapters.promql.queries import SETS, Queries
from splitinference.controller.cluster_state.figures.node_metrics import Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.ports import Manifest
from splitinference.settings import QuerySet, Settings
from tests.adapters.promql.test_node_queries import counter, uses
from tests.adapters.real_prometheus import serving_samples


def a_node(name: str, ip: str, hostname: str = "", dns: str = "", **labels: str) -> Manifest:
    addresses = [("InternalIP", ip), ("Hostname", hostname), ("InternalDNS", dns), ("ExternalIP", "203.0.113.9")]
    status = {"addresses": [{"type": kind, "address": address} for kind, address in addresses if address]}
    return {"metadata": {"name": name, "labels": {key.replace("__", "/"): value for key, value in labels.items()}}, "status": status}


@dataclass(frozen=True)
class Setup:
    """Two nodes, and the labels with which an installation scrapes them. `uname`: the machines' own names."""

    nodes: tuple[Manifest, Manifest]
    scraped: tuple[str, str]
    uname: tuple[str, str] = ("", "")
    query_set: QuerySet = "nodeExporter"
    job: str = "node-exporter"

    def series(self) -> Iterator[str]:
        for labels in self.scraped:
            at = f'job="{self.job}",{labels}'
            if self.query_set == "cadvisor":
                yield from counter(f'container_cpu_usage_seconds_total{{{at},id="/"}}', uses(1.0))
            else:
                yield from counter(f'node_cpu_seconds_total{{{at},cpu="0",mode="user"}}', uses(1.0))
        for labels, name in zip(self.scraped, self.uname, strict=True):
            if name:
                yield from counter(f'node_uname_info{{job="{self.job}",{labels},nodename="{name}",sysname="Linux"}}', lambda _: 1.0)


EKS = tuple(
    a_node(f"ip-10-0-1-{n}.eu-west-1.compute.internal", f"10.0.1.{n}", dns=f"ip-10-0-1-{n}.eu-west-1.compute.internal") for n in (5, 6)
)
OKE = tuple(a_node(f"10.0.10.{n}", f"10.0.10.{n}", f"10.0.10.{n}") for n in (5, 6))
GKE = tuple(a_node(f"gke-prod-pool-1-3f6a-{n}", f"10.132.0.{n}", f"gke-prod-pool-1-3f6a-{n}") for n in ("x1z9", "q7w2"))
AKS = tuple(a_node(f"aks-pool1-32985-vmss00000{n}", f"10.224.0.{n}", f"aks-pool1-32985-vmss00000{n}") for n in ("4", "a"))
METAL = tuple(a_node(f"worker{n}.rack1.example.org", f"192.168.7.{n}", f"worker{n}") for n in (1, 2))
SIX = tuple(a_node(f"six-{n}", f"fd00:10::{n}") for n in ("a1", "a2"))

SETUPS: dict[str, Setup] = {
    # the ServiceMonitor of kube-prometheus-stack attaches no node; what is scraped is the node's address
    "kube-prometheus-stack on EKS": Setup(
        EKS,
        (
            'instance="10.0.1.5:9100",namespace="monitoring",pod="e-1",service="e"',
            'instance="10.0.1.6:9100",namespace="monitoring",pod="e-2"',
        ),
        ("ip-10-0-1-5.eu-west-1.compute.internal", "ip-10-0-1-6.eu-west-1.compute.internal"),
    ),
    "kube-prometheus-stack on Bottlerocket, whose machines have short names": Setup(
        EKS, ('instance="10.0.1.5:9100"', 'instance="10.0.1.6:9100"'), ("ip-10-0-1-5", "ip-10-0-1-6")
    ),
    "its kubelets": Setup(
        EKS,
        tuple(f'instance="10.0.1.{n}:10250",node="{EKS[n - 5]["metadata"]["name"]}",endpoint="https-metrics"' for n in (5, 6)),
        query_set="cadvisor",
        job="kubelet",
    ),
    "prometheus community chart, endpoints with node": Setup(
        METAL, tuple(f'instance="192.168.7.{n}:9100",node="worker{n}.rack1.example.org"' for n in (1, 2)), ("worker1", "worker2")
    ),
    "prometheus community chart, nodes by name": Setup(
        METAL,
        tuple(f'instance="worker{n}.rack1.example.org",kubernetes_io_hostname="worker{n}"' for n in (1, 2)),
        query_set="cadvisor",
        job="kubernetes-nodes-cadvisor",
    ),
    "only the machines' short names": Setup(METAL, ('instance="a:9100"', 'instance="b:9100"'), ("WORKER1", "Worker2")),
    "OKE, whose nodes are named by address": Setup(
        OKE, ('instance="10.0.10.5:9100"', 'instance="10.0.10.6:9100"'), ("oke-cqk5-n5fn-s7-0", "oke-cqk5-n5fn-s7-1")
    ),
    "GKE managed Prometheus, node-exporter": Setup(
        GKE,
        tuple(f'cluster="prod",location="eu",instance="{n["metadata"]["name"]}:metrics"' for n in GKE),
        tuple(n["metadata"]["name"] for n in GKE),
    ),
    "GKE managed Prometheus, kubelets": Setup(
        GKE,
        tuple(f'instance="{n["metadata"]["name"]}:cadvisor",node="{n["metadata"]["name"]}"' for n in GKE),
        query_set="cadvisor",
        job="kubelet",
    ),
    "Azure managed Prometheus": Setup(
        AKS,
        tuple(f'cluster="prod",instance="{n["metadata"]["name"]}"' for n in AKS),
        ("aks-pool1-32985-vmss000004", "aks-pool1-32985-vmss00000A"),
        job="node",
    ),
    "IPv6": Setup(SIX, ('instance="[fd00:10::a1]:9100"', 'instance="[fd00:10:0::A2]:9100"')),
    "no uname collector": Setup(METAL, ('instance="192.168.7.1:9100"', 'instance="192.168.7.2:9100"')),
}


def read(setup: Setup, folder: Path, more: tuple[str, ...] = ()) -> Measured:
    lines = sorted([*setup.series(), *more], key=lambda line: line.partition("{")[0])
    with serving_samples(lines, folder) as url:
        given = Settings(prometheus_url=url, query_set=setup.query_set)
        return read_metrics(PrometheusMetrics(given), Directory(setup.nodes), given)


@pytest.mark.parametrize("name", SETUPS)
def test_both_nodes_are_known_however_they_are_called(name: str, tmp_path: Path):
    setup = SETUPS[name]
    found = read(setup, tmp_path)
    assert not found.problem
    assert not found.notes
    assert set(found.node_cpu_cores.by_name) == {node["metadata"]["name"] for node in setup.nodes}
    assert all(sample.value == pytest.approx(1.0, abs=0.01) for sample in found.node_cpu_cores.by_name.values())
    assert (found.coverage.known, found.coverage.nodes, found.coverage.words) == (2, 2, "")


def test_where_no_series_is_a_nodes_both_sets_are_named(tmp_path: Path):
    other = Setup(METAL, ('instance="172.16.0.1:9100"', 'instance="172.16.0.2:9100"'), ("alpha", "beta"))
    found = read(other, tmp_path)
    assert not found.node_cpu_cores.by_name
    assert found.coverage.known == 0
    assert found.coverage.unmatched == ("alpha", "beta")
    assert found.coverage.without == ("worker1.rack1.example.org", "worker2.rack1.example.org")


def test_a_first_name_that_two_nodes_share_is_nobodys(tmp_path: Path):
    twins = (a_node("web.a.example", "10.1.0.1"), a_node("web.b.example", "10.1.0.2"))
    found = read(Setup(twins, ('instance="x:9100"', 'instance="y:9100"'), ("web", "web.b.example")), tmp_path)
    assert set(found.node_cpu_cores.by_name) == {"web.b.example"}
    assert found.coverage.unmatched == ("web",)


def test_an_exporter_that_two_jobs_scrape_counts_once(tmp_path: Path):
    again = counter('node_cpu_seconds_total{job="annotations",instance="10.0.1.5:9100",cpu="0",mode="user"}', uses(1.0))
    found = read(SETUPS["kube-prometheus-stack on EKS"], tmp_path, tuple(again))
    assert found.node_cpu_cores.by_name[EKS[0]["metadata"]["name"]].value == pytest.approx(1.0, abs=0.01)


def test_of_a_server_with_several_clusters_only_the_selected_one_counts(tmp_path: Path):
    """Addresses are alike in many clusters."""
    lines = []
    for cluster, cores in (("prod", 1.0), ("test", 3.0)):
        at = f'cluster="{cluster}",job="node",instance="10.0.10.5:9100"'
        lines += counter(f'node_cpu_seconds_total{{{at},cpu="0",mode="user"}}', uses(cores))
        lines += counter(f'node_uname_info{{{at},nodename="oke-{cluster}"}}', lambda _: 1.0)
    with serving_samples(sorted(lines, key=lambda line: line.partition("{")[0]), tmp_path) as url:
        for cluster, cores in (("prod", 1.0), ("test", 3.0)):
            given = Settings(prometheus_url=url, prometheus_selector=f'cluster="{cluster}"')
            found = read_metrics(PrometheusMetrics(given), Directory(OKE), given)
            assert not found.notes
            assert found.node_cpu_cores.by_name["10.0.10.5"].value == pytest.approx(cores, abs=0.01)
        for query_set in SETS:
            metrics = PrometheusMetrics(Settings(prometheus_url=url, query_set=query_set, prometheus_selector='cluster="prod", a!~"b|c"'))
            for name in Queries.__dataclass_fields__:
                assert not getattr(metrics, name)().problem, name


@pytest.mark.parametrize("selector", ["cluster", 'cluster="a"}', '{cluster="a"}', 'cluster="a" or up', "cluster='a'"])
def test_a_selector_that_is_none_is_refused(selector: str):
    with pytest.raises(ValidationError):
        Settings(prometheus_selector=selector)


def test_a_pod_that_says_it_is_a_node_is_not_believed_beside_the_nodes_own_exporter(tmp_path: Path):
    name = EKS[0]["metadata"]["name"]
    pod = 'job="annotations",instance="10.0.200.17:8080",namespace="team",pod="liar"'
    lies = [
        *counter(f'node_cpu_seconds_total{{{pod},node="{name}",cpu="0",mode="user"}}', uses(7.0)),
        *counter(f'node_uname_info{{{pod},node="{name}",nodename="{name}"}}', lambda _: 1.0),
    ]
    found = read(SETUPS["kube-prometheus-stack on EKS"], tmp_path, tuple(lies))
    assert found.node_cpu_cores.by_name[name].value == pytest.approx(1.0, abs=0.01)


def test_what_a_target_exports_under_a_name_of_the_scrapes_is_not_believed(tmp_path: Path):
    """Prometheus renames what a pod exports where the scrape has such a label: exported_node, exported_instance."""
    lie = 'job="annotations",instance="10.0.200.17:8080",exported_instance="10.0.1.5:9100",exported_node="x"'
    found = read(
        SETUPS["kube-prometheus-stack on EKS"], tmp_path, tuple(counter(f'node_cpu_seconds_total{{{lie},mode="user"}}', uses(7.0)))
    )
    assert [sample.value for sample in found.node_cpu_cores.by_name.values()] == [pytest.approx(1.0, abs=0.01)] * 2
    assert found.coverage.unmatched == ("10.0.200.17:8080",)


@pytest.mark.parametrize(
    ("labels", "node", "vouched"),
    [
        ({"instance": "10.0.1.5:9100"}, 0, True),
        ({"node": "IP-10-0-1-5.eu-west-1.compute.internal", "instance": "10.0.200.1:9100"}, 0, False),
        ({"nodename": "ip-10-0-1-5"}, 0, False),
        # an address cannot be another node's; a host name may be anything
        ({"nodename": "ip-10-0-1-6", "instance": "10.0.1.5:9100"}, 0, True),
        ({"instance": "localhost:9100", "nodename": "ip-10-0-1-6.eu-west-1.compute.internal."}, 1, False),
        ({"instance": "203.0.113.9:9100"}, None, False),
        ({"instance": "10:9100"}, None, False),
        ({"node": "", "instance": ""}, None, False),
    ],
)
def test_which_node(labels: dict[str, str], node: int | None, vouched: bool):
    wanted: Any = None if node is None else EKS[node]["metadata"]["name"]
    assert Directory(EKS).node_of(labels) == (wanted, vouched)
