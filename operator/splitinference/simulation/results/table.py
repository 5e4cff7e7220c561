"""Reports side by side, as rows of text: the papers' five rows first, then what they cost."""

from collections.abc import Callable, Sequence

from splitinference.simulation.results.report import Percentiles, Report

Row = tuple[str, Callable[[Report], str]]

MAIN_ROWS: tuple[Row, ...] = (
    ("latency, p50 / p95 (s)", lambda r: _pair(r.latency_ms, 1e-3, 2)),
    ("throughput (tokens/s)", lambda r: f"{r.tokens_per_s:.2f}"),
    ("utilization: serving mean / busiest p95", lambda r: f"{r.utilization_serving_mean:.0%} / {r.utilization_busiest_p95:.0%}"),
    ("SLO met", lambda r: "–" if r.slo_met is None else f"{r.slo_met:.2%}"),
    ("privacy violations (requests)", lambda r: str(r.privacy_violations)),
)
FURTHER_ROWS: tuple[Row, ...] = (
    ("time to first token, p50 / p95 (ms)", lambda r: _pair(r.first_token_ms, 1, 0)),
    ("time per output token, p50 / p95 (ms)", lambda r: _pair(r.output_token_ms, 1, 1)),
    ("requests: completed / failed", lambda r: f"{r.completed} / {r.failed}"),
    ("moves: migrations / re-splits", lambda r: f"{r.moves.get('migration', 0)} / {r.moves.get('re-split', 0)}"),
    ("  of these mandatory", lambda r: str(r.mandatory_moves)),
    ("better plans without a way to them", lambda r: str(r.blocked_moves)),
    ("weights loaded (GiB)", lambda r: f"{r.loaded_bytes / 2**30:.1f}"),
    ("sequences replayed", lambda r: str(r.replays)),
    ("longest token gap (s)", lambda r: f"{r.longest_gap_s:.1f}"),
    ("energy (kJ) / per token (J)", lambda r: f"{r.energy_joules / 1e3:.0f} / {_number(r.joules_per_token, 2)}"),
    ("plans solved / passes", lambda r: f"{r.plans_solved} / {r.passes}"),
)


def cells(reports: Sequence[Report], rows: Sequence[Row]) -> list[list[str]]:
    """Each row's label, and its figure for each report."""
    return [[label, *(figure(report) for report in reports)] for label, figure in rows]


def _pair(found: Percentiles, scale: float, digits: int) -> str:
    return " / ".join(_number(value if value is None else value * scale, digits) for value in (found.p50, found.p95))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
