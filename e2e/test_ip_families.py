"""Clusters whose nodes, pods and Services have IPv6 addresses and no others, or both families: a model in segments serves tokens."""

import json
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import openai
import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.machine import engine
from e2e.cluster.progress import shown
from e2e.scene import NAME
from e2e.session import SETTINGS

pytestmark = [pytest.mark.cluster, pytest.mark.long]
_ASK = "import sys,urllib.request as u;[print(u.urlopen(f'http://{a}:8000/v1/models',timeout=20).status) for a in sys.argv[1:]]"


@pytest.fixture(scope="module", params=["ipv6", "dual"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster of its own. The private engine is started with a network that has IPv6, so none may run before."""
    settings = replace(SETTINGS, name=f"{SETTINGS.name}-six", family=request.param)
    if engine.find(settings) is not None:
        pytest.skip("an engine runs whose network may have no IPv6: take other clusters down first")
    with shown() as progress:
        made = Cluster(settings, progress)
        try:
            stack.stand_up(made)
            stack.apply_sample(made)
            stack.wait_ready(made, NAME)
            yield made
        finally:
            made.down()


def _versions(addresses: list[str]) -> set[int]:
    return {ip_address(each).version for each in addresses}


def _wanted(cluster: Cluster) -> set[int]:
    return {int(family[-1]) for family in cluster.settings.families}


def test_all_addresses_are_of_the_clusters_families(cluster: Cluster) -> None:
    """Of the nodes, of each pod that has an address of its own, and of the Services that clients and segments use."""
    wanted = _wanted(cluster)
    nodes = json.loads(cluster.kubectl("get", "nodes", "-o", "json"))["items"]
    assert _versions([each["address"] for node in nodes for each in node["status"]["addresses"] if each["type"] == "InternalIP"]) == wanted
    pods = json.loads(cluster.kubectl("get", "pods", "-o", "json"))["items"]
    assert len(pods) >= 3
    for pod in pods:
        assert _versions([each["ip"] for each in pod["status"]["podIPs"]]) == wanted, pod["metadata"]["name"]
    ours = cluster.kubectl("get", "services", "-A", "-l", "app.kubernetes.io/managed-by=splitinference", "-o", "json")
    services = json.loads(ours)["items"]
    served = [each for service in services if (each := service["spec"]["clusterIPs"]) != ["None"]]
    assert served
    assert all(_versions(each) == wanted for each in served)


def test_the_gateway_answers_on_each_address(cluster: Cluster) -> None:
    """Asked from a pod, by the addresses of its Service."""
    service = json.loads(cluster.kubectl("get", "service", f"{NAME}-gateway", "-o", "json"))
    hosts = [f"[{each}]" if ":" in each else each for each in service["spec"]["clusterIPs"]]
    assert len(hosts) == len(_wanted(cluster))
    said = cluster.kubectl("exec", f"deploy/{NAME}-gateway", "-c", "gateway", "--", "python", "-c", _ASK, *hosts)
    assert said.split() == ["200"] * len(hosts)


def test_tokens_go_through_all_segments_as_from_the_unsplit_model(cluster: Cluster) -> None:
    """Gateway, segments and operator speak with each other, so an answer with the right words says that all of them do."""
    question = "What is photosynthesis?"
    assert len(stack.placement(stack.resource(cluster, NAME))) >= 2
    with stack.endpoint(cluster, NAME) as base_url, openai.OpenAI(base_url=base_url, api_key="none", timeout=600) as client:
        answer = client.chat.completions.create(
            model=stack.MODEL, messages=[{"role": "user", "content": question}], max_tokens=16, temperature=0
        )
    unsplit = stack.unsplit(cluster, question, 16)
    assert (answer.choices[0].message.content or "").split()[:8] == unsplit.split()[:8]


def test_metrics_are_read(cluster: Cluster) -> None:
    available = lambda: stack.condition(stack.resource(cluster, NAME), "MetricsAvailable").get("status") == "True"  # noqa: E731
    stack.until(available, 60, "Prometheus' figures of nodes")
