"""A cluster whose nodes, pods and Services have IPv6 addresses and no others: a model in segments serves tokens."""

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


@pytest.fixture(scope="module")
def six() -> Iterator[Cluster]:
    """A cluster of its own. The private engine is started with a network that has IPv6, so none may run before."""
    settings = replace(SETTINGS, name=f"{SETTINGS.name}-six", family="ipv6")
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


def test_all_addresses_are_ipv6(six: Cluster) -> None:
    pods = json.loads(six.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    services = json.loads(six.kubectl("get", "services", "-A", "-o", "json"))["items"]
    nodes = json.loads(six.kubectl("get", "nodes", "-o", "json"))["items"]
    addresses = [each["ip"] for pod in pods for each in pod["status"].get("podIPs", [])]
    addresses += [each for service in services for each in service["spec"]["clusterIPs"] if each != "None"]
    addresses += [each["address"] for node in nodes for each in node["status"]["addresses"] if each["type"] == "InternalIP"]
    assert len(addresses) > 10
    assert {ip_address(each).version for each in addresses} == {6}


def test_tokens_go_through_all_segments_as_from_the_unsplit_model(six: Cluster) -> None:
    """Gateway, segments and operator speak over IPv6 alone, so an answer with the right words says that all of them do."""
    question = "What is photosynthesis?"
    assert len(stack.placement(stack.resource(six, NAME))) >= 2
    with stack.endpoint(six, NAME) as base_url, openai.OpenAI(base_url=base_url, api_key="none", timeout=600) as client:
        answer = client.chat.completions.create(
            model=stack.MODEL, messages=[{"role": "user", "content": question}], max_tokens=16, temperature=0
        )
    unsplit = stack.unsplit(six, question, 16)
    assert (answer.choices[0].message.content or "").split()[:8] == unsplit.split()[:8]


def test_metrics_are_read_over_ipv6(six: Cluster) -> None:
    stack.until(
        lambda: stack.condition(stack.resource(six, NAME), "MetricsAvailable").get("status") == "True", 60, "Prometheus' figures of nodes"
    )
