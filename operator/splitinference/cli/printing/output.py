"""How commands print: for people with rich, for programs as JSON, YAML or names; once, or again and again with --watch."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from io import StringIO
from typing import Any, TypeVar

import click

from splitinference.cli.connection import Connection, complete_names, connection_of, connection_options
from splitinference.cli.errors import SplitError

Command = TypeVar("Command", bound=Callable[..., Any])
_EVERY_SECONDS = 2.0
_PIPE_WIDTH = 200
FORMATS = ("wide", "json", "yaml", "name")


def resource_command(verb: str, help_text: str, *, watch: bool = False, formats: Sequence[str] = FORMATS) -> Callable[[Any], click.Command]:
    """A command about one resource, or all of the namespace. The function takes (connection, name, output) and gives the exit status."""

    def make(function: Callable[[Connection, str | None, str], int]) -> click.Command:
        def run(**options: Any) -> int:
            again = options.pop("watch", False)
            name, output = options.pop("name"), options.pop("output") or ""
            connection = connection_of(options)
            return watched(lambda: function(connection, name, output), output) if again else function(connection, name, output)

        command = click.argument("name", required=False, shell_complete=complete_names)(connection_options(run))
        command = click.option("-o", "--output", type=click.Choice(list(formats)), help="Another form of output.")(command)
        command = click.option("-A", "--all-namespaces", is_flag=True, help="All namespaces.")(command)
        if watch:
            command = click.option("-w", "--watch", is_flag=True, help="Again and again, until interrupted.")(command)
        return click.command(verb, help=help_text)(command)

    return make


def emit(found: Iterable[Any], output: str) -> bool:
    """Print values for a program if `output` asks for it: JSON or YAML objects in `items`, or names. Whether it did."""
    from splitinference.view import ResourceView

    values = list(found)
    if output == "name":
        for value in values:
            name = value.name if isinstance(value, ResourceView) else value["name"]
            click.echo(f"splitinference.splitinference.dev/{name}")
    elif output in ("json", "yaml"):
        plain = [value if isinstance(value, dict) else value.model_dump(mode="json") for value in values]
        click.echo(as_text({"items": plain}, output))
    else:
        return False
    return True


def as_text(value: Any, output: str) -> str:
    """A value as JSON or YAML."""
    if output == "json":
        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()


def console(to: Any = None) -> Any:
    """For people: as wide as the terminal, or 200 columns where there is none, so that no column is cut short for a program."""
    from rich.console import Console

    out = sys.stdout if to is None else to
    return Console(file=out, width=None if out.isatty() else _PIPE_WIDTH, highlight=False, markup=False, emoji=False)


def put(to: Any, line: Any, indent: int | None = None) -> None:
    """Print a line of text. In a terminal what does not fit goes on below, a little to the right; for programs a line stays one."""
    indent = len(line.plain) - len(line.plain.lstrip()) + 4 if indent is None else indent
    if not to.is_terminal or len(line.plain) <= to.width or to.width < 2 * indent:
        to.print(line, soft_wrap=True)
        return
    from rich.text import Text

    first, *rest = line.wrap(to, to.width - indent)
    to.print(first, soft_wrap=True)
    for further in rest:
        to.print(Text(" " * indent) + further, soft_wrap=True)


def unicode_ok() -> bool:
    """Whether the output takes box characters."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    try:
        "●│─█·→◐✗○╰".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def watched(once: Callable[[], int], output: str) -> int:
    """Run until interrupted. In a terminal the screen is written over; elsewhere each new text is printed. Errors are printed, and the next
    round tries again."""
    before = ""
    while True:
        text = _captured(once)
        if sys.stdout.isatty() and output in ("", "wide"):
            click.echo(f"\x1b[H\x1b[J{text}", nl=False)
        elif text != before:
            click.echo(text, nl=False)
        before = text
        sys.stdout.flush()
        time.sleep(_EVERY_SECONDS)


def _captured(once: Callable[[], int]) -> str:
    """What `once` prints, with the terminal's width and colors."""

    class Captured(StringIO):
        """Claims to be what stdout is."""

        encoding = getattr(sys.stdout, "encoding", "utf-8")

        def isatty(self) -> bool:
            """As stdout."""
            return real.isatty()

    real, kept = sys.stdout, Captured()
    sys.stdout = kept
    try:
        once()
    except SplitError as error:
        kept.write(f"{time.strftime('%H:%M:%S')} {error.format_message()}\n")
    finally:
        sys.stdout = real
    return kept.getvalue()
