"""`splitinference bench verification`: how far honest segments of a model differ, and which dishonest ones a tolerance finds how soon.

The segment image measures (`segment-verification`), on this machine and without a network. A segment is dishonest with other weights, a
skipped block, fewer bits or noise. A check is one of 64 tokens, as the gateway makes them.
"""

import argparse
import math
import sys

from pydantic import ConfigDict, Field
from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.segments.segment_image import add_arguments, needed, report_of
from splitinference.cli.bench.serving.containers import MeasurementError
from splitinference.core.values.value import Value


class Figures(Value):
    """Relative errors of single tokens, the largest mean of a check, and the share of sequences that some check refuses."""

    name: str
    tokens: int
    p50: float
    p99: float
    worst: float
    largest_mean: float
    refused: float = Field(ge=0, le=1)


class Honest(Value):
    """All honest variations together. `extrapolated`: the error that one token exceeds once in a million."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    tokens: int
    worst: float
    refused: int
    limit_of_one_token: float
    extrapolated: float = Field(alias="extrapolated_at_1e-6")
    variations: tuple[Figures, ...]


class Report(Value):
    """What the image says, and what `--json` prints."""

    v: int = Field(ge=1, le=1)
    layers: str
    dtype: str
    sequences: int
    tolerance: float
    honest: Honest
    cheats: tuple[Figures, ...]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("verification", help="what spot checks of segments find, and how soon", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--layers", default="", metavar="START:END", help="of the segment (default: the middle third)")
    parser.add_argument("--sequences", type=int, default=24, help="of 128 tokens each (default 24)")
    parser.add_argument("--tolerance", type=float, default=0.016, help="as in spec.verification (default 0.016)")
    parser.add_argument("--sample-percent", type=float, default=1.0, help="share of sequences that are checked (default 1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 where an honest variation is refused, 2 where nothing can be measured."""
    try:
        if not 0 < args.sample_percent <= 100:
            raise MeasurementError(f"--sample-percent is {args.sample_percent:g}, expected more than 0 and at most 100.")
        report = measured(args)
    except (MeasurementError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if args.json:
        print(report.model_dump_json(indent=2, by_alias=True))
    else:
        show(report, args.sample_percent)
    return 1 if report.honest.refused else 0


def measured(args: argparse.Namespace) -> Report:
    """What the image measures.

    Raises:
        MeasurementError: there is no engine, image or model, or the image says why not.
    """
    words = ["--sequences", str(args.sequences), "--tolerance", str(args.tolerance), *(["--layers", args.layers] if args.layers else [])]
    return report_of(needed(args), args, "segment-verification", words, kind=Report, what="figures")


def sequences_until_found(refused: float, sample_percent: float, certainty: float = 0.99) -> int | None:
    """So many sequences are served until a check has refused one with this certainty; None: never.

    Each sequence is checked with the sample's probability, and a check refuses it with probability `refused`: a geometric distribution.
    """
    each = refused * sample_percent / 100
    if each <= 0:
        return None
    return 1 if each >= 1 else math.ceil(math.log(1 - certainty) / math.log(1 - each))


def show(report: Report, sample_percent: float) -> None:
    """Tables for a reader."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    title = f"layers {report.layers}, {report.dtype}, {report.sequences} sequences of 128 tokens, tolerance {report.tolerance:g}"
    table = Table("segment", "error p50", "p99", "worst token", "sequences refused", "found after (99 %)", title=title)
    for each in report.honest.variations:
        table.add_row(f"honest: {each.name}", *_errors(each), f"{each.refused:.0%}", "")
    for each in report.cheats:
        until = sequences_until_found(each.refused, sample_percent)
        table.add_row(each.name, *_errors(each), f"{each.refused:.0%}", f"{until} sequences" if until else "never")
    console.print(table)
    honest = report.honest
    console.print(
        f"{honest.tokens} honest tokens, {honest.refused} checks refused. Worst error {honest.worst:.4f}, the limit of one token is "
        f"{honest.limit_of_one_token:.4f}. One in a million exceeds {honest.extrapolated:.4f}, extrapolated from the largest 1 %."
    )
    console.print(f"With {sample_percent:g} % of all sequences checked, each with all its tokens.")


def _errors(each: Figures) -> tuple[str, str, str]:
    return f"{each.p50:.4f}", f"{each.p99:.4f}", f"{each.worst:.4f}"
