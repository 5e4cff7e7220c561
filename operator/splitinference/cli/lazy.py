"""A click group whose commands are loaded when they are used, and commands that still take their arguments by argparse."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click
from click.shell_completion import CompletionItem


@dataclass(frozen=True)
class Verb:
    """A verb: its line of help, and its `module` in splitinference.cli, with a colon and the command's name where that is not `command`."""

    help: str
    module: str
    argparse: bool = False

    def load(self, name: str) -> click.Command:
        """Import the module and give the command."""
        module, _, attribute = self.module.partition(":")
        found = import_module(f"splitinference.cli.{module}")
        if self.argparse:
            return ArgparseCommand(name, self.help, found.register)
        command: click.Command = getattr(found, attribute or "command")
        return command


class LazyGroup(click.Group):
    """Lists its commands without loading them."""

    def __init__(self, *, verbs: Mapping[str, Verb], **more: Any) -> None:
        """`verbs` by name, in the order in which the help lists them."""
        super().__init__(**more)
        self.verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs."""
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb's command; None where there is no such verb."""
        return self.verbs[cmd_name].load(cmd_name) if cmd_name in self.verbs else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; an unknown verb is answered with near ones."""
        name = args[0]
        if name not in self.verbs and not name.startswith("-") and not ctx.resilient_parsing:
            near = get_close_matches(name, self.verbs, 3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"There is no verb {name!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs with their lines of help, of which none is cut short."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in self.verbs.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Verbs and options that begin so."""
        found = [CompletionItem(name, help=verb.help) for name, verb in self.verbs.items() if name.startswith(incomplete)]
        return found + [item for item in click.Command.shell_complete(self, ctx, incomplete) if item.value not in self.verbs]


class ArgparseCommand(click.Command):
    """A command whose arguments argparse reads. Click hands them over as they are, and takes completions out of the parser."""

    def __init__(self, name: str, summary: str, register: Any) -> None:
        """`register` adds the command to argparse's subparsers; the parsed arguments carry its function as `run`."""
        super().__init__(name, help=summary, add_help_option=False, context_settings={"ignore_unknown_options": True})
        self._register = register
        words = click.Argument(
            ["arguments"], nargs=-1, type=click.UNPROCESSED, shell_complete=lambda ctx, _, incomplete: self.shell_complete(ctx, incomplete)
        )
        self.params = [words]

    def parser(self, program: str) -> argparse.ArgumentParser:
        """The command line with this verb alone."""
        result = argparse.ArgumentParser(prog=program)
        self._register(result.add_subparsers(dest="verb", required=True, metavar="VERB"))
        return result

    def invoke(self, ctx: click.Context) -> int:
        """Parse by argparse and run; the exit status."""
        parent = ctx.parent.command_path if ctx.parent is not None else "splitinference"
        args = self.parser(parent).parse_args([str(self.name), *ctx.params["arguments"]])
        return int(args.run(args))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Options and parts that argparse knows after the words so far; files where it wants a value."""
        parser = _choices(self.parser("splitinference")).get(str(self.name))
        before = [str(word) for word in ctx.params.get("arguments") or ()]
        for word in before:
            parser = _choices(parser).get(word, parser) if parser is not None else None
        if parser is None:
            return []
        if incomplete.startswith("-"):
            return [CompletionItem(option, help=words) for option, words in _options(parser) if option.startswith(incomplete)]
        parts = [CompletionItem(part) for part in _choices(parser) if part.startswith(incomplete)]
        return parts or [CompletionItem(incomplete, type="file")]


def _choices(parser: argparse.ArgumentParser | None) -> dict[str, argparse.ArgumentParser]:
    """The parsers below this one, by name."""
    for action in parser._actions if parser is not None else ():
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        for option in action.option_strings:
            yield option, str(action.help or "")
