"""`kubectl split status`: the plan that serves, stage by stage, with what was predicted and what is observed."""

import argparse
from collections.abc import Iterator, Mapping
from io import StringIO
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from splitinference.cli.resources import add_command, status_of, title

_ANY_WIDTH = 10_000
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
    near = "gap not known" if gap is None else f"at most {gap:.1%} from the best"
    proven = "proven best for these figures" if plan.get("optimal") else near
    times = f"predicted {status.get('predicted') or '-'} for a request alone, observed {status.get('latency') or '-'}"
    to.print(f"  plan {plan.get('revision')}: {times}; {proven}", markup=False, soft_wrap=True)
    for line in _uncut(segments(status)):
        to.print(f"  {line}", markup=False, soft_wrap=True)
    if line := traffic(status):
        to.print(f"  {line}", markup=False, soft_wrap=True)
    for line in how_far_off(status):
        to.print(f"  {line}", markup=False, soft_wrap=True)
    if endpoint := status.get("endpoint"):
        to.print(f"  endpoint: {endpoint}", markup=False, soft_wrap=True)


def traffic(status: Mapping[str, Any]) -> str:
    """Requests and tokens of the last window on this plan; empty where none were seen."""
    observed = _observed(status)
    if not observed:
        return ""
    said = [f"{observed.get('requests', 0)} requests in {observed.get('windowSeconds', 0):.0f} s", f"{observed.get('failed', 0)} failed"]
    if "tokensPerSecond" in observed:
        said.append(f"{observed['tokensPerSecond']:.1f} tokens/s")
    if "kvReserved" in observed:
        said.append(f"{observed['kvReserved']:.0%} of the KV reserved")
    return ", ".join(said)


def _observed(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was observed of the plan; empty while that is of another."""
    observed: Mapping[str, Any] = status.get("observed") or {}
    return observed if observed.get("revision") == (status.get("plan") or {}).get("revision") else {}


def segments(status: Mapping[str, Any]) -> Table:
    """The plan's segments as a table; observed times where requests were seen on this plan.

    STAGE is the compute of one decode step as it is predicted for the node as it is; before it was compared, as it was when the plan was
    made. BATCH is how many steps are computed together in the mean, WAIT what a step waited for those of other requests.
    """
    plan = status["plan"]
    stages = _observed(status).get("stages") or {}
    calibration = status.get("calibration") or {}
    compared, factors = calibration.get("stages") or {}, calibration.get("nodes") or {}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("SEGMENT", "LAYERS", "NODE"):
        table.add_column(name, no_wrap=True)
    for name in ("WEIGHTS", "KV", "STAGE", "OBSERVED", "BATCH", "WAIT", "LINK", "OBSERVED", "FACTOR"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("PHASE", no_wrap=True)
    for segment in plan.get("segments") or ():
        seen, now = stages.get(segment["name"], {}), compared.get(segment["name"], {})
        factor = factors.get(segment["node"], {}).get("factor")
        table.add_row(
            segment["name"],
            f"{segment['start']}:{segment['end']}",
            segment["node"],
            f"{segment.get('weightMiB', 0):.0f} MiB",
            f"{segment.get('kvMiB', 0):.0f} MiB",
            _ms(now.get("predictedMs", segment.get("predictedMs"))),
            _ms(seen.get("computeMs")),
            "-" if "batch" not in seen else f"{seen['batch']:.1f}",
            _ms(seen.get("queueMs")),
            _ms(segment.get("linkMs")),
            _ms(seen.get("linkMs")),
            "-" if factor is None else f"{factor:.2f}",
            str(segment.get("phase", "")),
        )
    return table


def _uncut(table: Table) -> Iterator[str]:
    """The table's lines as wide as they are, as kubectl prints them: names and figures that are cut short would be of no use."""
    wide = Console(file=StringIO(), width=_ANY_WIDTH)
    with wide.capture() as printed:
        wide.print(table)
    yield from (line.rstrip() for line in printed.get().splitlines())


def how_far_off(status: Mapping[str, Any]) -> Iterator[str]:
    """How far the predicted stage times are from the observed ones, and which moves paid; nothing where it is not known."""
    calibration, kept = status.get("calibration") or {}, status.get("adaptation") or {}
    error, plain = calibration.get("errorPercent"), calibration.get("uncalibratedErrorPercent")
    if error is not None and plain is not None:
        yield f"predicted stage times are off by {error:.1f} % in the mean, without the nodes' factors by {plain:.1f} %"
    paid, unpaid = kept.get("paid", 0), kept.get("unpaid", 0)
    if paid or unpaid:
        yield f"of {paid + unpaid} moves that promised quicker tokens, {paid} paid"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
