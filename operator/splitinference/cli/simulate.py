"""`splitinference simulate`: policies side by side on a trace of nodes, links and requests, by the operator's own decisions."""

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitinference.simulation.results.report import Report
    from splitinference.simulation.traces.trace import Trace

POLICIES = ("static", "adaptive", "edgeshard-static", "greedy-reactive")
TRACES = ("mec-day-night", "v2x-bursts", "industrial-failures", "utilization-step", "utilization-oscillation", "quiet")
REQUEST_TRACES = ("azure-2023-conv", "azure-2023-code", "azure-2024-week", "mooncake")
_EXTRA = "install splitinference with the extra `simulate`: pip install 'splitinference[simulate]'"


class _UnusableError(Exception):
    """What was asked for cannot be done; the message says why."""


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command; the parsed arguments carry its function as `run`, which takes them and gives the exit code."""
    parser = subparsers.add_parser(
        "simulate",
        help="simulate policies on a trace",
        description="Drives the operator's own triggers, solver and transitions with a simulation of nodes, links and requests.",
    )
    choices = f"one of {', '.join(TRACES)}; or a published trace of requests: {', '.join(REQUEST_TRACES)}"
    parser.add_argument("--trace", required=True, help=f"a file (docs/reference/traces.md), or {choices}")
    parser.add_argument("--trace-folder", type=Path, metavar="DIR", help="where the files of published traces of requests are")
    parser.add_argument("--scale", type=_positive, default=1.0, help="share of a published trace's load (default 1)")
    parser.add_argument("--policy", default="static,adaptive", help=f"with commas between them: {', '.join(POLICIES)} (or: all)")
    parser.add_argument("--seed", type=int, default=1, help="of requests and of a synthetic trace (default 1)")
    parser.add_argument("--nodes", type=_positive_int, help="of a synthetic trace")
    parser.add_argument("--hours", type=_positive, help="of a synthetic trace")
    parser.add_argument("--json", action="store_true", help="reports as JSON, with moves and time line")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="write a picture as .svg or .png")
    parser.add_argument("--write-trace", type=Path, metavar="FILE", help="write the trace as a file, to change it or to keep it")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Simulate and print; 0 if all went well, 1 if a policy finds no plan, 2 if what was asked for cannot be used."""
    if args.trace in REQUEST_TRACES:
        return _run_fleet(args)
    if importlib.util.find_spec("simpy") is None:
        print(f"simulate: simpy is missing; {_EXTRA}", file=sys.stderr)
        return 2
    from splitinference.simulation.operator_pass import NoPlanError
    from splitinference.simulation.traces.trace_file import TraceError

    try:
        names = _policies(args.policy)
        _check_picture(args.picture)
        trace = _trace(args)
        reports = _simulate(trace, names, args.seed)
    except (_UnusableError, TraceError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    except NoPlanError as error:
        print(f"simulate: no plan to start with: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps([report.model_dump(mode="json") for report in reports], indent=1))
    else:
        _print(trace, reports)
    if args.picture is not None:
        from splitinference.simulation.results.picture import draw

        try:
            draw(trace, reports, args.picture)
        except OSError as error:
            print(f"simulate: {args.picture}: cannot be written: {error.strerror or error}", file=sys.stderr)
            return 2
    return 0


def _run_fleet(args: argparse.Namespace) -> int:
    """A published trace of requests, over a fleet."""
    from splitinference.simulation.fleet.command import COLUMNS, rows, run_fleet
    from splitinference.simulation.fleet.request_traces import RequestTraceError

    if args.trace_folder is None:
        print(f"simulate: --trace {args.trace} needs --trace-folder: the folder with its file", file=sys.stderr)
        return 2
    try:
        reports, title = run_fleet(args.trace, args.trace_folder, args.scale)
    except (RequestTraceError, OSError) as error:
        print(f"simulate: {error}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps([report.model_dump(mode="json") for report in reports], indent=1))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left")
    for row in rows(reports):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    return 0


def _policies(text: str) -> tuple[str, ...]:
    names = POLICIES if text == "all" else tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in POLICIES]
    if unknown or not names:
        raise _UnusableError(f"--policy: expected some of {', '.join(POLICIES)}, is {', '.join(unknown) or 'empty'}")
    return names


def _check_picture(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix not in (".svg", ".png"):
        raise _UnusableError(f"--picture: expected a file that ends in .svg or .png, is {path}")
    if importlib.util.find_spec("matplotlib") is None:
        raise _UnusableError(f"--picture: matplotlib is missing; {_EXTRA}")


def _trace(args: argparse.Namespace) -> "Trace":
    from splitinference.simulation.traces.synthetic import GENERATORS
    from splitinference.simulation.traces.trace_file import read_trace, write_trace

    generator = GENERATORS.get(args.trace)
    if generator is None:
        path = Path(args.trace)
        if not path.suffix and not path.exists():
            raise _UnusableError(f"--trace: expected a file or one of {', '.join(GENERATORS)}, is {args.trace!r}")
        if args.nodes is not None or args.hours is not None:
            raise _UnusableError("--nodes and --hours are for synthetic traces: a file says both itself")
        trace = read_trace(path)
    else:
        nodes = args.nodes or generator.nodes
        if nodes < generator.least_nodes:
            raise _UnusableError(f"--nodes: {args.trace} needs at least {generator.least_nodes}, is {nodes}")
        trace = generator.make(nodes, (args.hours or generator.hours) * 3600, args.seed)
    if args.write_trace is not None:
        write_trace(trace, args.write_trace)
    return trace


def _simulate(trace: "Trace", names: tuple[str, ...], seed: int) -> "list[Report]":
    from splitinference.simulation.policies import PolicyName
    from splitinference.simulation.run import simulate

    reports = []
    for name in names:
        began, worked = time.monotonic(), time.process_time()
        reports.append(simulate(trace, PolicyName(name), seed))
        took, work = time.monotonic() - began, time.process_time() - worked
        print(f"{name}: {trace.duration_s / 3600:g} h in {took:.1f} s ({work:.1f} s of processor time)", file=sys.stderr)
    return reports


def _print(trace: "Trace", reports: "list[Report]") -> None:
    from rich.console import Console
    from rich.table import Table

    from splitinference.simulation.results.table import FURTHER_ROWS, MAIN_ROWS, cells

    title = f"{trace.name}: {len(trace.problem.snapshot.nodes)} nodes, {trace.duration_s / 3600:g} h, {reports[0].requests} requests"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for report in reports:
        table.add_column(report.policy, justify="right")
    for rows in (MAIN_ROWS, FURTHER_ROWS):
        for row in cells(reports, rows):
            table.add_row(*row)
        table.add_section()
    # Not cut to a terminal's width where there is no terminal.
    Console(width=None if sys.stdout.isatty() else 60 + 20 * len(reports)).print(table)


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"expected a number above 0, is {text}")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if not 0 < value < 100_000:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, is {text}")
    return value
