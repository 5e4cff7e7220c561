"""The probe between two real hosts: what it measures is the link's rate, and it keeps its budget."""

import time
from collections.abc import Iterator

import pytest

from tests.probe.namespaces import Hosts, missing, two_hosts

RTT = 'splitinference_link_rtt_ms{source="node-a",target="node-b"}'
MBPS = 'splitinference_link_mbps{source="node-a",target="node-b"}'
BACK = 'splitinference_link_mbps{source="node-b",target="node-a"}'
AGE = 'splitinference_link_mbps_age_seconds{source="node-a",target="node-b"}'
SENT = "splitinference_probe_burst_bytes_total"
BURSTS = 'splitinference_probe_bursts_total{ended="measured"}'
MIB = 1 << 20


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if why := missing():
        pytest.skip(f"network namespaces: {why}")
    with two_hosts() as made:
        yield made


@pytest.mark.parametrize("mbit", [3, 50])
def test_a_shaped_link_is_measured_within_a_quarter_of_its_rate_and_the_other_way_is_not_slowed(hosts: Hosts, mbit: int):
    hosts.limit("a", mbit)
    with hosts.probe("a", burst_interval=1) as a, hosts.probe("b", burst_interval=1) as b:
        a.wait_until(lambda found: found.get(BURSTS, 0) >= 2)
        assert a.metrics()[MBPS] == pytest.approx(mbit, rel=0.25)
        assert b.wait(BACK) > 2 * mbit
        assert 0 < a.metrics()[RTT] < 100
        assert a.resident_kib() < 40 * 1024


def test_a_link_that_slows_down_and_recovers_is_followed(hosts: Hosts):
    with hosts.probe("a", burst_interval=1) as a, hosts.probe("b", budget=0):
        assert a.wait(MBPS) > 100
        hosts.limit("a", 5)
        assert a.wait_until(lambda found: found[MBPS] < 10)[MBPS] == pytest.approx(5, rel=0.3)
        hosts.limit("a", None)
        a.wait_until(lambda found: found[MBPS] > 100)


def test_a_link_too_thin_for_the_first_burst_is_measured_with_a_smaller_one(hosts: Hosts):
    hosts.limit("a", 0.2)
    with hosts.probe("a", burst_interval=1) as a, hosts.probe("b", budget=0):
        assert a.wait(MBPS, seconds=60) == pytest.approx(0.2, rel=0.5)


def test_the_budget_is_kept(hosts: Hosts):
    with hosts.probe("a", burst_interval=0.1, burst_bytes=MIB, budget=2 * MIB) as a, hosts.probe("b", budget=0):
        a.wait_until(lambda found: found[SENT] == 2 * MIB)
        time.sleep(3)
        found = a.metrics()
        assert found[SENT] == 2 * MIB, "the third burst has to wait for the next minute"
        assert found[AGE] > 1


def test_without_a_budget_there_are_round_trips_alone(hosts: Hosts):
    with hosts.probe("a", budget=0) as a, hosts.probe("b", budget=0) as b:
        a.wait(RTT)
        b.wait('splitinference_link_rtt_ms{source="node-b",target="node-a"}')
        time.sleep(2)
        assert a.metrics()[SENT] == 0
        assert not any(name.startswith("splitinference_link_mbps{") for name in a.metrics())


def test_a_peer_that_is_gone_grows_old_and_goes(hosts: Hosts):
    with hosts.probe("a", keep=4, burst_interval=1) as a:
        with hosts.probe("b", budget=0):
            a.wait(MBPS)
        assert a.process.poll() is None
        a.wait_until(lambda found: RTT not in found and MBPS not in found)
