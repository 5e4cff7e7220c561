"""`splitinference completion SHELL`, and `kubectl_complete-split`, which kubectl asks for completions of its plugin."""

import os
import sys
from collections.abc import Sequence

import click

_HOW = {
    "bash": 'eval "$(splitinference completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(splitinference completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "splitinference completion fish > ~/.config/fish/completions/splitinference.fish",
}


@click.command(
    "completion",
    help="Print the script that makes a shell complete verbs, options, resources and nodes. "
    "kubectl completes `kubectl split` by itself where kubectl_complete-split is on the PATH.\n\n\b\n" + "\n".join(_HOW.values()),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> int:
    """Print it."""
    from click.shell_completion import get_completion_class

    from splitinference.cli.main import COMPLETE, cli

    made = get_completion_class(shell)
    assert made is not None  # noqa: S101 - click has these three
    click.echo("\n".join(_source(made, cli, program, COMPLETE) for program in ("splitinference", "kubectl-split")))
    return 0


def _source(made: type, cli: click.Command, program: str, variable: str) -> str:
    """The script for one program. Its version of the shell is not asked: that would start the shell."""
    completion = made(cli, {}, program, variable)
    return str(completion.source_template % completion.source_vars())


def kubectl_main(arguments: Sequence[str] | None = None) -> int:
    """Print completions for the words after `kubectl split`, one a line, and kubectl's directive: 4, no files."""
    from click.shell_completion import ShellComplete

    from splitinference.cli.main import COMPLETE, cli

    words = list(sys.argv[1:] if arguments is None else arguments)
    *before, incomplete = words or [""]
    os.environ.setdefault("COLUMNS", "200")
    for item in ShellComplete(cli, {}, "kubectl split", COMPLETE).get_completions(before, incomplete):
        if item.type == "plain":
            help_text = " ".join((item.help or "").split())
            click.echo(f"{item.value}\t{help_text}" if help_text else str(item.value))
    click.echo(":4")
    return 0
