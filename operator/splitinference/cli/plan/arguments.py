"""`splitinference plan` and `kubectl split plan`: what the planner would do, and why; nothing in the cluster changes."""

import argparse
import math
from pathlib import Path
from typing import Any

MOST_SECONDS = 86_400.0
LEAST_MIB, MOST_MIB = 200, 1_048_576


def seconds(text: str) -> float:
    """A time limit from the command line. Raises ArgumentTypeError with what is expected."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0 and at most {MOST_SECONDS:.0f}, got {text!r}")
    return value


def memory_mib(text: str) -> int:
    """Memory of the solver's process from the command line. Raises ArgumentTypeError with what is expected."""
    value = int(text) if text.strip().isdecimal() and len(text) < 20 else -1
    if not LEAST_MIB <= value <= MOST_MIB:
        raise argparse.ArgumentTypeError(f"expected a whole number of MiB from {LEAST_MIB} to {MOST_MIB}, got {text!r}")
    return value


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("plan", help="what the planner would do, and why (changes nothing)", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--problem", type=Path, nargs="+", metavar="FILE", help="problems as JSON (docs/reference/problem.schema.json)")
    source.add_argument("-f", "--filename", type=Path, metavar="FILE", help="a SplitInference as YAML or JSON")
    parser.add_argument(
        "--cluster", type=Path, metavar="FILE", help="with -f: a snapshot as JSON, or `kubectl get nodes,pods -A -o json`; else live"
    )
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FOLDER",
        help="with -f: config.json and safetensors, or a GGUF file; else what the operator has read",
    )
    parser.add_argument("--profile", type=Path, metavar="FILE", help="with -f: the model's profile as JSON")
    parser.add_argument(
        "--prometheus", metavar="URL", help="with -f: where utilization is read; SPLITINFERENCE_PROMETHEUS_URL if none is given"
    )
    parser.add_argument("--kubeconfig", help="kubeconfig file; KUBECONFIG or ~/.kube/config if none is given")
    parser.add_argument("-n", "--namespace", help="of the resource, where its file names none")
    parser.add_argument("--hint", type=Path, metavar="FILE", help="a plan as JSON to start from, and to keep if none is better")
    parser.add_argument("--jointly", action="store_true", help="several problems: all at once, instead of one after the other")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="time limit (default 10)")
    parser.add_argument("--memory-mib", type=memory_mib, default=500, help="memory of the solver's process (default 500)")
    parser.add_argument("--json", action="store_true", help="print JSON (docs/reference/outcome.schema.json, several.schema.json)")
    parser.add_argument("--svg", type=Path, metavar="OUT", help="write a picture of the plan over the nodes")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print. What that needs is loaded only now: the help of the command needs none of it."""
    from splitinference.cli.plan.plan import run as plan

    return plan(args)
