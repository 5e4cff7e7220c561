"""`kubectl split history`: the last ten decisions, newest first, with their reasons and what came of them."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from splitinference.cli.resources import add_arguments, console, read_or_say, status_of, title


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("history", help="the last ten decisions and why", description=__doc__)
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print; 1 where there is nothing to print."""
    found = read_or_say(args)
    if found is None:
        return 1
    for resource in found:
        show(resource, console())
    return 0


def show(resource: Mapping[str, Any], to: Console) -> None:
    """One resource's decisions."""
    to.print(f"[bold]{escape(title(resource))}[/bold]")
    decisions = status_of(resource).get("decisions") or ()
    if not decisions:
        to.print("  nothing was decided yet")
    for decision in decisions:
        head = "  ".join(str(decision.get(key, "")) for key in ("time", "transition", "reason", "revision") if decision.get(key))
        to.print(f"  {head}", markup=False, soft_wrap=True)
        to.print(f"      {decision.get('message', '')}", markup=False, soft_wrap=True)
        if outcome := decision.get("outcome"):
            words = ", ".join(f"{key} {value}" for key, value in outcome.items())
            to.print(f"      came of it: {words}", markup=False, soft_wrap=True)
