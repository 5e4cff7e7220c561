"""Reports as a picture: latency against the SLO over time, the share of requests that kept it, and the moves that were made for it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitinference.simulation.results.report import Bucket, Report
from splitinference.simulation.traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = (".svg", ".png")
# Distinguishable with the common colour blindnesses (Okabe and Ito).
_COLOURS = {"adaptive": "#0072b2", "static": "#d55e00", "edgeshard-static": "#009e73", "greedy-reactive": "#cc79a7"}
_SMOOTHED = 1.6
_INK, _FAINT = "#333333", "#dddddd"


def draw(trace: Trace, reports: Sequence[Report], path: Path) -> None:
    """Write the picture; the ending says whether SVG or PNG. Raises OSError if it cannot be written, ImportError without matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # The same reports give the same file: no date in it, and no random ids.
    with mpl.rc_context({"svg.hashsalt": "splitinference", "font.size": 9, "axes.edgecolor": _INK, "text.color": _INK}):
        lanes = 0.24 * len(reports)
        figure = Figure(figsize=(10, 6.4 + lanes), layout="constrained")
        slow, kept, moved = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [2.6, 1.7, 0.2 + lanes]})
        unit, name = _unit(trace.duration_s)
        # Whoever is told of last is drawn first, so that the first policy is hidden by no other.
        for report in reversed(reports):
            _lines(slow, kept, report, unit)
        _limits(slow, kept, trace)
        _moves(moved, reports, unit)
        figure.suptitle(_title(trace, reports), x=0.01, ha="left", fontsize=11, fontweight="bold")
        moved.set_xlabel(f"time ({name})")
        moved.set_xlim(0, trace.duration_s / unit)
        handles, labels = slow.get_legend_handles_labels()
        order = [*range(len(reports) - 1, -1, -1), *range(len(reports), len(handles))]
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside upper right", ncols=len(reports) + 1, frameon=False
        )
        figure.savefig(path, dpi=140, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})


def _title(trace: Trace, reports: Sequence[Report]) -> str:
    hours = trace.duration_s / 3600
    return f"{trace.name}: {len(trace.problem.snapshot.nodes)} nodes, {hours:g} h, seed {reports[0].seed}"


def _unit(duration_s: float) -> tuple[float, str]:
    if duration_s > 3 * 86400:
        return 86400.0, "days"
    return (3600.0, "hours") if duration_s > 2 * 3600 else (60.0, "minutes")


def _lines(slow: "Axes", kept: "Axes", report: Report, unit: float) -> None:
    colour = _COLOURS[report.policy]
    seen = [bucket for bucket in report.timeline if bucket.output_token_ms.p95 is not None]
    times = [_middle(bucket, report) / unit for bucket in seen]
    slow.plot(times, [bucket.output_token_ms.p95 or 0.0 for bucket in seen], color=colour, label=report.policy, linewidth=_SMOOTHED)
    counted = [bucket for bucket in report.timeline if bucket.slo_met is not None]
    times = [_middle(bucket, report) / unit for bucket in counted]
    kept.plot(times, [100 * (bucket.slo_met or 0.0) for bucket in counted], color=colour, linewidth=_SMOOTHED)


def _middle(bucket: Bucket, report: Report) -> float:
    return bucket.from_s + report.duration_s / len(report.timeline) / 2


def _limits(slow: "Axes", kept: "Axes", trace: Trace) -> None:
    from matplotlib.ticker import LogLocator

    limit = trace.problem.slo.time_per_output_token_ms
    if limit is not None:
        slow.axhline(limit, color=_INK, linestyle="--", linewidth=1, label="SLO")
    slow.set_ylabel("time per output\ntoken, p95 (ms)")
    slow.set_yscale("log")
    slow.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    slow.yaxis.set_major_formatter("{x:g}")
    slow.yaxis.set_minor_formatter("")
    kept.set_ylabel("requests that\nkept the SLO (%)")
    kept.set_ylim(-4, 104)
    for axes in (slow, kept):
        axes.grid(axis="y", color=_FAINT, linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)


def _moves(axes: "Axes", reports: Sequence[Report], unit: float) -> None:
    """One lane for each policy: a filled mark had to be, a hollow one was chosen; triangles are re-splits."""
    for lane, report in enumerate(reversed(reports)):
        for move in report.move_list:
            colour = _COLOURS[report.policy]
            axes.plot(
                move.at_s / unit,
                lane,
                marker="^" if move.change == "re-split" else "o",
                markersize=6,
                markerfacecolor=colour if move.mandatory else "white",
                markeredgecolor=colour,
                clip_on=False,
            )
    axes.set_yticks(range(len(reports)), [f"{report.policy} ({report.moves_total})" for report in reversed(reports)])
    axes.set_ylim(-0.6, len(reports) - 0.4)
    axes.set_title("moves (how many)", loc="left", fontsize=9)
    axes.set_title("○ chosen   ● had to be   △ ▲ re-split", loc="right", fontsize=8)
    axes.grid(axis="y", color=_FAINT, linewidth=0.7)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
