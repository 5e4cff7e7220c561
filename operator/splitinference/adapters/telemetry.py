"""The operator's own metrics: passes and solves as they happen, and the resources as their status has them when Prometheus asks."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitinference.controller.api.sections.spec_value import parse_duration
from splitinference.controller.ports import Manifest, RefusedError, UnavailableError
from splitinference.controller.runtime.workqueue import Key, Pass
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits, Outcome
from splitinference_protocol.addresses import any_address

log = logging.getLogger(__name__)

_PREFIX = "splitinference"


class Telemetry:
    """Counters, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self._passes = Counter(f"{_PREFIX}_passes", "Passes, by how they ended", ["ended"], registry=self.registry)
        self._seconds = Histogram(
            f"{_PREFIX}_pass_seconds",
            "Time of a pass, and whether the solver was asked in it",
            ["solved"],
            buckets=(0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self._solves = Counter(f"{_PREFIX}_solves", "Solves, by outcome", ["outcome"], registry=self.registry)
        self._solve_seconds = Histogram(
            f"{_PREFIX}_solve_seconds", "Time of a solve", buckets=(0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10), registry=self.registry
        )
        self._calls = Counter(f"{_PREFIX}_api_requests", "Requests to the API server", ["method"], registry=self.registry)
        self._decisions = Counter(
            f"{_PREFIX}_decisions",
            "Decisions, by transition and reason",
            ["namespace", "name", "transition", "reason"],
            registry=self.registry,
        )
        self._certificates: dict[tuple[Key, str], float] = {}
        self._lock = threading.Lock()

    def certified(self, key: Key, role: str, ends: str) -> None:
        """A certificate of this role was written, which ends then (RFC 3339)."""
        with self._lock:
            self._certificates[key, role] = datetime.fromisoformat(ends).timestamp()

    def certificates(self) -> Mapping[tuple[Key, str], float]:
        """End of the certificate that was written last, in seconds since 1970, by resource and role."""
        with self._lock:
            return dict(self._certificates)

    def passed(self, key: Key, done: Pass, seconds: float) -> None:
        """A pass ended."""
        self._passes.labels(done.ended.value).inc()
        self._seconds.labels("yes" if done.solved else "no").observe(seconds)

    def called(self, method: str) -> None:
        """The API server was asked."""
        self._calls.labels(method).inc()

    def decided(self, key: Key, transition: str, reason: str) -> None:
        """A decision was written to the status."""
        self._decisions.labels(*key, transition, reason).inc()

    def timed(self, solve: Solve) -> Solve:
        """The same solver, counted."""

        def counted(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
            started = time.monotonic()
            outcome = "broke"
            try:
                result = solve(problem, limits, hint)
                outcome = type(result).__name__
                return result
            finally:
                self._solves.labels(outcome).inc()
                self._solve_seconds.observe(time.monotonic() - started)

        return counted

    def serve(self, port: int) -> WSGIServer:
        """Answer scrapes on this port, in a thread of its own, until the server is shut down."""
        server, _ = start_http_server(port, addr=any_address(), registry=self.registry)
        return server


class ResourceGauges(Collector):
    """Figures of each resource, read from the API server at each scrape: so they go when the resource goes."""

    def __init__(
        self, resources: Callable[[], Sequence[Manifest]], certificates: Callable[[], Mapping[tuple[Key, str], float]] = dict
    ) -> None:
        self._resources, self._certificates = resources, certificates

    def collect(self) -> Iterator[Metric]:
        """One family for each figure."""
        try:
            resources = self._resources()
        except (UnavailableError, RefusedError) as error:
            log.warning("the resources' figures are left out of this scrape: %s", error)
            return
        for name, (text, read) in _FIGURES.items():
            family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=["namespace", "name"])
            for resource in resources:
                value = read(resource.get("status") or {})
                if isinstance(value, int | float):
                    family.add_metric(_named(resource), float(value))
            yield family
        yield from _moves(resources)
        yield from _calibration(resources)
        yield _conditions(resources)
        yield from _slo(resources)
        yield _certificates(resources, self._certificates())


def _named(resource: Manifest) -> list[str]:
    return [resource["metadata"]["namespace"], resource["metadata"]["name"]]


def _moves(resources: Sequence[Manifest]) -> Iterator[Metric]:
    """Counted in the status, so that they go on counting when the operator starts anew."""
    judged = CounterMetricFamily(
        f"{_PREFIX}_moves_judged", "Moves that promised quicker tokens, by whether they paid", labels=["namespace", "name", "paid"]
    )
    for resource in resources:
        kept = (resource.get("status") or {}).get("adaptation") or {}
        for label, key in (("yes", "paid"), ("no", "unpaid")):
            judged.add_metric([*_named(resource), label], float(kept.get(key) or 0))
    yield judged


def _calibration(resources: Sequence[Manifest]) -> Iterator[Metric]:
    factors = GaugeMetricFamily(
        f"{_PREFIX}_node_calibration", "Measured over predicted decode time of a node", labels=["namespace", "name", "node"]
    )
    prefills = GaugeMetricFamily(
        f"{_PREFIX}_node_prefill_calibration", "Measured over predicted prefill time of a node", labels=["namespace", "name", "node"]
    )
    for resource in resources:
        known = _part(resource.get("status") or {}, "calibration")
        for family, name in ((factors, "nodes"), (prefills, "prefillNodes")):
            for node, entry in (known.get(name) or {}).items():
                if isinstance(factor := entry.get("factor"), int | float):
                    family.add_metric([*_named(resource), node], float(factor))
    yield factors
    yield prefills


def _conditions(resources: Sequence[Manifest]) -> Metric:
    """One series for each condition, so that alerts can go by type, status and reason."""
    family = GaugeMetricFamily(
        f"{_PREFIX}_condition", "1 for each condition, by its status and reason", labels=["namespace", "name", "type", "status", "reason"]
    )
    for resource in resources:
        for found in (resource.get("status") or {}).get("conditions") or ():
            words = [str(found.get(field) or "") for field in ("type", "status", "reason")]
            family.add_metric([*_named(resource), *words], 1.0)
    return family


def _slo(resources: Sequence[Manifest]) -> Iterator[Metric]:
    """What the resources ask for."""
    for name, field in (("time_to_first_token", "timeToFirstToken"), ("time_per_output_token", "timePerOutputToken")):
        family = GaugeMetricFamily(
            f"{_PREFIX}_slo_{name}_ms", f"spec.slo.{field}: what clients should see at most", labels=["namespace", "name"]
        )
        for resource in resources:
            if (limit := _duration_ms(((resource.get("spec") or {}).get("slo") or {}).get(field))) is not None:
                family.add_metric(_named(resource), limit)
        yield family


def _duration_ms(text: object) -> float | None:
    try:
        found = parse_duration(text)
    except ValueError:
        return None
    return found.total_seconds() * 1e3 if isinstance(found, timedelta) else None


def _certificates(resources: Sequence[Manifest], ends: Mapping[tuple[Key, str], float]) -> Metric:
    """Of the resources that there are: their gateways and segments would not find each other after this time."""
    family = GaugeMetricFamily(
        f"{_PREFIX}_certificate_expiry_timestamp_seconds",
        "End of the certificates that this replica wrote last, by role",
        labels=["namespace", "name", "role"],
    )
    there = {tuple(_named(resource)) for resource in resources}
    for (key, role), end in sorted(ends.items()):
        if key in there:
            family.add_metric([*key, role], end)
    return family


def _plan(status: Mapping[str, Any]) -> Mapping[str, Any]:
    return status.get("plan") or {}


def _predicted(figure: str) -> Callable[[Mapping[str, Any]], object]:
    return lambda status: (_plan(status).get("predicted") or {}).get(figure)


def _part(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return status.get(name) or {}


def _calibrated(figure: str) -> Callable[[Mapping[str, Any]], object]:
    def read(status: Mapping[str, Any]) -> object:
        percent = _part(status, "calibration").get(figure)
        return None if percent is None else percent / 100

    return read


def _observed(figure: str) -> Callable[[Mapping[str, Any]], object]:
    """The median, where it is of the plan that the status has."""

    def read(status: Mapping[str, Any]) -> object:
        observed = _part(status, "observed")
        return (observed.get(figure) or {}).get("p50") if observed.get("revision") == _plan(status).get("revision") else None

    return read


def _gain(figure: str) -> Callable[[Mapping[str, Any]], object]:
    """Of the newest move that was judged."""

    def read(status: Mapping[str, Any]) -> object:
        outcomes = [decision["outcome"] for decision in status.get("decisions") or () if decision.get("outcome")]
        percent = outcomes[0].get(figure) if outcomes else None
        return None if percent is None else percent / 100

    return read


def _ready(status: Mapping[str, Any]) -> int:
    return int(any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ()))


_FIGURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], object]]] = {
    "ready": ("1 if the condition Ready holds", _ready),
    "plan_gap": ("How far from the proven bound the plan is at most, as a share", lambda status: _plan(status).get("gap")),
    "plan_segments": ("Segments of the plan", lambda status: len(_plan(status).get("segments") or ()) or None),
    "predicted_latency_ms": ("Predicted time of one request of the workload", _predicted("latencyMs")),
    "predicted_time_to_first_token_ms": ("Predicted time to first token", _predicted("timeToFirstTokenMs")),
    "predicted_time_per_output_token_ms": ("Predicted time per output token", _predicted("timePerOutputTokenMs")),
    "observed_time_to_first_token_ms": ("Median time to first token, as clients got it", _observed("timeToFirstTokenMs")),
    "observed_time_per_output_token_ms": ("Median time per output token, as clients got it", _observed("timePerOutputTokenMs")),
    "prediction_error": ("Mean absolute error of predicted stage times, as a share", _calibrated("errorPercent")),
    "prediction_error_uncalibrated": ("The same without the nodes' factors", _calibrated("uncalibratedErrorPercent")),
    "move_predicted_gain": ("Share of the time per token that the last judged move promised", _gain("predictedGainPercent")),
    "move_observed_gain": ("Share of the time per token that the last judged move gained", _gain("observedGainPercent")),
}
