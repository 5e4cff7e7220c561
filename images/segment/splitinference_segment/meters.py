"""The segment's own metrics: counted in memory, handed to Triton's /metrics about once a second by a thread of its own.

Each update of a Triton metric is a message to the server process; a step makes a dozen, so they are sent together.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from splitinference_segment.cache.kv import KvUse

PERIOD_S = 1.0
PREFIX = "splitinference_segment_"

COUNTERS: Mapping[str, str] = {
    "steps_total": "Steps run, by phase",
    "tokens_total": "Tokens run, by phase",
    "batches_total": "Forward passes, by phase; steps by batches is how many sequences shared one",
    "compute_seconds_total": "Seconds of computing, by phase; a batch's time is shared among its steps",
    "queue_seconds_total": "Seconds that steps waited",
    "hop_seconds_total": "Seconds from sending to the next segment until its answer",
    "hop_bytes_total": "Bytes sent to the next segment",
    "hops_total": "Steps sent to the next segment",
    "link_seconds_total": "Seconds of hops less the time that the next segment held the step",
    "kv_sent_bytes_total": "Bytes of KV handed over to other segments",
    "kv_received_bytes_total": "Bytes of KV taken over from other segments",
    "kv_transfer_seconds_total": "Seconds in which KV was taken over",
    "verified_tokens_total": "Tokens of other segments' steps that were run again here to compare the output",
    "errors_total": "Requests that failed here, by code",
    "wire_refused_total": "Connections and requests that were refused at the wire, by reason",
    "wire_closed_total": "Connections of peers that were closed here, by reason",
}
GAUGES: Mapping[str, str] = {
    "kv_bytes": "Bytes of KV buffers held",
    "sequences": "Sequences held",
    "evicted_sequences": "Sequences that gave way to others since the start: they were not used, and there was no room",
    "prefix_bytes": "Bytes of KV kept of ended sequences, for others that begin with the same tokens",
    "prefix_reused_tokens": "Tokens whose KV came from another sequence, since the start",
    "adapters": "Adapters held",
    "adapter_bytes": "Bytes of the adapters held",
    "link_rtt_ms": "Round trip to the next segment's server: shortest of the last small messages",
    "link_rtt_age_seconds": "Time since the newest message behind link_rtt_ms",
    "link_mbps": "Mbit/s to the next segment: best of the last big messages; NaN: too quick to be seen",
    "link_mbps_age_seconds": "Time since the newest message behind link_mbps",
}

_log = logging.getLogger(__name__)
Labels = tuple[tuple[str, str], ...]


def held(use: KvUse, adapters: Mapping[str, int]) -> list[tuple[str, float, Mapping[str, str]]]:
    """Gauges of what a segment holds. `adapters`: bytes of each, by digest."""
    return [
        ("kv_bytes", float(use.total_bytes), {}),
        ("sequences", float(use.sequences), {}),
        ("evicted_sequences", float(use.evicted), {}),
        ("prefix_bytes", float(use.kept_bytes), {}),
        ("prefix_reused_tokens", float(use.reused_tokens), {}),
        ("adapters", float(len(adapters)), {}),
        ("adapter_bytes", float(sum(adapters.values())), {}),
    ]


class Families(Protocol):
    """The part of Triton's Python backend API that makes metrics (triton_python_backend_utils)."""

    MetricFamily: Any


class Meters:
    """Counters and gauges of one segment. `add` is cheap and may be called from any thread."""

    def __init__(self, segment: str, api: Families, gauges: Callable[[], Iterable[tuple[str, float, Mapping[str, str]]]]) -> None:
        """Start the thread that hands the numbers over; `gauges` (name, value, labels) is asked each time."""
        self._segment, self._gauges = segment, gauges
        kind = api.MetricFamily
        self._families = {name: kind(name=PREFIX + name, description=text, kind=kind.COUNTER) for name, text in COUNTERS.items()} | {
            name: kind(name=PREFIX + name, description=text, kind=kind.GAUGE) for name, text in GAUGES.items()
        }
        self._metrics: dict[tuple[str, Labels], Any] = {}
        self._pending: defaultdict[tuple[str, Labels], float] = defaultdict(float)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meters", daemon=True)
        self._thread.start()

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter. KeyError for one that is not in COUNTERS."""
        COUNTERS[name]
        with self._lock:
            self._pending[name, tuple(sorted(labels.items()))] += value

    def stop(self) -> None:
        """Hand over what is left and end the thread."""
        self._stopping.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        """Hand the numbers over. A fault is logged, and the next second's numbers come all the same."""
        with self._lock:
            pending, self._pending = self._pending, defaultdict(float)
        try:
            for (name, pairs), value in pending.items():
                self._metric(name, pairs).increment(value)
            for name, value, labels in self._gauges():
                self._metric(name, tuple(sorted(labels.items()))).set(value)
        except Exception:  # noqa: BLE001 - whatever Triton or a gauge raises; without this thread all metrics stand still
            _log.exception("metrics were not handed over")

    def _metric(self, name: str, labels: Labels) -> Any:
        if (name, labels) not in self._metrics:
            self._metrics[name, labels] = self._families[name].Metric(labels={"segment": self._segment, **dict(labels)})
        return self._metrics[name, labels]
