"""`kubectl split explain`: why this plan: the planner's own words, the bound, and what it could not know."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from splitinference.cli.resources import add_command, status_of, title


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    add_command(subparsers, "explain", "why this plan and no other", __doc__, show)


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
        proof = "so it is proven best" if plan.get("optimal") else f"so it is at most {gap:.1%} from the best"
        to.print(f"  value {value:.2f}, no plan can be better than {bound:.2f}: {proof}", markup=False, soft_wrap=True)
    decisions = status.get("decisions") or ()
    made = next((d for d in decisions if d.get("revision") == plan.get("revision") and d.get("transition") != "keep"), None)
    if made:
        to.print(f"  made at {made['time']} because of {made['reason']}: {made['message']}", markup=False, soft_wrap=True)
