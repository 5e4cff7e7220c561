"""`kubectl split status`: what serves, drawn: pipelines, nodes, links, and what moves."""

from collections.abc import Iterator, Sequence
from typing import Any

import click
from rich.text import Text

from splitinference.cli.connection import Connection
from splitinference.cli.errors import in_sentences
from splitinference.cli.printing.drawing import Pen, chains, move_lines, node_lines, stage_lines
from splitinference.cli.printing.output import as_text, console, emit, put, resource_command, unicode_ok
from splitinference.controller.ports import RefusedError
from splitinference.view import ConditionView, NodeView, ResourceView, moves, read, read_nodes

_HELP = """What serves, drawn: pipelines, nodes, links, and what moves.

NAME is a SplitInference; without it, all of the namespace are shown. Times are predicted → observed, for one token. The bar shows which
layers a node has. `-o wide` adds every figure of each segment, and all nodes.
"""


@resource_command("status", _HELP, watch=True)
def command(connection: Connection, name: str | None, output: str) -> int:
    """Read and print."""
    resources = connection.resources(name)
    with in_sentences():
        pods = allowed(lambda: connection.cluster.in_namespace("Pod", connection.namespace, "app.kubernetes.io/managed-by=splitinference"))
        routes = [found for one in resources if (found := route_of(connection, one)) is not None]
        views = [read(resource, pods, routes) for resource in resources]
        nodes = _nodes(connection, views, pods, wide=output in ("wide", "json", "yaml"))
    if output in ("json", "yaml"):
        plain = {"items": [view.model_dump(mode="json") for view in views], "nodes": [node.model_dump(mode="json") for node in nodes]}
        click.echo(as_text(plain, output))
        return 0
    if emit(views, output):
        return 0
    to = console()
    for number, view in enumerate(views):
        if number:
            to.print()
        show(view, to, Pen(to.width, unicode_ok()))
        if output == "wide" and view.plan is not None:
            to.print()
            for line in stage_lines(view.plan):
                to.print(line, soft_wrap=True)
    if nodes:
        to.print()
        for line in node_lines(nodes, wide=output == "wide"):
            to.print(line, soft_wrap=True)
    return 0


def allowed(read_them: Any) -> Sequence[Any]:
    """What may be read; nothing where the rights do not reach so far, as the drawing does without."""
    try:
        found: Sequence[Any] = read_them()
    except RefusedError:
        return []
    return found


def route_of(connection: Connection, resource: Any) -> Any:
    """The route's ConfigMap, which is only of interest while it is another than the plan's."""
    if not (resource.get("status") or {}).get("transition"):
        return None
    about = resource["metadata"]
    found = allowed(lambda: [connection.cluster.get("ConfigMap", about["namespace"], f"{about['name']}-route")])
    return found[0] if found else None


def _nodes(connection: Connection, views: Sequence[ResourceView], pods: Sequence[Any], *, wide: bool) -> Sequence[NodeView]:
    """All nodes, or those that hold something of ours."""
    if wide:
        return read_nodes(allowed(connection.cluster.nodes), pods)
    names = sorted({str((pod.get("spec") or {}).get("nodeName") or "") for pod in pods} - {""})
    mine = {view.name for view in views}
    ours = [pod for pod in pods if ((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/instance")) in mine]
    return read_nodes([node for node in allowed(lambda: [connection.cluster.node(name) for name in names]) if node is not None], ours)


def show(view: ResourceView, to: Any, pen: Pen) -> None:
    """One resource."""
    for line in lines(view, pen):
        put(to, line)


def lines(view: ResourceView, pen: Pen) -> Iterator[Text]:
    """What `show` prints."""
    yield _head(view)
    for condition in view.conditions:
        if not condition.good and not _is_said_below(condition, view):
            yield Text(f"  {condition.kind} is {condition.status}: {condition.reason}: {condition.message}", style="yellow")
    if not view.conditions:
        yield Text("  no operator has looked at it yet: kubectl split doctor", style="yellow")
    if view.plan is None:
        return
    yield Text(f"  {view.predicted or '-'} predicted for a request alone, {view.latency or '-'} observed; {proof(view)}")
    if view.traffic is not None:
        yield Text(f"  {traffic(view)}")
    yield from (Text(f"  {line}", style="dim") for line in how_far_off(view))
    yield Text("")
    yield from chains(view.serving or view.plan.pipelines, pen)
    if view.serving or view.moving:
        yield from _moving(view, pen)
    if view.proposal is not None:
        yield Text("")
        yield Text(f"  A better plan is proposed ({view.proposal.plan.revision}): {view.proposal.message}", style="yellow")
        yield Text(f"  Look at it: kubectl split diff {view.name}; adopt it: kubectl split approve {view.name}", style="yellow")
    if view.endpoint:
        yield Text("")
        yield Text(f"  endpoint: {view.endpoint}")


def _is_said_below(condition: ConditionView, view: ResourceView) -> bool:
    """A move under way is no trouble, and its steps are listed where it is drawn."""
    return view.moving and (condition.kind, condition.reason) in (("Progressing", "Transition"), ("Reconciling", "Transition"))


def _head(view: ResourceView) -> Text:
    ready = view.condition("Ready")
    status = ready.status if ready else "Unknown"
    line = Text(view.title, style="bold")
    line.append(f"  Ready: {status}", style="green" if status == "True" else "red")
    line.append(f"  segments: {view.proven or '-'}  mode: {view.mode or '-'}", style="not bold")
    if view.plan is not None:
        line.append(f"  plan: {view.plan.revision}", style="not bold")
    return line


def _moving(view: ResourceView, pen: Pen) -> Iterator[Text]:
    assert view.plan is not None  # noqa: S101 - only resources with a plan move
    yield Text("")
    if view.transition_from and view.transition_from == view.transition_to:
        yield Text("  the plan serves; what it replaced leaves", style="bold yellow")
    else:
        yield Text(
            f"  moving {view.transition_from or 'nothing'} {pen.arrow} {view.transition_to or view.plan.revision}", style="bold yellow"
        )
    if view.serving:
        many = len(view.plan.pipelines) > 1
        yield from (Text("  ") + line for line in move_lines(moves(view.serving, view.plan.pipelines), pen, many))
    yield from (Text(f"    next: {step}") for step in view.steps)
    yield from (Text(f"    waits: {wait}") for wait in view.waiting)


def proof(view: ResourceView) -> str:
    """How near the plan is to the best one."""
    plan = view.plan
    if plan is None:
        return ""
    if plan.optimal:
        return "proven best for these figures"
    return "distance from the best plan not known" if plan.gap is None else f"at most {plan.gap:.1%} from the best"


def traffic(view: ResourceView) -> str:
    """Requests and tokens of the gateway's last window on this plan."""
    seen = view.traffic
    if seen is None:
        return ""
    said = [f"{seen.requests} requests in {seen.window_seconds or 0:.0f} s", f"{seen.failed} failed"]
    if seen.tokens_per_second is not None:
        said.append(f"{seen.tokens_per_second:.1f} tokens/s")
    if seen.kv_reserved is not None:
        said.append(f"{seen.kv_reserved:.0%} of the KV reserved")
    return ", ".join(said)


def how_far_off(view: ResourceView) -> Iterator[str]:
    """How far predicted stage times are from observed ones, and which moves paid; nothing where it is not known."""
    if view.error_percent is not None and view.uncalibrated_error_percent is not None:
        yield (
            f"predicted stage times are off by {view.error_percent:.1f} % in the mean, without the nodes' factors by "
            f"{view.uncalibrated_error_percent:.1f} %"
        )
    if moved := view.paid + view.unpaid:
        yield f"of {moved} moves that promised quicker tokens, {view.paid} paid"
