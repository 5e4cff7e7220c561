"""The link probe on the kind cluster: every link between workers is measured, a slowed one as slow, and it takes no more than is stated."""

import itertools

import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.probing import BUDGET, PROBE_MIB, links_mbps, links_rtt_ms, probed, value

pytestmark = [pytest.mark.cluster, pytest.mark.long]

SLOW_MBIT = 10.0


def test_every_link_is_measured_and_a_slowed_one_is_slow(cluster: Cluster) -> None:
    workers = cluster.settings.worker_names()
    pairs = {f"{source}/{target}" for source, target in itertools.permutations(workers, 2)}
    with probed(cluster):
        stack.until(lambda: set(links_mbps(cluster).by_name) >= pairs, 180, "every link's bandwidth is known")
        assert set(links_rtt_ms(cluster).by_name) >= pairs
        taken = nodes_of_segments(cluster)
        slow = next((node for node in reversed(workers) if node not in taken), workers[-1])  # no reason for anybody to move
        cluster.link(slow, SLOW_MBIT)
        try:
            stack.until(lambda: all(mbps(cluster, pair) < 2 * SLOW_MBIT for pair in pairs if pair.startswith(f"{slow}/")), 180, "slow")
            assert all(mbps(cluster, pair) > SLOW_MBIT / 2 for pair in pairs)
            others = [mbps(cluster, pair) for pair in pairs if slow not in pair]
            assert sorted(others)[len(others) // 2] > 5 * SLOW_MBIT
        finally:
            cluster.link(slow)
        assert value(cluster, "max(increase(splitinference_probe_burst_bytes_total[1m]))") <= 1.5 * BUDGET
        assert value(cluster, 'max(container_memory_working_set_bytes{container="probe"})') < PROBE_MIB * 2**20


def nodes_of_segments(cluster: Cluster) -> list[str]:
    """Where segments of other tests run."""
    words = ("get", "pods", "-A", "-l", "app.kubernetes.io/component=segment", "-o", "jsonpath={.items[*].spec.nodeName}")
    return cluster.kubectl(*words).split()


def mbps(cluster: Cluster, pair: str) -> float:
    found = links_mbps(cluster).by_name[pair].value
    assert found is not None
    return found
