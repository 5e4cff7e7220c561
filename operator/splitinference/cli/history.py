"""`kubectl split history`: the last ten decisions, newest first, with their reasons and what came of them."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from splitinference.cli.resources import add_command, status_of, title


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    add_command(subparsers, "history", "the last ten decisions and why", __doc__, show)


def show(resource: Mapping[str, Any], to: Console) -> None:
    """One resource's decisions."""
    to.print(f"[bold]{escape(title(resource))}[/bold]")
    decisions = status_of(resource).get("decisions") or ()
    if not decisions:
        to.print("  no decision yet")
    for decision in decisions:
        head = "  ".join(str(decision.get(key, "")) for key in ("time", "transition", "reason", "revision") if decision.get(key))
        to.print(f"  {head}", markup=False, soft_wrap=True)
        to.print(f"      {decision.get('message', '')}", markup=False, soft_wrap=True)
        if outcome := decision.get("outcome"):
            words = ", ".join(f"{key} {value}" for key, value in outcome.items())
            to.print(f"      outcome: {words}", markup=False, soft_wrap=True)
