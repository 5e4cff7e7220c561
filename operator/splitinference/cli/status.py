"""`kubectl split status`: the plan that serves, stage by stage, with what was predicted and what is observed."""

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitinference.cli.resources import add_command, status_of, title

_GOOD_WHEN_FALSE = ("Progressing", "Reconciling", "Stalled")


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    add_command(subparsers, "status", "the plan that serves, stage by stage", __doc__, show)


def show(resource: Mapping[str, Any], to: Console) -> None:
    """One resource."""
    status = status_of(resource)
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    to.print(f"[bold]{escape(title(resource))}[/bold]  Ready: {ready.get('status', 'Unknown')}  segments: {status.get('segments', '-')}")
    for kind, condition in conditions.items():
        if condition["status"] != ("False" if kind in _GOOD_WHEN_FALSE else "True"):
            to.print(f"  {kind} is {condition['status']}: {condition['reason']}: {condition['message']}", markup=False, soft_wrap=True)
    plan = status.get("plan")
    if not plan:
        return
    gap = plan.get("gap")
    proven = "proven best" if plan.get("optimal") else ("gap not known" if gap is None else f"at most {gap:.1%} from the best")
    times = f"predicted {status.get('predicted') or '-'} a request, observed {status.get('latency') or '-'}"
    to.print(f"  plan {plan.get('revision')}: {times}; {proven}", markup=False, soft_wrap=True)
    to.print(segments(status))
    if endpoint := status.get("endpoint"):
        to.print(f"  endpoint: {endpoint}", markup=False, soft_wrap=True)


def segments(status: Mapping[str, Any]) -> Table:
    """The plan's segments as a table; observed times where requests were seen on this plan."""
    plan = status["plan"]
    observed = status.get("observed") or {}
    stages = observed.get("stages") or {} if observed.get("revision") == plan.get("revision") else {}
    table = Table(box=None, padding=(0, 2, 0, 2))
    for name in ("SEGMENT", "LAYERS", "NODE"):
        table.add_column(name, no_wrap=True)
    for name in ("WEIGHTS", "KV", "STAGE", "OBSERVED", "LINK", "OBSERVED"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("PHASE", no_wrap=True)
    for segment in plan.get("segments") or ():
        seen = stages.get(segment["name"], {})
        table.add_row(
            segment["name"],
            f"{segment['start']}:{segment['end']}",
            segment["node"],
            f"{segment.get('weightMiB', 0):.0f} MiB",
            f"{segment.get('kvMiB', 0):.0f} MiB",
            _ms(segment.get("predictedMs")),
            _ms(seen.get("computeMs")),
            _ms(segment.get("linkMs")),
            _ms(seen.get("linkMs")),
            str(segment.get("phase", "")),
        )
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
