"""Every metric that our programs export, by the code that exports it, with values as after some requests: for rules and dashboards."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import Gauge
from prometheus_client.core import Metric

from splitinference.adapters.telemetry import ResourceGauges, Telemetry
from splitinference.controller.runtime.workqueue import Ended, Pass
from splitinference.core.values.result import Infeasible, Limits
from splitinference.probe.board import Board
from splitinference_gateway.metrics import Metrics
from splitinference_segment import meters

KEY = ("team", "chat")
RESOURCE = {
    "metadata": {"namespace": "team", "name": "chat"},
    "spec": {"slo": {"timeToFirstToken": "1s", "timePerOutputToken": "40ms"}},
    "status": {
        "conditions": [
            {"type": "Ready", "status": "True", "reason": "Serving"},
            {"type": "MetricsAvailable", "status": "False", "reason": "MetricsUnavailable"},
        ],
        "plan": {
            "revision": "r1", "gap": 0.05, "segments": [{}, {}],
            "predicted": {"latencyMs": 1374.2, "timeToFirstTokenMs": 800.0, "timePerOutputTokenMs": 30.0},
        },
        "observed": {"revision": "r1", "timeToFirstTokenMs": {"p50": 900.0}, "timePerOutputTokenMs": {"p50": 35.0}},
        "calibration": {
            "errorPercent": 12.0, "uncalibratedErrorPercent": 30.0,
            "nodes": {"a": {"factor": 1.2}}, "prefillNodes": {"a": {"factor": 1.1}},
        },
        "adaptation": {"paid": 2, "unpaid": 1},
        "decisions": [{"outcome": {"predictedGainPercent": 20.0, "observedGainPercent": 15.0}}],
    },
}  # fmt: skip
Sample = tuple[str, tuple[tuple[str, str], ...], float]
SCRAPE = (("namespace", "team"), ("splitinference", "chat"), ("pod", "chat-gateway-1"), ("node", "a"))
"""What the chart's PodMonitors and Prometheus add."""


class Programs:
    """An operator, a gateway, a segment and a link probe. `work` makes their counters count."""

    def __init__(self) -> None:
        self.telemetry = Telemetry()
        Gauge("splitinference_leader", "as __main__ has it", registry=self.telemetry.registry).set(1)
        self.telemetry.registry.register(ResourceGauges(lambda: [RESOURCE], self.telemetry.certificates))
        ends = datetime.now(UTC) + timedelta(hours=20)
        self.telemetry.certified(KEY, "gateway", ends.strftime("%Y-%m-%dT%H:%M:%SZ"))
        self.gateway = Metrics()
        self.gateway.watch_routes(lambda: {"r1": 1}, lambda: frozenset({"chat-0-4-x"}))
        self.segment: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def work(self) -> None:
        """Passes, requests, steps."""
        for ended in Ended:
            self.telemetry.passed(KEY, Pass(ended), 0.1)
        self.telemetry.passed(KEY, Pass(Ended.DONE, solved=True), 0.5)
        self.telemetry.called("GET")
        self.telemetry.decided(KEY, "migration", "UtilizationShifted")
        self.telemetry.timed(lambda problem, limits, hint=None: Infeasible(()))(None, Limits())  # type: ignore[arg-type]
        gateway = self.gateway
        gateway.requests.labels("200").inc(9)
        gateway.requests.labels("503").inc()
        gateway.first_token.labels("r1").observe(0.9)
        gateway.output_token.labels("r1").observe(0.035)
        for kind in ("prompt", "completion", "replayed"):
            gateway.tokens.labels(kind).inc(10)
        gateway.replays.labels("segment_failed").inc()
        gateway.route_replays.labels("r1").inc()
        gateway.handovers.inc()
        gateway.handover_fallbacks.labels("late").inc()
        gateway.paused("handover", 0.1)
        gateway.verified_tokens.inc(7)
        gateway.verification_failures.inc()
        gateway.verification_skipped.labels("busy").inc()
        gateway.refused_connections.labels("http", "header").inc()
        for name in meters.COUNTERS:
            self._count(name)

    def _count(self, name: str) -> None:
        """A segment's counter, with the labels that the segment gives (docs/reference/data-plane.md)."""
        labels = {
            "steps_total": ("phase",), "tokens_total": ("phase",), "batches_total": ("phase",), "compute_seconds_total": ("phase",),
            "hop_seconds_total": ("to",), "hop_bytes_total": ("to",), "hops_total": ("to",), "link_seconds_total": ("to",),
            "errors_total": ("code",), "wire_refused_total": ("reason",), "wire_closed_total": ("reason",),
        }.get(name, ())  # fmt: skip
        values = {"phase": "decode", "to": "chat-4-8-x", "code": "kv_missing", "reason": "idle"}
        key = f"{meters.PREFIX}{name}", tuple((label, values[label]) for label in labels)
        self.segment[key] = self.segment.get(key, 0.0) + 1.0

    def samples(self) -> Iterator[Sample]:
        """What a Prometheus with the chart's monitors has of one scrape of all."""
        for metric in self.telemetry.registry.collect():
            yield from _of(metric, (("pod", "operator-1"),))
        for metric in self.gateway.registry.collect():
            yield from _of(metric, SCRAPE)
        for (name, labels), value in self.segment.items():
            yield name, (("segment", "chat-0-4-x"), *labels, *SCRAPE), value
        for name in meters.GAUGES:
            yield f"{meters.PREFIX}{name}", (("segment", "chat-0-4-x"), *SCRAPE), 1.0
        board = Board("a", keep_s=1800.0)
        for metric in a_measured(board).collect():
            yield from _of(metric, (("pod", "probe-1"),))


def a_measured(board: Board) -> Board:
    """A link that was measured."""
    board.round_trip("b", 0.0004)
    board.burst("b", 100.0, 1 << 20)
    return board


def _of(metric: Metric, more: tuple[tuple[str, str], ...]) -> Iterator[Sample]:
    for sample in metric.samples:
        if not sample.name.endswith("_created"):
            yield sample.name, (*sorted(sample.labels.items()), *(pair for pair in more if pair[0] not in sample.labels)), sample.value


def line(sample: Sample, at: float) -> str:
    """In OpenMetrics' text format."""
    name, labels, value = sample
    return f"{name}{{{','.join(f'{key}={json.dumps(text)}' for key, text in labels)}}} {value} {at:.3f}"


def names() -> set[str]:
    """All names of series that any of our programs exports."""
    programs = Programs()
    programs.work()
    families: set[str] = set()
    for registry in (programs.telemetry.registry, programs.gateway.registry):
        for metric in registry.collect():
            suffix: dict[str, Any] = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
            families |= {f"{metric.name}{end}" for end in suffix.get(metric.type, ("",))}
    return families | {name for name, _, _ in programs.samples()}
