"""`kubectl split explain`: why here, why not there, why now, why not: the planner's words, the last decisions, and what is not known."""

import re
from collections.abc import Iterator
from typing import Any

import click
from rich.text import Text

from splitinference.cli.connection import Connection, complete_names, complete_nodes, connection_of, connection_options
from splitinference.cli.errors import SplitError, in_sentences
from splitinference.cli.printing.output import FORMATS, console, emit, put
from splitinference.view import NodeView, PlanView, ResourceView, read, read_nodes

_HERE = re.compile(r"^layers \[\d+, \d+\) on ")
_LEFT = re.compile(r"^(?P<node>\S+) left: ")
_MORE_LEFT = re.compile(r"^and \d+ more nodes left")


@click.command("explain", help=f"{__doc__.partition(': ')[2].strip()[0].upper()}{__doc__.partition(': ')[2].strip()[1:]}")
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("--node", help="Only what concerns this node.", shell_complete=complete_nodes)
@click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces.")
@click.option("-o", "--output", type=click.Choice([name for name in FORMATS if name != "wide"]), help="Another form of output.")
@connection_options
def command(node: str | None, name: str | None, output: str | None, **options: Any) -> int:
    """Read and print."""
    connection = connection_of(options)
    views = [read(resource) for resource in connection.resources(name)]
    if output:
        plain = [{"namespace": v.namespace, "name": v.name, **{key: list(lines) for key, lines in answers(v).items()}} for v in views]
        emit(plain if output != "name" else views, output)
        return 0
    about = _node(connection, node) if node else None
    to = console()
    for number, view in enumerate(views):
        if number:
            to.print()
        for line in lines(view) if about is None else of_node(view, about):
            put(to, line)
    return 0


def _node(connection: Connection, name: str) -> NodeView:
    with in_sentences():
        found = connection.cluster.node(name)
        if found is not None:
            return read_nodes([found])[0]
        from difflib import get_close_matches

        near = get_close_matches(name, [str(one["metadata"]["name"]) for one in connection.cluster.nodes()], 3, 0.5)
    raise SplitError(f"There is no node {name}.", f"Did you mean {' or '.join(near)}?" if near else "kubectl get nodes")


def answers(view: ResourceView) -> dict[str, tuple[str, ...]]:
    """The four answers, in words. Empty ones are there, too."""
    words = view.plan.explanation if view.plan else ()
    there = tuple(line for line in words if _LEFT.match(line) or _MORE_LEFT.match(line))
    return {
        "whyHere": tuple(line for line in words if line not in there) + tuple(_proof(view.plan) if view.plan else ()),
        "whyNotThere": there,
        "whyNow": tuple(_why_now(view)),
        "whyNot": tuple(_why_not(view)),
    }


def lines(view: ResourceView) -> Iterator[Text]:
    """All answers for people."""
    yield Text(view.title, style="bold")
    found = answers(view)
    titles = {"whyHere": "why here", "whyNotThere": "why not there", "whyNow": "why now", "whyNot": "why nothing else"}
    for key, title in titles.items():
        if found[key]:
            yield Text(f"  {title}", style="bold cyan")
            for line in found[key]:
                yield Text(f"    {line}")
    if not any(found.values()):
        yield Text("  no operator has looked at it yet: kubectl split doctor", style="yellow")


def _proof(plan: PlanView) -> Iterator[str]:
    if plan.value is not None and plan.bound is not None and plan.gap is not None:
        proven = "so it is proven best" if plan.optimal else f"so it is at most {plan.gap:.1%} from the best"
        yield f"value {plan.value:.2f}, no plan can be better than {plan.bound:.2f}: {proven}"


def _why_now(view: ResourceView) -> Iterator[str]:
    """The decision that made the plan, and what the present move waits for."""
    revision = view.plan.revision if view.plan else ""
    made = next((d for d in view.decisions if d.revision == revision and d.transition != "keep"), None)
    if made is not None:
        yield f"made at {made.time} because of {made.reason}: {made.message}"
    yield from (f"the move waits: {wait}" for wait in view.waiting)


def _why_not(view: ResourceView) -> Iterator[str]:
    """Why no other plan was taken since, and what stands in the way of this one."""
    for condition in view.conditions:
        if not condition.good and condition.kind in ("Accepted", "Planned", "MetricsAvailable", "Stalled"):
            yield f"{condition.reason}: {condition.message}"
    for decision in view.decisions:
        if decision.transition != "keep":
            break  # older ones are of another plan
        yield f"{decision.time} {decision.reason}: {decision.message}"
    if view.mode == "Frozen":
        yield "mode Frozen: no better plan is looked for"
    if view.proposal is not None:
        yield f"proposed plan {view.proposal.plan.revision} waits for an answer: kubectl split approve {view.name}"


def of_node(view: ResourceView, node: NodeView) -> Iterator[Text]:
    """Why this node has a segment of this resource, or why it has none."""
    yield Text(f"{view.title} on {node.name}", style="bold")
    words = view.plan.explanation if view.plan else ()
    said = [line for line in words if (_HERE.match(line) and f" on {node.name}" in line) or line.startswith(f"{node.name} left: ")]
    yield from (Text(f"  {line}") for line in said)
    held = [segment for segment in (view.plan.segments if view.plan else ()) if segment.node == node.name]
    if not said and not held:
        more = any(_MORE_LEFT.match(line) for line in words)
        yield Text("  the plan does not use it" + (", and it is not among the first nodes that the plan explains" if more else ""))
    if not node.ready:
        yield Text("  it is not Ready", style="red")
    if node.cordoned:
        yield Text("  it is cordoned: kubectl split drain --undo or kubectl uncordon", style="yellow")
    yield from (Text(f"  it has the taint {taint}", style="yellow") for taint in node.taints)
    for decision in view.decisions:
        if node.name in decision.message:
            yield Text(f"  {decision.time} {decision.transition} {decision.reason}: {decision.message}")
