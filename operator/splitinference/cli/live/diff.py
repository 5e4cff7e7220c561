"""`kubectl split diff`: what serves beside what is proposed in mode Advisory, or beside what the present move leads to."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from splitinference.cli.connection import Connection
from splitinference.cli.errors import SplitError, in_sentences
from splitinference.cli.live.status import allowed, route_of
from splitinference.cli.printing.drawing import Pen, chains, move_lines
from splitinference.cli.printing.output import console, emit, put, resource_command, unicode_ok
from splitinference.view import PipelineView, PlanView, ResourceView, moves, read

_HELP = """What serves beside what is proposed (mode Advisory), or beside what the present move leads to.

Exit status 0: there is a difference; 1: there is none.
"""


@resource_command("diff", _HELP)
def command(connection: Connection, name: str | None, output: str) -> int:
    """Read and print."""
    resources = connection.resources(name)
    with in_sentences():
        pods = allowed(lambda: connection.cluster.in_namespace("Pod", connection.namespace, "app.kubernetes.io/managed-by=splitinference"))
        routes = [found for one in resources if (found := route_of(connection, one)) is not None]
    pairs = [(view, pair) for view in (read(one, pods, routes) for one in resources) if (pair := compared(view)) is not None]
    if not pairs:
        raise SplitError(
            f"There is nothing to compare: {resources[0]['metadata']['name'] if name else 'no resource'} neither moves nor has a proposal.",
            "A plan is proposed in mode Advisory only (spec.adaptation.mode), once a better one has lasted.",
        )
    if output in ("json", "yaml"):
        emit([_plain(view, *pair) for view, pair in pairs], output)
        return 0
    if emit([view for view, _ in pairs], output):
        return 0
    to = console()
    pen = Pen(to.width, unicode_ok())
    for view, (serving, plan, title) in pairs:
        for line in lines(view, serving, plan, title, pen):
            put(to, line)
    return 0


Pair = tuple[Sequence[PipelineView], PlanView, str]


def compared(view: ResourceView) -> Pair | None:
    """What serves, what it is compared with, and what that is called; None where there is nothing to compare."""
    if view.plan is None:
        return None
    if view.serving:
        return view.serving, view.plan, "moving to"
    return (view.plan.pipelines, view.proposal.plan, "proposed") if view.proposal is not None else None


def lines(view: ResourceView, serving: Sequence[PipelineView], plan: PlanView, title: str, pen: Pen) -> Iterator[Text]:
    """Both plans, and what lies between them."""
    yield Text(view.title, style="bold")
    yield Text(f"serving {view.transition_from or (view.plan.revision if view.plan else '')}", style="bold")
    yield from chains(serving, pen)
    yield Text(f"{title} {plan.revision}", style="bold yellow")
    yield from chains(plan.pipelines, pen)
    yield Text("difference", style="bold")
    yield from move_lines(moves(serving, plan.pipelines), pen, len(plan.pipelines) > 1)
    if view.proposal is not None and title == "proposed":
        yield Text(f"  why: {view.proposal.message}")
        yield Text(f"  offered since {view.proposal.time}: kubectl split approve {view.name}, or: kubectl split reject {view.name}")


def _plain(view: ResourceView, serving: Sequence[PipelineView], plan: PlanView, title: str) -> dict[str, Any]:
    return {
        "namespace": view.namespace,
        "name": view.name,
        "kind": "proposal" if title == "proposed" else "transition",
        "serving": [pipeline.model_dump(mode="json") for pipeline in serving],
        "plan": plan.model_dump(mode="json"),
        "moves": [move.model_dump(mode="json") for move in moves(serving, plan.pipelines)],
    }
