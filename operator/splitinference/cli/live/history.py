"""`kubectl split history`: the last ten decisions, newest first, with their reasons and what came of them."""

from collections.abc import Iterator

from rich.text import Text

from splitinference.cli.connection import Connection
from splitinference.cli.printing.output import console, emit, put, resource_command
from splitinference.view import ResourceView, read

_HELP = "The last ten decisions, newest first, with their reasons and what came of them."


@resource_command("history", _HELP, watch=True)
def command(connection: Connection, name: str | None, output: str) -> int:
    """Read and print."""
    views = [read(resource) for resource in connection.resources(name)]
    if output in ("json", "yaml"):
        plain = [{"namespace": v.namespace, "name": v.name, "decisions": [d.model_dump(mode="json") for d in v.decisions]} for v in views]
        emit(plain, output)
        return 0
    if emit(views, output):
        return 0
    to = console()
    for number, view in enumerate(views):
        if number:
            to.print()
        for line in lines(view):
            put(to, line)
    return 0


def lines(view: ResourceView) -> Iterator[Text]:
    """One resource's decisions."""
    yield Text(view.title, style="bold")
    if not view.decisions:
        yield Text("  no decision yet")
    for decision in view.decisions:
        line = Text(f"  {decision.time}  ")
        line.append(decision.transition, style="dim" if decision.transition == "keep" else "bold green")
        line.append(f"  {decision.reason}  {decision.revision}".rstrip())
        yield line
        yield Text(f"      {decision.message}", style="dim" if decision.transition == "keep" else "")
        if decision.outcome:
            words = ", ".join(f"{key} {value}" for key, value in decision.outcome.items())
            yield Text(f"      outcome: {words}", style="green" if decision.outcome.get("paid") else "yellow")
