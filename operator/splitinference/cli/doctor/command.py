"""The command: all checks, each on its own, so that one that cannot be made hides no other."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click
from rich.text import Text

from splitinference.cli.connection import Connection, connection_of, connection_options
from splitinference.cli.doctor import control_plane, operator, resources
from splitinference.cli.doctor.check import BAD, GOOD, UNKNOWN, WARN, Check, Json
from splitinference.cli.errors import SplitError, from_cluster, in_sentences
from splitinference.cli.printing.output import as_text, console, put, unicode_ok
from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.view import read

_MARKS = {GOOD: ("✓", "ok", "green"), WARN: ("!", "!!", "yellow"), BAD: ("✗", "NO", "bold red"), UNKNOWN: ("?", "??", "dim")}
_HELP = """What is missing, and the command that fixes it: cluster, rights, CRD, operator, Prometheus, labels, links, clocks and resources.

Exit status 1 if there is a problem; warnings do not count.
"""


@click.command("doctor", help=_HELP)
@click.option("-A", "--all-namespaces", is_flag=True, help="Resources of all namespaces.")
@click.option("-o", "--output", type=click.Choice(["json", "yaml"]), help="Another form of output.")
@connection_options
def command(output: str | None, **options: Any) -> int:
    """Check and print."""
    connection = connection_of(options)
    checks = list(all_checks(connection))
    if output:
        click.echo(as_text({"items": [check.as_json() for check in checks]}, output))
    else:
        _show(checks)
    return 1 if any(check.state == BAD for check in checks) else 0


def all_checks(connection: Connection) -> Iterator[Check]:
    """All of them. Without an API server there is only one."""
    try:
        with in_sentences():
            yield from control_plane.check_version(connection)
    except SplitError as error:
        yield Check("API server", BAD, error.message, error.fix)
        return
    yield from _each("clock", lambda: control_plane.check_clocks(connection))
    yield from _each("rights", lambda: control_plane.check_rights(connection))
    yield from _each("CRD", lambda: control_plane.check_crd(connection))
    yield from _each("operator", lambda: operator.check_operator(connection))
    yield from _each("metrics-server", lambda: control_plane.check_metrics_server(connection))
    cluster = connection.cluster
    nodes, refused = _read("nodes", cluster.nodes)
    yield from refused or _each("nodes", lambda: resources.check_nodes(nodes))
    yield from _each("links", lambda: operator.check_links(connection, nodes))
    found, refused = _read("resources", lambda: connection.cluster.in_namespace("SplitInference", connection.namespace))
    yield from refused
    views = [read(resource) for resource in found]
    yield from _each("metrics", lambda: operator.check_metrics(views))
    yield from _each("labels", lambda: resources.check_labels(found, nodes) if nodes else iter(()))
    if not refused:
        yield from _each("resources", lambda: resources.check_conditions(views))


def _each(name: str, checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """The checks; or that they could not be made, and why."""
    try:
        yield from checks()
    except (RefusedError, UnavailableError) as error:
        said = from_cluster(error)
        yield Check(name, UNKNOWN, said.message, said.fix)


def _read(name: str, ask: Callable[[], Sequence[Json]]) -> tuple[Sequence[Json], list[Check]]:
    try:
        return ask(), []
    except (RefusedError, UnavailableError) as error:
        said = from_cluster(error)
        return [], [Check(name, UNKNOWN, said.message, said.fix)]


def _show(checks: Sequence[Check]) -> None:
    to, wide = console(), max(len(check.name) for check in checks)
    for check in checks:
        fancy, plain, style = _MARKS[check.state]
        line = Text(fancy if unicode_ok() else plain, style=style)
        line.append(f" {check.name:<{wide}}  ", style="bold")
        line.append(check.message, style="" if check.state != GOOD else "dim")
        put(to, line, wide + 4)
        for fix in check.fix.splitlines():
            to.print(Text(f"    {fix}", style="cyan"), soft_wrap=True)
    counted = {state: sum(check.state == state for check in checks) for state in (BAD, WARN, UNKNOWN)}
    words = ", ".join(f"{number} {state}{'s' if number > 1 and state != UNKNOWN else ''}" for state, number in counted.items() if number)
    to.print(Text(words or "nothing is missing", style="bold"))
