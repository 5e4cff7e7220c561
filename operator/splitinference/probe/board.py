"""What was measured last, as Prometheus' text: a value and its age for each link, and what the measuring cost."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

BEST_OF = 2
"""Of so many last bursts the best counts: what disturbs a burst makes it slower."""


@dataclass
class _Link:
    rtt_ms: float | None = None
    rtt_at: float = 0.0
    bursts: deque[float] = field(default_factory=lambda: deque(maxlen=BEST_OF))
    burst_at: float = 0.0


class Board(Collector):
    """Links from `source`. Written by the loop, read by the thread that answers scrapes. Values older than `keep_s` go."""

    def __init__(self, source: str, keep_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._keep_s, self._clock = source, keep_s, clock
        self._links: dict[str, _Link] = {}
        self._bytes = 0
        self._bursts: dict[str, int] = {"measured": 0, "busy": 0, "failed": 0}
        self._lock = threading.Lock()

    def round_trip(self, target: str, seconds: float) -> None:
        """A round trip was measured."""
        with self._lock:
            link = self._links.setdefault(target, _Link())
            link.rtt_ms, link.rtt_at = seconds * 1e3, self._clock()

    def burst(self, target: str, mbps: float | None, size: int) -> None:
        """A burst of `size` bytes was sent; None: its rate could not be measured."""
        with self._lock:
            self._bytes += size
            self._bursts["measured" if mbps is not None else "failed"] += 1
            if mbps is not None:
                link = self._links.setdefault(target, _Link())
                link.bursts.append(mbps)
                link.burst_at = self._clock()

    def busy(self) -> None:
        """A peer had another burst under way."""
        with self._lock:
            self._bursts["busy"] += 1

    def collect(self) -> Iterator[Metric]:
        """All families, with ages as of now."""
        labels = ("source", "target")
        rtt = GaugeMetricFamily("splitinference_link_rtt_ms", "Round trip between two nodes, shortest of some", labels=labels)
        rtt_age = GaugeMetricFamily("splitinference_link_rtt_age_seconds", "Time since the round trip was measured", labels=labels)
        mbps = GaugeMetricFamily("splitinference_link_mbps", "Mbit/s from source to target, best of the last bursts", labels=labels)
        mbps_age = GaugeMetricFamily("splitinference_link_mbps_age_seconds", "Time since the last burst", labels=labels)
        sent = CounterMetricFamily("splitinference_probe_burst_bytes", "Bytes sent in bursts")
        bursts = CounterMetricFamily("splitinference_probe_bursts", "Bursts, by how they ended", labels=("ended",))
        now = self._clock()
        with self._lock:
            for target, link in sorted(self._links.items()):
                names = (self._source, target)
                if link.rtt_ms is not None and now - link.rtt_at <= self._keep_s:
                    rtt.add_metric(names, link.rtt_ms)
                    rtt_age.add_metric(names, now - link.rtt_at)
                if link.bursts and now - link.burst_at <= self._keep_s:
                    mbps.add_metric(names, max(link.bursts))
                    mbps_age.add_metric(names, now - link.burst_at)
            sent.add_metric((), self._bytes)
            for ended, count in self._bursts.items():
                bursts.add_metric((ended,), count)
        yield from (rtt, rtt_age, mbps, mbps_age, sent, bursts)
