"""Renders a model's chat template the way `transformers` does, so that prompts equal those of the unsplit model.

A template is a program that comes with the model's files. The sandbox keeps it from the process, `most_characters` bounds what it writes;
its time and memory are bounded by the process that it runs in, which ends with it (see `prompt_worker`).
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class TemplateError(ValueError):
    """The template refuses these messages, or is broken; the message is the template's own where it has one."""


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is only rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> str:
        return str(caller())


class ChatTemplate:
    """One compiled template. Special tokens (`bos_token`, …) are variables in it."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)  # noqa: DTZ005 - as transformers: local time
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the model's chat template cannot be compiled: {error}") from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        most_characters: int = 1 << 24,
        options: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, object]] = (),
    ) -> str:
        """The prompt that makes the assistant answer. `options` are further variables of the template; they replace none of ours but
        `add_generation_prompt`.

        Raises:
            TemplateError: the template does not take these messages, or writes more than `most_characters`.
        """
        pieces, length = [], 0
        try:
            given = {"add_generation_prompt": True, **(options or {})}
            given |= {
                "messages": [dict(m) for m in messages],
                "tools": [dict(tool) for tool in tools] or None,
                "documents": None,
                **self._special_tokens,
            }
            for piece in self._template.generate(given):
                pieces.append(piece)
                length += len(piece)
                if length > most_characters:
                    raise TemplateError(f"it writes more than {most_characters} characters, which the context cannot hold")
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
            raise TemplateError(str(error) or type(error).__name__) from error
        return "".join(pieces)


def _tojson(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
