"""Round trip and bandwidth of a link from hops alone: what disturbs makes a hop longer, so the best of the last ones count."""

import math
from dataclasses import dataclass, field

import pytest

from splitinference_segment.peers.links import BIG_BYTES, FORGET_S, LEAST_BIG, LEAST_SMALL, SMALL_BYTES, WINDOW_S, Links

KIB = 1024


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Line:
    """A link of so many Mbit/s and ms, with hops over it."""

    mbps: float = 100.0
    rtt_ms: float = 2.0
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.links = Links("a", self.clock)

    def sent(self, size: int, late_ms: float = 0.0, to: str = "next", target: str = "b") -> None:
        self.clock.now += 0.1
        self.links.hop(to, target, size, (self.rtt_ms + late_ms) / 1e3 + size * 8e-6 / self.mbps)

    def busy(self, big: int = 0, to: str = "next", target: str = "b") -> None:
        """Just enough small messages, and as many of `big` bytes as it takes."""
        for size in [0] * LEAST_SMALL + [big] * (LEAST_BIG if big else 0):
            self.sent(size, to=to, target=target)

    def seen(self, to: str = "next") -> dict[str, float]:
        return {name: value for name, value, labels in self.links.measures() if labels["to"] == to}


def test_small_messages_give_the_round_trip_and_big_ones_the_bandwidth():
    line = Line(mbps=100, rtt_ms=2)
    line.busy(64 * KIB)
    assert line.seen()["link_rtt_ms"] == pytest.approx(2)
    assert line.seen()["link_mbps"] == pytest.approx(100)


def test_what_disturbs_most_messages_does_not_count():
    line = Line(mbps=100, rtt_ms=2)
    for late in (30, 7, 100, 12, 55, 9, 0, 21):
        line.sent(0, late)
        line.sent(64 * KIB, late)
    assert line.seen()["link_rtt_ms"] == pytest.approx(2)
    assert line.seen()["link_mbps"] == pytest.approx(100)


def test_few_messages_say_nothing_since_the_first_ones_are_slow_on_any_link():
    line = Line()
    for _ in range(LEAST_SMALL - 1):
        line.sent(0, 80)
    assert line.seen() == {}
    line.sent(0)
    for _ in range(LEAST_BIG - 1):
        line.sent(64 * KIB, 300)
    assert "link_mbps" not in line.seen()
    line.sent(64 * KIB)
    assert line.seen()["link_mbps"] == pytest.approx(100)


def test_a_link_that_slows_down_is_seen_once_the_old_messages_are_past_the_window():
    line = Line(mbps=1000, rtt_ms=1)
    line.busy(512 * KIB)
    line.mbps, line.rtt_ms = 10, 4
    line.clock.now += WINDOW_S
    line.busy(512 * KIB)
    assert line.seen()["link_rtt_ms"] == pytest.approx(4)
    assert line.seen()["link_mbps"] == pytest.approx(10)


def test_a_bandwidth_too_quick_to_be_seen_is_unknown_and_not_a_guess():
    line = Line(mbps=10_000)
    line.busy(64 * KIB)
    assert math.isnan(line.seen()["link_mbps"])
    line.clock.now += WINDOW_S
    line.busy(4096 * KIB)
    assert line.seen()["link_mbps"] == pytest.approx(10_000)


def test_without_small_messages_no_bandwidth_is_told():
    line = Line()
    for _ in range(LEAST_BIG):
        line.sent(512 * KIB)
    assert line.seen() == {}


def test_messages_between_small_and_big_say_nothing():
    line = Line()
    for _ in range(LEAST_SMALL):
        for size in (SMALL_BYTES + 1, BIG_BYTES - 1):
            line.sent(size)
    assert line.seen() == {}


def test_without_traffic_a_value_stays_and_grows_old_until_it_is_forgotten():
    line = Line(mbps=10, rtt_ms=2)
    line.busy(64 * KIB)
    assert line.seen()["link_mbps_age_seconds"] == 0
    line.clock.now += 120
    seen = line.seen()
    assert seen["link_rtt_ms"] == pytest.approx(2)
    assert seen["link_rtt_age_seconds"] == pytest.approx(120 + LEAST_BIG * 0.1)
    assert seen["link_mbps_age_seconds"] == pytest.approx(120)
    line.clock.now += FORGET_S
    assert line.seen() == {}


def test_each_peer_has_its_own_and_a_peer_on_another_node_begins_anew():
    line = Line(rtt_ms=2)
    line.busy()
    line.busy(to="other", target="c")
    line.rtt_ms = 9
    line.busy(target="d")
    found = {(labels["source"], labels["target"]): value for name, value, labels in line.links.measures() if name == "link_rtt_ms"}
    assert found == {("a", "d"): pytest.approx(9), ("a", "c"): pytest.approx(2)}
