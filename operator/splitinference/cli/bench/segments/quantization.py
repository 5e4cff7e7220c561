"""`splitinference bench quantization`: what quantized weights of a model cost in exactness, and what they need in memory.

The segment image measures (`segment-quantization`), on this machine and without a network: perplexity of a public text, how often the
likeliest token is that of the weights as they are stored, and the memory that was planned beside what the kernel counts.
"""

import argparse
import sys
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.segments.segment_image import add_arguments, needed, report_of
from splitinference.cli.bench.serving.containers import MeasurementError
from splitinference.core.values.value import Value

MOST_OFF = 0.05
"""Share by which memory that was measured may differ from what was planned."""
_MIB = 2**20
_HEADS = ("weights", "perplexity", "agreement", "planned", "measured", "off by")


class Way(Value):
    """One way to hold the weights. `agreement`: share of tokens. Bytes are those of the weights alone."""

    name: str
    perplexity: float = Field(gt=0)
    agreement: float = Field(ge=0, le=1)
    planned_bytes: int = Field(gt=0)
    measured_bytes: int

    @property
    def off(self) -> float:
        """How far measured memory is from planned memory, as a share of the latter."""
        return self.measured_bytes / self.planned_bytes - 1

    def row(self) -> tuple[str, ...]:
        """As shown."""
        sizes = (f"{size / _MIB:.1f} MiB" for size in (self.planned_bytes, self.measured_bytes))
        return (self.name, f"{self.perplexity:.2f}", f"{self.agreement:.1%}", *sizes, f"{self.off:+.1%}")


class Report(Value):
    """What the image says, and what `--json` prints. The first way is the one that others are compared with."""

    v: int = Field(ge=1, le=1)
    text: str
    tokens: int
    dtype: str
    ways: tuple[Way, ...] = Field(min_length=1)


def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("quantization", help="what quantized weights cost in exactness, and need in memory", description=__doc__)
    add_arguments(parser)
    words = "a checkpoint of the same model that another tool quantized; several times for several"
    parser.add_argument("--checkpoint", type=Path, action="append", default=[], metavar="DIR", help=words)
    parser.add_argument("--tokens", type=int, default=4096, help="of the text, in windows of 512 (default 4096)")
    words = "text to be read; several times for several files (default: Python's documentation)"
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE", help=words)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 where memory is not what was planned, 2 where nothing can be measured."""
    try:
        report = measured(args)
    except (MeasurementError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if args.json:
        print(report.model_dump_json(indent=2))
    elif args.markdown:
        print(as_markdown(report))
    else:
        show(report)
    return 1 if any(abs(way.off) > MOST_OFF for way in report.ways) else 0


def measured(args: argparse.Namespace) -> Report:
    """What the image measures.

    Raises:
        MeasurementError: there is no engine, image or model, or the image says why not.
    """
    docker = needed(args)
    mounts, words = [], ["--tokens", str(args.tokens)]
    for number, text in enumerate(args.text):
        if not text.is_file():
            raise MeasurementError(f"{text} is not a file: --text names a file of text.")
        mounts += ["-v", f"{text.resolve()}:/text/{number}:ro"]
        words += ["--text", f"/text/{number}"]
    for number, folder in enumerate(args.checkpoint):
        if not (folder / "config.json").is_file():
            raise MeasurementError(f"{folder} has no config.json: --checkpoint names the folder of a quantized checkpoint.")
        mounts += ["-v", f"{folder.resolve()}:/checkpoint/{number}:ro"]
        words += ["--checkpoint", f"{folder.resolve().name}=/checkpoint/{number}"]
    report = report_of(docker, args, "segment-quantization", words, kind=Report, what="figures", mounts=mounts)
    return report if not args.text else report.model_copy(update={"text": ", ".join(map(str, args.text))})


def as_markdown(report: Report) -> str:
    """The table for a page of documentation."""
    lines = [f"| {' | '.join(_HEADS)} |", f"|{'---|' * len(_HEADS)}"]
    return "\n".join(lines + [f"| {' | '.join(way.row())} |" for way in report.ways])


def show(report: Report) -> None:
    """A table for a reader."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    table = Table(*_HEADS, title=f"{report.tokens} tokens of {report.text}, {report.dtype}")
    for way in report.ways:
        table.add_row(*way.row())
    console.print(table)
    console.print(f"agreement: with the likeliest token of {report.ways[0].name}. Memory is that of the weights alone.")
    for way in report.ways:
        if abs(way.off) > MOST_OFF:
            console.print(f"{way.name}: memory is off by more than {MOST_OFF:.0%}")
