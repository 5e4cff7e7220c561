"""What one policy did in one trace: the five rows of the adaptive split inference papers, and what it cost."""

from collections import Counter
from collections.abc import Sequence

from splitinference.core.values.problem import Slo
from splitinference.core.values.value import Value
from splitinference.simulation.system.records import Records, Request
from splitinference.simulation.traces.trace import Trace

BUCKETS = 144
"""Steps of the time line: ten minutes each for a day."""


class Percentiles(Value):
    """Milliseconds; None where nothing was seen."""

    p50: float | None
    p95: float | None


class Move(Value):
    """One adopted plan."""

    at_s: float
    change: str
    reason: str
    mandatory: bool
    message: str
    planned_bytes: int


class Bucket(Value):
    """One step of the time line, by when requests came."""

    from_s: float
    requests: int
    slo_met: float | None
    first_token_ms: Percentiles
    output_token_ms: Percentiles


class Report(Value):
    """The figures of one run."""

    trace: str
    policy: str
    seed: int
    duration_s: float
    nodes: int
    requests: int
    completed: int
    failed: int
    unfinished: int
    latency_ms: Percentiles
    first_token_ms: Percentiles
    output_token_ms: Percentiles
    tokens_per_s: float
    utilization_busiest_p95: float
    utilization_serving_mean: float
    slo_met: float | None
    privacy_violations: int
    moves: dict[str, int]
    mandatory_moves: int
    blocked_moves: int
    loaded_bytes: int
    energy_joules: float
    joules_per_token: float | None
    replays: int
    longest_gap_s: float
    plans_solved: int
    passes: int
    move_list: tuple[Move, ...]
    timeline: tuple[Bucket, ...]

    @property
    def moves_total(self) -> int:
        """All moves together."""
        return sum(self.moves.values())


class Spent(Value):
    """What the run took besides time."""

    loaded_bytes: int
    joules: float
    solved: int


class About(Value):
    """What was run: on how many nodes, for how long, and what requests were promised."""

    name: str
    duration_s: float
    nodes: int
    slo: Slo


def report(trace: Trace, policy: str, seed: int, records: Records, spent: Spent) -> Report:
    """The figures of a simulated run."""
    nodes = len(trace.problem.snapshot.nodes)
    about = About(name=trace.name, duration_s=trace.duration_s, nodes=nodes, slo=trace.problem.slo)
    return figures(about, policy, seed, records, spent)


def figures(about: About, policy: str, seed: int, records: Records, spent: Spent) -> Report:
    """Put the figures together. A request that failed or was under way for too long does not keep the SLO."""
    done, slo = records.done, about.slo
    asked = len(done) + len(records.lost)
    tokens = sum(request.tokens for request in records.requests)
    kept = sum(request.keeps(slo) for request in done)
    return Report(
        trace=about.name,
        policy=policy,
        seed=seed,
        duration_s=about.duration_s,
        nodes=about.nodes,
        requests=len(records.requests),
        completed=len(done),
        failed=len(records.lost),
        unfinished=len(records.requests) - asked,
        latency_ms=_percentiles([r.latency_ms for r in done]),
        first_token_ms=_percentiles([r.first_token_ms for r in done]),
        output_token_ms=_percentiles(_each(done)),
        tokens_per_s=round(tokens / about.duration_s, 3),
        utilization_busiest_p95=_percentile(records.busiest, 0.95) or 0.0,
        utilization_serving_mean=round(sum(records.serving) / len(records.serving), 4) if records.serving else 0.0,
        slo_met=_share(kept, asked),
        privacy_violations=sum(request.violates for request in records.requests),
        moves=dict(sorted(Counter(move.change for move in records.moves).items())),
        mandatory_moves=sum(move.mandatory for move in records.moves),
        blocked_moves=records.blocked,
        loaded_bytes=spent.loaded_bytes,
        energy_joules=round(spent.joules, 1),
        joules_per_token=round(spent.joules / tokens, 3) if tokens else None,
        replays=sum(request.replays for request in records.requests),
        longest_gap_s=round(max((request.longest_gap_s for request in records.requests), default=0.0), 3),
        plans_solved=spent.solved,
        passes=records.passes,
        move_list=tuple(
            Move(at_s=round(m.at_s, 3), change=m.change, reason=m.reason, mandatory=m.mandatory, message=m.message, planned_bytes=m.bytes_)
            for m in records.moves
        ),
        timeline=_timeline(about, records),
    )


def _timeline(about: About, records: Records) -> tuple[Bucket, ...]:
    width = about.duration_s / BUCKETS
    buckets: list[list[Request]] = [[] for _ in range(BUCKETS)]
    for request in (*records.done, *records.lost):
        buckets[min(BUCKETS - 1, int(request.arrival.at_s / width))].append(request)
    found = []
    for number, requests in enumerate(buckets):
        done = [request for request in requests if not request.why_failed]
        found.append(
            Bucket(
                from_s=round(number * width, 3),
                requests=len(requests),
                slo_met=_share(sum(request.keeps(about.slo) for request in done), len(requests)),
                first_token_ms=_percentiles([request.first_token_ms for request in done]),
                output_token_ms=_percentiles(_each(done)),
            )
        )
    return tuple(found)


def _each(requests: Sequence[Request]) -> list[float]:
    return [value for request in requests if (value := request.output_token_ms) is not None]


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 5) if whole else None


def _percentiles(values: list[float]) -> Percentiles:
    return Percentiles(p50=_percentile(values, 0.5), p95=_percentile(values, 0.95))


def _percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least this share of all does not exceed, to a thousandth."""
    if not values:
        return None
    ordered = sorted(values)
    return round(ordered[max(0, -int(-share * len(ordered) // 1) - 1)], 3)
