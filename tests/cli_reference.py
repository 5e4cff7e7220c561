"""docs/reference/cli.md from the commands' own help: `python -m tests.cli_reference` writes it."""

import argparse
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from splitinference.cli.lazy import ArgparseCommand
from splitinference.cli.main import VERBS, cli

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "cli.md"

_HEAD = """# The command line

`kubectl split VERB` and `splitinference VERB` are the same program. [How to use it](../how-to/kubectl-split.md) shows each verb at work.
`python -m tests.cli_reference` writes this page from the commands' own help.

Exit status: 0 done, 1 not possible or something is wrong, 2 wrong arguments, 130 interrupted.
`plan` has more: 3 no plan exists, 4 none was found in time.
With `SPLITINFERENCE_DEBUG=1` a fault of the program itself is shown whole.

"""


def rendered() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = "100"
    top = click.Context(cli, info_name="kubectl split", help_option_names=["-h", "--help"], max_content_width=100, terminal_width=100)
    parts = [_HEAD, "## Verbs\n\n| verb | what it does |\n|---|---|\n"]
    parts += [f"| [`{name}`](#{name}) | {verb.help} |\n" for name, verb in VERBS.items()]
    for name, verb in VERBS.items():
        command = verb.load(name)
        parts.append(f"\n## {name}\n\n")
        if isinstance(command, ArgparseCommand):
            parts += [f"```text\n{text}```\n" for text in _argparse(command.parser("kubectl split"), name)]
        else:
            context = click.Context(command, info_name=name, parent=top, max_content_width=100, terminal_width=100)
            parts.append(f"```text\n{command.get_help(context).rstrip()}\n```\n")
    return "".join(parts)


def _argparse(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """The help of a verb, and of its parts."""
    for action in parser._actions:  # argparse has no public way to them
        if isinstance(action, argparse._SubParsersAction):
            for part, inner in action.choices.items():
                if not name or part == name:
                    yield _plain(inner)
                    yield from _argparse(inner, "")


def _plain(parser: argparse.ArgumentParser) -> str:
    """Its arguments. argparse's own layout differs from one Python to the next."""
    said = [f"Usage: {parser.prog} [ARGUMENTS]\n"]
    words = " ".join((parser.description or "").split())
    said.append(f"\n{textwrap.fill(words, 98, initial_indent='  ', subsequent_indent='  ')}\n\n")
    for action in parser._actions:
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        value = "" if not action.option_strings or action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
        words = str(action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
        wrapped = textwrap.wrap(words, 66, break_on_hyphens=False) or [""]
        head = f"  {names}{value}"
        lines = [f"{head:<32}{wrapped[0]}"] if len(head) < 31 else [head, f"{'':<32}{wrapped[0]}"]
        said += [f"{line.rstrip()}\n" for line in [*lines, *(f"{'':<32}{more}" for more in wrapped[1:])] if line.strip()]
    return "".join(said)


if __name__ == "__main__":
    PAGE.write_text(rendered())
