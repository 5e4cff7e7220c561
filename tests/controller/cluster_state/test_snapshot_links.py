"""Links between nodes as the snapshot has them: measured, annotated, or assumed."""

import pytest

from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.cluster_state.snapshot import Reading
from splitinference.controller.ports import Sample, Samples
from splitinference.core.values.cluster import LinkQuality
from tests.controller.cluster_state.read import SETTINGS, a_pod, read
from tests.controller.world import a_node


def quality(reading: Reading, source: str, target: str) -> LinkQuality:
    network = reading.snapshot.network
    found = [link.quality for link in network.links if (link.source, link.target) == (source, target)]
    return found[0] if found else network.default


def linked(**measured: Samples) -> Reading:
    a, b, c = a_node("a", **{"splitinference.dev/link-mbps": "80", "splitinference.dev/link-rtt-ms": "4"}), a_node("b"), a_node("c")
    b["metadata"]["annotations"]["splitinference.dev/links"] = '{"c": {"mbps": 8, "rttMs": 20}}'
    return read([a, b, c], measured=Measured(**measured))


def test_a_nodes_own_link_counts_both_ways_and_a_particular_link_wins():
    reading = linked()
    assert quality(reading, "a", "b") == quality(reading, "b", "a") == LinkQuality(bandwidth_bytes_per_s=10e6, rtt_ms=4)
    assert quality(reading, "b", "c") == quality(reading, "c", "b") == LinkQuality(bandwidth_bytes_per_s=1e6, rtt_ms=20)


def test_a_measured_link_wins_and_a_doubtful_one_does_not():
    fresh = linked(links_mbps=Samples(by_name={"a/b": Sample(value=16, age_seconds=1)}))
    assert quality(fresh, "a", "b") == LinkQuality(bandwidth_bytes_per_s=2e6, rtt_ms=4)
    assert quality(fresh, "b", "a").bandwidth_bytes_per_s == 10e6
    stale = linked(links_mbps=Samples(by_name={"a/b": Sample(value=16, age_seconds=SETTINGS.link_max_age_seconds + 1)}))
    assert quality(stale, "a", "b").bandwidth_bytes_per_s == 10e6
    zero = linked(links_mbps=Samples(by_name={"a/b": Sample(value=0, age_seconds=1)}))
    assert quality(zero, "a", "b").bandwidth_bytes_per_s == 10e6


def test_a_links_value_may_be_older_than_other_values():
    old = linked(links_mbps=Samples(by_name={"a/b": Sample(value=16, age_seconds=SETTINGS.metrics_max_age_seconds + 60)}))
    assert quality(old, "a", "b").bandwidth_bytes_per_s == 2e6


@pytest.mark.parametrize(
    ("mbps", "noted"), [(943.7, 940), (940, 940), (10.49, 10), (9.99, 9.9), (0.2, 0.2), (0.0123, 0.012), (99_999, 99_000)]
)
def test_a_measured_bandwidth_has_two_digits_rounded_down(mbps: float, noted: float):
    reading = linked(links_mbps=Samples(by_name={"a/b": Sample(value=mbps, age_seconds=1)}))
    assert quality(reading, "a", "b").bandwidth_bytes_per_s == pytest.approx(noted * 1e6 / 8)


@pytest.mark.parametrize(("rtt", "noted"), [(0.23, 0.3), (0.3, 0.3), (0, 0), (0.04, 0.1), (9.91, 10), (12.3, 13), (101, 110)])
def test_a_measured_round_trip_has_two_digits_rounded_up(rtt: float, noted: float):
    reading = linked(links_rtt_ms=Samples(by_name={"a/b": Sample(value=rtt, age_seconds=1)}))
    assert quality(reading, "a", "b").rtt_ms == pytest.approx(noted)


def test_a_round_trip_is_one_of_both_directions():
    reading = linked(links_rtt_ms=Samples(by_name={"a/b": Sample(value=9, age_seconds=1)}))
    assert (quality(reading, "a", "b").rtt_ms, quality(reading, "b", "a").rtt_ms) == (9, 9)
    each = {"a/b": Sample(value=9, age_seconds=1), "b/a": Sample(value=7, age_seconds=1)}
    assert quality(linked(links_rtt_ms=Samples(by_name=each)), "b", "a").rtt_ms == 7


@pytest.mark.parametrize("text", ["no json", "[]", '{"c": 3}', '{"c": {"mbps": "fast"}}', '{"c": {"mbps": 0}}', '{"c": {"mbps": true}}'])
def test_links_that_cannot_be_read_are_noted(text: str):
    node = a_node("a")
    node["metadata"]["annotations"]["splitinference.dev/links"] = text
    reading = read([node, a_node("c")])
    assert reading.snapshot.network.links == ()
    assert "splitinference.dev/links of node a is not of the form" in reading.notes[0]


def test_requests_enter_at_the_gateways_node():
    gateway = a_pod("g", "b", instance="chat")
    gateway["metadata"]["labels"]["app.kubernetes.io/component"] = "gateway"
    assert read([a_node("a"), a_node("b")], [gateway]).snapshot.network.ingress == "b"
    assert read([a_node("a")], [gateway]).snapshot.network.ingress == ""
