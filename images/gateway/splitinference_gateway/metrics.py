"""What Prometheus sees of the gateway."""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from splitinference_gateway.routing.lanes import Lane

_MOST_REVISIONS = 8
_FIRST_TOKEN_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 13, 20, 30, 60)
_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.045, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)
_ERROR_BUCKETS = (1e-6, 1e-5, 1e-4, 1e-3, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.3, 1)
_PAUSE_BUCKETS = tuple(round(0.005 * 10 ** (step / 8), 4) for step in range(34))  # 5 ms to a minute, each a third longer


class Metrics:
    """All series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "splitinference_gateway_"
        self.requests = Counter(f"{prefix}requests", "Requests to the OpenAI endpoints by HTTP status.", ["code"], registry=self.registry)
        self.first_token = Histogram(
            f"{prefix}time_to_first_token_seconds",
            "From the request's arrival to a sequence's first token, by plan revision.",
            ["revision"],
            buckets=_FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.output_token = Histogram(
            f"{prefix}time_per_output_token_seconds",
            "Time between two tokens of one sequence, by plan revision.",
            ["revision"],
            buckets=_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.replays = Counter(
            f"{prefix}replays", "Times a sequence's tokens were run again, by reason.", ["reason"], registry=self.registry
        )
        self.handovers = Counter(
            f"{prefix}handovers", "Sequences that went on along another route with their KV handed over.", registry=self.registry
        )
        self.handover_fallbacks = Counter(
            f"{prefix}handover_fallbacks", "Hand-overs not done, so that tokens were run again.", ["reason"], registry=self.registry
        )
        self.handover_bytes = Counter(f"{prefix}handover_bytes", "Bytes of KV handed over.", registry=self.registry)
        self.handover_seconds = Counter(
            f"{prefix}handover_seconds", "Time of copying KV, most of it while tokens flowed.", registry=self.registry
        )
        self.handover_pause = Histogram(
            f"{prefix}handover_pause_seconds",
            "What a sequence waits for its hand-over between two steps.",
            buckets=_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.pause = Histogram(
            f"{prefix}pause_seconds",
            "Time between two tokens of a sequence that went on along another route meanwhile, by how it did.",
            ["by"],
            buckets=_PAUSE_BUCKETS,
            registry=self.registry,
        )
        self.longest_pause = Gauge(
            f"{prefix}longest_pause_seconds", "Longest such time since the gateway started.", ["by"], registry=self.registry
        )
        self._longest_pause: dict[str, float] = {}
        self.reused_tokens = Counter(
            f"{prefix}prefix_reused_tokens", "Tokens of prompts whose KV was there from an earlier sequence.", registry=self.registry
        )
        self.reuse = Counter(
            f"{prefix}reuse_requests",
            "Requests by what reuse did: hit, server_hit (from the shared server), joined (a run in flight), miss, bypass.",
            ["result"],
            registry=self.registry,
        )
        self.reuse_server_failures = Counter(
            f"{prefix}reuse_server_failures",
            "Questions to the shared server that gave nothing: read, write, paused, not_written, not_ours (a wrong signature).",
            ["reason"],
            registry=self.registry,
        )
        self.filter_rows = Counter(
            f"{prefix}filter_rows", "Rows that came before the filter, by result: skipped, passed.", ["result"], registry=self.registry
        )
        self.filter_compared = Counter(
            f"{prefix}filter_compared_rows", "Skipped rows that the model ran all the same, by whether it agreed.", ["agrees"],
            registry=self.registry,
        )  # fmt: skip
        self.filter_open = Gauge(f"{prefix}filter_open", "1 after the model agreed too seldom: every row runs.", registry=self.registry)
        self.reuse_bytes = Gauge(f"{prefix}reuse_bytes", "Bytes of the answers that are kept for reuse.", registry=self.registry)
        self.reuse_answers = Gauge(f"{prefix}reuse_answers", "Answers that are kept for reuse.", registry=self.registry)
        self.route_replays = Counter(
            f"{prefix}route_replays", "Times a sequence's tokens were run again, by the revision they went to.", ["revision"],
            registry=self.registry,
        )  # fmt: skip
        self.verified_sequences = Counter(f"{prefix}verified_sequences", "Sequences that were sampled for checks.", registry=self.registry)
        self.verified_tokens = Counter(f"{prefix}verified_tokens", "Tokens whose output a verifier compared.", registry=self.registry)
        self.verification_failures = Counter(f"{prefix}verification_failures", "Checks that failed.", registry=self.registry)
        self.verification_skipped = Counter(
            f"{prefix}verification_skipped", "Sampled sequences that were not checked, or not wholly, by reason.", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.verification_error = Histogram(
            f"{prefix}verification_error", "Mean relative error of a check.", buckets=_ERROR_BUCKETS, registry=self.registry
        )
        self._revisions: dict[str, None] = {}
        self.tokens = Counter(f"{prefix}tokens", "Tokens by kind: prompt, completion, replayed.", ["kind"], registry=self.registry)
        self.draft_tokens = Counter(
            f"{prefix}draft_tokens", "Drafted tokens of speculative decoding: all that were drafted, and those accepted.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self.running = Gauge(f"{prefix}running_sequences", "Sequences admitted and not ended.", registry=self.registry)
        self.queue_depth = Gauge(f"{prefix}queue_depth", "Sequences that wait for admission.", registry=self.registry)
        self.kv_usage = Gauge(
            f"{prefix}kv_usage", "Share 0 to 1 of the planned KV that running sequences may grow to.", registry=self.registry
        )
        self.longest_gap = Gauge(
            f"{prefix}longest_token_gap_seconds", "Longest gap between tokens in the last minute.", registry=self.registry
        )
        self.wires = Gauge(f"{prefix}wires", "Segments to which there is a connection.", registry=self.registry)
        self.refused_connections = Counter(
            f"{prefix}refused_connections",
            "Connections that were refused or cut, by listener and by the bound that they met.",
            ["listener", "reason"],
            registry=self.registry,
        )
        self.route_errors = Counter(f"{prefix}route_errors", "Route documents that could not be read.", registry=self.registry)

    def output_token_times(self, revision: str, seconds: float, tokens: int, exemplar: dict[str, str] | None = None) -> None:
        """A step gave so many tokens after this time: each took its share."""
        for _ in range(tokens):
            self.output_token.labels(revision).observe(seconds / tokens, exemplar)

    def drafted(self, drafted: int, accepted: int) -> None:
        """A step carried so many drafts, of which so many were right."""
        self.draft_tokens.labels("drafted").inc(drafted)
        self.draft_tokens.labels("accepted").inc(accepted)

    def paused(self, by: str, seconds: float) -> None:
        """A reader waited so long for a token because its sequence was brought onto another route."""
        self.pause.labels(by).observe(seconds)
        self._longest_pause[by] = max(seconds, self._longest_pause.get(by, 0.0))
        self.longest_pause.labels(by).set(self._longest_pause[by])

    def keep_revisions(self, known: Collection[str]) -> None:
        """Revisions come and go: series of those that no route has are dropped, but for the last few, which may not have been scraped."""
        for revision in known:
            self._revisions.pop(revision, None)
            self._revisions[revision] = None
        for revision in list(self._revisions)[:-_MOST_REVISIONS]:
            if revision not in known:
                del self._revisions[revision]
                for metric in (self.first_token, self.output_token, self.route_replays):
                    with suppress(KeyError):
                        metric.remove(revision)

    def watch_routes(
        self, in_flight: Callable[[], dict[str, int]], failing: Callable[[], frozenset[str]], lanes: Callable[[], Sequence[Lane]] = tuple
    ) -> None:
        """Report what routes, pipelines and stages are at the moment of each scrape: they come and go."""
        self.registry.register(_Routes(in_flight, failing, lanes))

    def watch_adapters(self, number: Callable[[], int], use: "Adapting") -> None:
        """Report adapters at the moment of each scrape. `number`: of those that can be asked for."""
        self.registry.register(_Adapters(number, use))


class Adapting(Protocol):
    """Which adapters sequences run with, and which they wait for."""

    @property
    def changed_at(self) -> float: ...
    @property
    def names_running(self) -> tuple[str, ...]: ...
    @property
    def names_waiting(self) -> tuple[str, ...]: ...


class _Adapters(Collector):
    """`lora_requests_info` as the model server protocol of the Gateway API Inference Extension has it: one series, whose value is the time
    of its labels."""

    def __init__(self, number: Callable[[], int], use: Adapting) -> None:
        self._number, self._use = number, use

    def collect(self) -> list[GaugeMetricFamily]:
        labels = ["max_lora", "running_lora_adapters", "waiting_lora_adapters"]
        told = GaugeMetricFamily(
            "splitinference_gateway_lora_requests_info",
            "Unix time of the last change of its labels: adapters that can be asked for, those that run, and those that are waited for.",
            labels=labels,
        )
        values = [str(self._number()), ",".join(self._use.names_running), ",".join(self._use.names_waiting)]
        told.add_metric(values, self._use.changed_at)
        return [told]


class _Routes(Collector):
    def __init__(
        self, in_flight: Callable[[], dict[str, int]], failing: Callable[[], frozenset[str]], lanes: Callable[[], Sequence[Lane]]
    ) -> None:
        self._in_flight = in_flight
        self._failing = failing
        self._lanes = lanes

    def collect(self) -> list[GaugeMetricFamily]:
        flights = GaugeMetricFamily("splitinference_gateway_in_flight", "Sequences in flight by plan revision.", labels=["revision"])
        for revision, number in self._in_flight().items():
            flights.add_metric([revision], number)
        failing = GaugeMetricFamily("splitinference_gateway_failing_segments", "1 for each segment that fails now.", labels=["segment"])
        for segment in self._failing():
            failing.add_metric([segment], 1)
        return [flights, failing, *self._pipelines()]

    def _pipelines(self) -> list[GaugeMetricFamily]:
        """By pipeline, which its first segment names: so a pipeline keeps its series when others come and go."""
        prefix, labels = "splitinference_gateway_pipeline_", ["pipeline"]
        flights = GaugeMetricFamily(f"{prefix}in_flight", "Sequences in flight by pipeline (its first segment).", labels=labels)
        reserved = GaugeMetricFamily(f"{prefix}reserved_tokens", "Tokens of KV that they may grow to, by pipeline.", labels=labels)
        seconds = GaugeMetricFamily(f"{prefix}token_seconds", "Mean time of recent decode steps, by pipeline.", labels=labels)
        lanes: dict[str, list[Lane]] = {}
        for lane in self._lanes():
            lanes.setdefault(lane.name, []).append(lane)
        for name, same in lanes.items():
            flights.add_metric([name], sum(lane.in_flight for lane in same))
            reserved.add_metric([name], sum(lane.reserved for lane in same))
            if (pace := same[0].pace.token_seconds) is not None:
                seconds.add_metric([name], pace)
        return [flights, reserved, seconds]
