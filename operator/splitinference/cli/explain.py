"""`kubectl split explain`: why this plan: the planner's own words, the bound, and what it could not know."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from splitinference.cli.resources import add_arguments, console, read_or_say, status_of, title


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("explain", help="why this plan and no other", description=__doc__)
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
    """One resource's plan in words; while there is none, why."""
    status = status_of(resource)
    to.print(f"[bold]{escape(title(resource))}[/bold]")
    plan = status.get("plan")
    if not plan:
        for condition in status.get("conditions") or ():
            if condition["type"] in ("Accepted", "Planned") and condition["status"] != "True":
                to.print(f"  {condition['reason']}: {condition['message']}", markup=False, soft_wrap=True)
        return
    for line in plan.get("explanation") or ():
        to.print(f"  {line}", markup=False, soft_wrap=True)
    value, bound, gap = (plan.get(key) for key in ("value", "bound", "gap"))
    if value is not None and bound is not None and gap is not None:
        proof = "so it is the best there is" if plan.get("optimal") else f"so it is at most {gap:.1%} from the best"
        to.print(f"  value {value:.2f}, no plan can be better than {bound:.2f}: {proof}", markup=False, soft_wrap=True)
    decisions = status.get("decisions") or ()
    made = next((d for d in decisions if d.get("revision") == plan.get("revision") and d.get("transition") != "keep"), None)
    if made:
        to.print(f"  made at {made['time']} because of {made['reason']}: {made['message']}", markup=False, soft_wrap=True)
