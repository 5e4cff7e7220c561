"""`splitinference bench privacy`: how many tokens a linear map reads at each boundary of a model, and the table for a resource.

The segment image measures (`segment-leakage`), on this machine and without a network. The maps are learned from public text and tried on
text that they have not seen. Another attack may read more: the figures are a lower bound.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.segments.segment_image import add_arguments, needed, report_of
from splitinference.cli.bench.serving.containers import MeasurementError
from splitinference.core.values.value import Value


class Boundary(Value):
    """What is read at one boundary, in percent: tokens of the prompt, and tokens that the model answers."""

    boundary: int = Field(ge=1)
    prompt: float = Field(ge=0, le=100)
    answer: float = Field(ge=0, le=100)

    @property
    def percent(self) -> float:
        """What counts against a limit."""
        return max(self.prompt, self.answer)


class Tokens(Value):
    """How many tokens the maps learned from, and on how many they were tried."""

    train: int
    test: int


class Report(Value):
    """What the image says, and what `--json` prints. `boundaries`: all that are between two of `layers`."""

    v: int = Field(ge=1, le=1)
    text: str
    tokens: Tokens
    layers: int
    boundaries: tuple[Boundary, ...]


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("privacy", help="how many tokens a linear map reads at each boundary", description=__doc__)
    add_arguments(parser)
    parser.add_argument("--tokens", type=int, default=12_288, help="that the maps learn from (default 12288)")
    parser.add_argument("--test-tokens", type=int, default=2_048, help="that they are tried on (default 2048)")
    words = "text to learn from and, the last part of it, to be tried on; several times for several files (default: Python's documentation)"
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE", help=words)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--yaml", action="store_true", help="print the part of a resource that has the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 2 where nothing can be measured."""
    try:
        report = measured(args)
    except (MeasurementError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if args.json:
        print(report.model_dump_json(indent=2))
    elif args.yaml:
        print(as_yaml(report))
    else:
        show(report)
    return 0


def measured(args: argparse.Namespace) -> Report:
    """What the image measures.

    Raises:
        MeasurementError: there is no engine, image or model, or the image says why not.
    """
    docker = needed(args)
    mounts, files = [], []
    for number, text in enumerate(args.text):
        if not text.is_file():
            raise MeasurementError(f"{text} is not a file: --text names a file of text.")
        mounts += ["-v", f"{text.resolve()}:/text/{number}:ro"]
        files += ["--text", f"/text/{number}"]
    words = ["--tokens", str(args.tokens), "--test-tokens", str(args.test_tokens), *files]
    report = report_of(docker, args, "segment-leakage", words, kind=Report, what="table", mounts=mounts)
    return report if not args.text else report.model_copy(update={"text": ", ".join(map(str, args.text))})


def as_yaml(report: Report) -> str:
    """The part of a SplitInference that has the table, one figure for each boundary."""
    lines = [f"{each.percent:g}," for each in report.boundaries]
    rows = [" ".join(lines[start : start + 16]) for start in range(0, len(lines), 16)]
    table = "\n".join(f"      {row}" for row in rows).removesuffix(",")
    return f"spec:\n  privacy:\n    # maxTokenRecoveryPercent: 50\n    tokenRecoveryPercent: [\n{table}\n    ]"


def show(report: Report) -> None:
    """A table for a reader, with the best boundary."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    title = f"tokens read by a linear map, {report.tokens.train} tokens learned from, {report.tokens.test} tried; text: {report.text}"
    table = Table("boundary after layer", "tokens of the prompt", "tokens of the answer", title=title)
    for each in report.boundaries:
        table.add_row(str(each.boundary - 1), f"{each.prompt:.1f} %", f"{each.answer:.1f} %")
    console.print(table)
    least, layer = lowest(report.boundaries)
    console.print(f"A node that runs layer {layer} alone reads {least:.1f} %; every other run of layers reads more.")
    console.print("A stronger attack than a linear map reads more. Layer 0 is the embedding, the last layer the head: both see all tokens.")


def lowest(boundaries: Sequence[Boundary]) -> tuple[float, int]:
    """The least that a node can read which runs one layer inside the model, in percent; and that layer."""
    pairs = itertools.pairwise(boundaries)
    return min((max(before.percent, after.percent), before.boundary) for before, after in pairs)
