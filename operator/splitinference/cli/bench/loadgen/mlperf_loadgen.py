"""MLPerf's own LoadGen asks a server, and says what it measured. Requests go through a relay, see `mlperf_relay`.

LoadGen chooses which sample comes when, takes the times, and judges its own run. What it writes in its log is read here.
"""

import array
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

SCENARIOS = ("SingleStream", "MultiStream", "Server", "Offline")
_MS = 1e6
"""Nanoseconds."""


class CannotLoadError(Exception):
    """Why LoadGen cannot run, in a sentence that says what to do."""


class Percentiles(BaseModel):
    """Milliseconds; LoadGen's percentiles are values that were seen."""

    model_config = ConfigDict(frozen=True)
    p50: float
    p90: float
    p99: float


class Result(BaseModel):
    """One run of LoadGen."""

    model_config = ConfigDict(frozen=True)
    scenario: str
    target_qps: float | None = Field(default=None, description="requests per second that were asked for (Server)")
    samples_per_second: float | None = Field(default=None, description="requests that were answered (Server, Offline, SingleStream)")
    tokens_per_second: float | None = None
    latency_ms: Percentiles
    ttft_ms: Percentiles | None = Field(default=None, description="until the first token")
    tpot_ms: Percentiles | None = Field(default=None, description="for each further token")
    queries: int
    failed: int = Field(description="requests that were refused or ended early; a run with one keeps no bound")
    keeps_bounds: bool | None = Field(default=None, description="Server: LoadGen's verdict on its latency bounds, without a failed request")
    loadgen_valid: bool = Field(description="LoadGen's verdict on the whole run; a short run is not valid")
    first_failure: str = ""


@dataclass(frozen=True)
class Bounds:
    """Server latency at p99: until the first token and for each further one; or of the whole answer, where it is no stream."""

    ttft_ms: float = 2000.0
    tpot_ms: float = 100.0
    latency_ms: float = 130.0


@dataclass(frozen=True)
class Amount:
    """How long one run takes at least."""

    seconds: float
    queries: int
    multi_stream: int = 8


@dataclass
class Relay:
    """A process that asks the server, and the requests under way."""

    command: Sequence[str]
    environment: Mapping[str, str] | None = None
    on_first: Any = None
    on_done: Any = None
    failures: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Start it. Raises CannotLoadError if it does not start."""
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1, env=self.environment)
        self._lock, self._open = threading.Lock(), set[int]()
        if not self._read():
            raise CannotLoadError(f"the client did not start: {self._process.stderr.read()[-500:] if self._process.stderr else ''}")
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()

    def ask(self, number: int, body: Mapping[str, Any]) -> None:
        """Send one request."""
        with self._lock:
            self._open.add(number)
            try:
                self._write(json.dumps({"id": number, "body": body}))
            except (OSError, ValueError) as problem:
                self._finished(number, 0, f"the client ended: {problem}")

    def _write(self, line: str) -> None:
        if self._process.stdin is None:
            raise ValueError("no pipe")
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _read(self) -> str:
        return self._process.stdout.readline() if self._process.stdout else ""

    def _listen(self) -> None:
        try:
            while line := self._read():
                said = json.loads(line)
                match said["is"]:
                    case "first":
                        self.on_first(said["id"])
                    case "done":
                        self._finished(said["id"], said["tokens"])
                    case "failed":
                        self._finished(said["id"], 0, said["why"])
        except ValueError:
            pass  # the pipe was closed
        for number in list(self._open):
            self._finished(number, 0, "the client ended")

    def _finished(self, number: int, tokens: int, why: str = "") -> None:
        self._open.discard(number)
        if why:
            self.failures.append(why)
        self.on_done(number, tokens)


def loadgen() -> Any:
    """MLPerf's LoadGen. Raises CannotLoadError if it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError:
        raise CannotLoadError("bench mlperf needs MLPerf's LoadGen: pip install 'splitinference[mlperf]'") from None
    return mlperf_loadgen


def play(relay: Relay, bodies: Sequence[Mapping[str, Any]], scenario: str, amount: Amount, *, bounds: Bounds, qps: float = 1.0) -> Result:
    """One run of one scenario over the requests `bodies`; `qps` is asked for in Server, and expected in Offline.

    Raises:
        CannotLoadError: LoadGen is not installed, or it wrote no result.
    """
    lg = loadgen()
    streams = bool(bodies[0].get("stream"))
    nothing = array.array("B", [0])
    address, length = nothing.buffer_info()

    def first(number: int) -> None:
        lg.FirstTokenComplete([lg.QuerySampleResponse(number, address, length)])

    def done(number: int, tokens: int) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(number, address, length, max(1, tokens))])

    relay.on_first, relay.on_done, relay.failures = (first if streams else lambda _: None), done, []

    def issue(samples: Sequence[Any]) -> None:
        for sample in samples:
            relay.ask(sample.id, bodies[sample.index])

    settings = lg.TestSettings()
    settings.scenario, settings.mode = getattr(lg.TestScenario, scenario), lg.TestMode.PerformanceOnly
    settings.use_token_latencies = streams
    settings.ttft_latency, settings.tpot_latency = int(bounds.ttft_ms * _MS), int(bounds.tpot_ms * _MS)
    settings.server_target_latency_ns, settings.server_target_latency_percentile = int(bounds.latency_ms * _MS), 0.99
    settings.server_target_qps = settings.offline_expected_qps = qps
    settings.min_duration_ms, settings.min_query_count = int(amount.seconds * 1e3), amount.queries
    settings.multi_stream_samples_per_query = amount.multi_stream
    with tempfile.TemporaryDirectory(prefix="bench-mlperf-") as folder:
        log = lg.LogSettings()
        log.log_output.outdir, log.log_output.copy_summary_to_stdout = folder, False
        sut = lg.ConstructSUT(issue, lambda: None)
        samples = lg.ConstructQSL(len(bodies), len(bodies), lambda _: None, lambda _: None)
        try:
            lg.StartTestWithLogSettings(sut, samples, settings, log, "")
        finally:
            lg.DestroyQSL(samples)
            lg.DestroySUT(sut)
        detail = Path(folder, "mlperf_log_detail.txt").read_text("utf-8")
    return result_of(detail, relay.failures, qps if scenario == "Server" else None)


def result_of(detail: str, failures: Sequence[str], target_qps: float | None = None) -> Result:
    """What LoadGen wrote in its detailed log, with the requests that failed.

    Raises:
        CannotLoadError: the log has no result.
    """
    found: dict[str, Any] = {}
    for line in detail.splitlines():
        _, mark, text = line.partition(":::MLLOG ")
        if mark:
            entry = json.loads(text)
            found[entry["key"]] = entry["value"]

    def percentiles(before: str, after: str) -> Percentiles | None:
        values = [found.get(f"result_{before}{p}.00_percentile{after}_ns") for p in (50, 90, 99)]
        if any(value is None for value in values):
            return None
        p50, p90, p99 = (round(value / _MS, 3) for value in values if value is not None)
        return Percentiles(p50=p50, p90=p90, p99=p99)

    latency = percentiles("", "_latency")
    if latency is None or "result_validity" not in found:
        raise CannotLoadError(f"LoadGen wrote no result: {detail[-500:]}")
    rates = ("result_completed_samples_per_sec", "result_samples_per_second", "result_qps_with_loadgen_overhead")
    tokens = ("result_completed_tokens_per_second", "result_tokens_per_second")
    met = found.get("result_perf_constraints_met")
    return Result(
        scenario=found["effective_scenario"],
        target_qps=target_qps,
        samples_per_second=next((found[name] for name in rates if name in found), None),
        tokens_per_second=next((found[name] for name in tokens if name in found), None),
        latency_ms=latency,
        ttft_ms=percentiles("first_token_", "_latency"),
        tpot_ms=percentiles("time_per_output_token_", ""),
        queries=found["result_query_count"],
        failed=len(failures),
        keeps_bounds=None if met is None else bool(met) and not failures,
        loadgen_valid=found["result_validity"] == "VALID" and not failures,
        first_failure=failures[0] if failures else "",
    )
