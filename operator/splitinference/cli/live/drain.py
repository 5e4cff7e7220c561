"""`kubectl split drain NODE`: plan around the node first, then cordon it, and wait until none of our pods is on it."""

import argparse
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

import click

from splitinference.cli.connection import INSTANCE, MANAGED_BY, Connection, complete_nodes, connection_of, connection_options
from splitinference.cli.errors import SplitError, in_sentences

Json = Mapping[str, Any]
MARK = "splitinference.dev/drained"
"""Annotation of a node that this command cordoned, with the time: what others cordoned is not taken back."""
_EVERY_SECONDS = 2.0
_PLAN_SECONDS = 10.0
_HELP = """Move all segments away from NODE.

First it plans each resource without the node, and stops if one would have no plan. Then it cordons the node. In every adaptation mode,
the operator then moves the segments: it proves each new one before the old one goes. The command ends when no pod of ours is on the
node. Pods of others stay (kubectl drain evicts them).
"""


@click.command("drain", help=_HELP)
@click.argument("node", shell_complete=complete_nodes)
@click.option("--undo", is_flag=True, help="Uncordon the node, if this command cordoned it.")
@click.option("--dry-run", is_flag=True, help="Only plan.")
@click.option("--force", is_flag=True, help="Go on if a resource has no plan without the node, or cannot be planned here.")
@click.option("--timeout", type=click.FloatRange(0, 86400), default=600.0, show_default=True, metavar="SECONDS",
              help="How long to wait until nothing of ours is on the node; 0: do not wait.")  # fmt: skip
@connection_options
def command(node: str, undo: bool, dry_run: bool, force: bool, timeout: float, **options: Any) -> int:
    """Drain or take back."""
    connection = connection_of({**options, "all_namespaces": False})
    found = _node(connection, node)
    if undo:
        return _undo(connection, found)
    refused = _planned_around(connection, node)
    if refused and not force:
        raise SplitError(
            f"{node} is left as it is: {'; '.join(refused)}",
            "To drain it all the same: --force. Segments that have no other place then stay on it.",
        )
    if dry_run:
        return 0
    _cordon(connection, found)
    if not timeout:
        return 0
    _wait(connection, node, timeout)
    click.echo(f"Nothing of ours is on {node}. To evict other pods: kubectl drain {node} --ignore-daemonsets. To take it back: --undo.")
    return 0


def _node(connection: Connection, name: str) -> Json:
    with in_sentences():
        found: Json | None = connection.cluster.node(name)
        if found is not None:
            return found
        near = get_close_matches(name, [str(one["metadata"]["name"]) for one in connection.cluster.nodes()], 3, 0.5)
    raise SplitError(f"There is no node {name}.", f"Did you mean {' or '.join(near)}?" if near else "See: kubectl get nodes")


# --- before ----------------------------------------------------------------------------------------------------------------------------


def _ours(connection: Connection, node: str) -> Sequence[Json]:
    """Our pods on the node, of all namespaces, but those that have ended."""
    with in_sentences():
        pods = connection.cluster.in_namespace("Pod", "", f"{MANAGED_BY}=splitinference")
    on_it = [pod for pod in pods if (pod.get("spec") or {}).get("nodeName") == node]
    return [pod for pod in on_it if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]


def _planned_around(connection: Connection, node: str) -> list[str]:
    """Print what each resource would do without the node; those that would have no plan, with why."""
    with in_sentences():
        resources: Sequence[Json] = connection.cluster.in_namespace("SplitInference", "")
    held = {
        (str(pod["metadata"]["namespace"]), str((pod["metadata"].get("labels") or {}).get(INSTANCE))) for pod in _ours(connection, node)
    }
    held |= {
        (str(one["metadata"]["namespace"]), str(one["metadata"]["name"]))
        for one in resources
        if any(s.get("node") == node for s in ((one.get("status") or {}).get("plan") or {}).get("segments") or ())
    }
    if not held:
        click.echo(f"Nothing of ours is on {node}, and no plan uses it.")
    refused = []
    for resource in resources:
        key = str(resource["metadata"]["namespace"]), str(resource["metadata"]["name"])
        if key in held:
            good, words = _plan_without(connection, resource, node)
            click.echo(f"{'/'.join(key)}: {words}")
            refused += [] if good else [f"{'/'.join(key)}: {words}"]
    return refused


def _plan_without(connection: Connection, resource: Json, node: str) -> tuple[bool, str]:
    """Whether there is a plan without the node, and which, or why not."""
    from splitinference.cli.plan.input import UnusableError, problem_of
    from splitinference.controller.ports import RefusedError, UnavailableError
    from splitinference.core.decide.feasibility.restrict import without
    from splitinference.core.planner import Infeasible, Limits, Solved, SolverError, solve_in_child

    wanted = argparse.Namespace(
        filename=str(resource["metadata"]["name"]), namespace=str(resource["metadata"]["namespace"]), prometheus=None, profile=None,
        model=None, cluster=None, kubeconfig=connection.kubeconfig, context=connection.context,
    )  # fmt: skip
    try:
        problem = without(problem_of(resource, wanted).problem, [node])
        outcome = solve_in_child(problem, Limits(_PLAN_SECONDS, 500))
    except (UnusableError, RefusedError, UnavailableError, SolverError) as error:
        return False, f"it cannot be planned here: {error}"
    if isinstance(outcome, Infeasible):
        return False, f"there is no plan without {node}: " + "; ".join(reason.message for reason in outcome.reasons)
    plan = outcome.plan if isinstance(outcome, Solved) else outcome.best
    if plan is None:
        return False, f"no plan without {node} was found within {_PLAN_SECONDS:g} s"
    return True, "without it, a plan is " + " ".join(f"{s.node}[{s.start}:{s.end}]" for s in plan.segments)


# --- cordon and wait -------------------------------------------------------------------------------------------------------------------


def _cordon(connection: Connection, node: Json) -> None:
    name = node["metadata"]["name"]
    if (node.get("spec") or {}).get("unschedulable"):
        click.echo(f"{name} was cordoned already.")
        return
    change = {
        "metadata": {"annotations": {MARK: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}},
        "spec": {"unschedulable": True},
    }
    with in_sentences():
        connection.cluster.patch("Node", "", name, change, str(node["metadata"]["resourceVersion"]))
    click.echo(f"{name} is cordoned.")


def _undo(connection: Connection, node: Json) -> int:
    name, annotations = node["metadata"]["name"], node["metadata"].get("annotations") or {}
    if not (node.get("spec") or {}).get("unschedulable") and MARK not in annotations:
        raise SplitError(f"{name} is not cordoned.")
    if MARK not in annotations:
        raise SplitError(f"{name} was cordoned by somebody else.", f"If it may be used again: kubectl uncordon {name}")
    with in_sentences():
        change = {"metadata": {"annotations": {MARK: None}}, "spec": {"unschedulable": None}}
        connection.cluster.patch("Node", "", name, change, str(node["metadata"]["resourceVersion"]))
    click.echo(f"{name} is uncordoned. Segments come back when a plan with it is better.")
    return 0


def _wait(connection: Connection, node: str, timeout_seconds: float) -> None:
    """Until nothing of ours is on the node; each change is printed. Raises SplitError with what is still there, and why."""
    until, before = time.monotonic() + timeout_seconds, ""
    while pods := _ours(connection, node):
        names = ", ".join(sorted(str(pod["metadata"]["name"]) for pod in pods))
        if names != before:
            click.echo(f"still on {node}: {names}")
            before = names
        if time.monotonic() >= until:
            raise SplitError(f"After {timeout_seconds:g} s there still is: {names}. {_why(connection, pods)}".strip(), _hint(pods))
        time.sleep(min(_EVERY_SECONDS, max(0.1, until - time.monotonic())))


def _why(connection: Connection, pods: Sequence[Json]) -> str:
    """What the resources of these pods wait for."""
    said = []
    for namespace, name in sorted({(p["metadata"]["namespace"], (p["metadata"].get("labels") or {}).get(INSTANCE, "")) for p in pods}):
        with in_sentences():
            resource = connection.cluster.split_inference(namespace, name)
        for condition in ((resource or {}).get("status") or {}).get("conditions") or ():
            if condition.get("type") in ("Planned", "Progressing") and condition.get("message"):
                said.append(f"{namespace}/{name}: {condition.get('reason')}: {condition.get('message')}")
    return " ".join(said)


def _hint(pods: Sequence[Json]) -> str:
    first = pods[0]["metadata"]
    return f"See: kubectl split explain {(first.get('labels') or {}).get(INSTANCE, '')} -n {first['namespace']}; kubectl split doctor"
