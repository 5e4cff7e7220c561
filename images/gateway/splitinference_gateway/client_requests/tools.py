"""Calls of tools in an answer's text: which form a model writes, how it is read as it comes, and the grammar of a call that must come."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from splitinference_gateway.tokens.guides import Grammar
from splitinference_gateway.tokens.text import overlap


class Call(NamedTuple):
    """One call; `arguments` is JSON."""

    name: str
    arguments: str

    def as_json(self) -> dict[str, object]:
        """OpenAI's object, with an id of its own."""
        return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class Form:
    """How a family writes calls: between `begin` and `end`, as a JSON object with a name and `arguments`.

    Without `begin` the whole answer is calls or none. `as_list`: the objects stand in one list.
    """

    name: str
    begin: str = ""
    end: str = ""
    arguments: str = "arguments"
    as_list: bool = False
    also_begins: str = ""


FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form("hermes", "<tool_call>", "</tool_call>"),
        Form("mistral", "[TOOL_CALLS]", as_list=True),
        Form("llama", arguments="parameters", also_begins="<|python_tag|>"),
    )
}


def form_of(template: str | None) -> Form | None:
    """The form that a chat template teaches its model; None where the template knows no tools, or another form."""
    if template is None or "tools" not in template:
        return None
    if "<tool_call>" in template:
        return FORMS["hermes"]
    if "[TOOL_CALLS]" in template:
        return FORMS["mistral"]
    if '"parameters"' in template and ("<|python_tag|>" in template or "ipython" in template):
        return FORMS["llama"]
    return None


@dataclass
class ToolText:
    """Reads one answer as it comes: text that is no call, and calls once they are whole. What looks like a call and is none stays text."""

    form: Form
    calls: int = 0
    _held: str = ""
    _inside: bool = False
    _begun: bool = field(default=False, repr=False)

    def add(self, piece: str) -> tuple[str, list[Call]]:
        """What this piece completes: text, calls."""
        self._held += piece
        text, calls = self._take_bare() if not self.form.begin else self._take_marked()
        self.calls += len(calls)
        return text, calls

    def flush(self) -> tuple[str, list[Call]]:
        """What is left at the end."""
        held, self._held = self._held, ""
        calls = self._read(held) if self._inside or not self.form.begin else None
        self.calls += len(calls or ())
        if calls is not None:
            return "", calls
        return (self.form.begin if self._inside else "") + held, []

    def _take_marked(self) -> tuple[str, list[Call]]:
        """White space before a call and after one is left out, so an end of the text that is white waits for what follows."""
        text = ""
        calls: list[Call] = []
        while True:
            if not self._inside:
                if self.calls or calls:
                    self._held = self._held.lstrip()
                at = self._held.find(self.form.begin)
                if at < 0:
                    ready = self._held[: len(self._held) - overlap(self._held, self.form.begin)].rstrip()
                    self._held = self._held[len(ready) :]
                    return text + ready, calls
                text, self._held, self._inside = text + self._held[:at].rstrip(), self._held[at + len(self.form.begin) :], True
            at = self._held.find(self.form.end) if self.form.end else -1
            if at < 0:
                return text, calls
            inner, self._held, self._inside = self._held[:at], self._held[at + len(self.form.end) :], False
            read = self._read(inner)
            if read is None:
                text += self.form.begin + inner + self.form.end
            else:
                calls += read

    def _take_bare(self) -> tuple[str, list[Call]]:
        """Whole answers only: a text that does not begin like a call is given out at once."""
        start = self._held.lstrip()
        if (
            not self._begun
            and start
            and not start.startswith("{")
            and not self.form.also_begins.startswith(start[: len(self.form.also_begins)])
        ):
            self._begun = True
        if not self._begun:
            return "", []
        text, self._held = self._held, ""
        return text, []

    def _read(self, inner: str) -> list[Call] | None:
        """The calls, None for what is none."""
        rest, calls = inner.strip(), []
        if self.form.also_begins and rest.startswith(self.form.also_begins):
            rest = rest[len(self.form.also_begins) :].lstrip()
        if self.form.as_list and rest and rest[0] not in "[{":
            return self._named(rest)
        decoder = json.JSONDecoder()
        while rest:
            try:
                value, end = decoder.raw_decode(rest)
            except (ValueError, RecursionError):
                return None
            for entry in value if isinstance(value, list) else [value]:
                if (call := self._call(entry)) is None:
                    return None
                calls.append(call)
            rest = rest[end:].lstrip(" \n\t;,")
        return calls or None

    def _named(self, rest: str) -> list[Call] | None:
        """Mistral's newer form: name[ARGS]{…}, one after the other."""
        calls, decoder = [], json.JSONDecoder()
        while rest:
            name, _, tail = rest.removeprefix(self.form.begin).partition("{")
            try:
                value, end = decoder.raw_decode("{" + tail)
            except (ValueError, RecursionError):
                return None
            calls.append(Call(name.replace("[ARGS]", "").strip(), json.dumps(value, ensure_ascii=False)))
            rest = tail[end - 1 :].strip()
        return calls or None

    def _call(self, entry: Any) -> Call | None:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return None
        given = entry.get(self.form.arguments, entry.get("arguments", {}))
        if isinstance(given, str):
            return Call(entry["name"], given)
        return Call(entry["name"], json.dumps(given, ensure_ascii=False)) if isinstance(given, dict) else None


def must_call(form: Form, tools: Sequence[Mapping[str, Any]], specials: Mapping[str, int], *, several: bool) -> Grammar:
    """The grammar of an answer that is a call of one of these functions, or several. `specials`: tokens that no text shows, by name.

    ApiError 400 for parameters that are no JSON schema.
    """
    schemas = [
        {
            "type": "object",
            "properties": {"name": {"const": tool["name"]}, form.arguments: tool.get("parameters") or {"type": "object"}},
            "required": ["name", form.arguments],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    call = f"%json {json.dumps({'anyOf': schemas} if len(schemas) > 1 else schemas[0])}"

    def said(marker: str) -> str:
        return f"<[{specials[marker]}]>" if marker in specials else json.dumps(marker)

    if form.as_list:
        more = ' (", " call)*' if several else ""
        line = f'{said(form.begin)} "[" call{more} "]"'
    elif form.begin:
        one = f'{said(form.begin)} "\\n" call "\\n" {said(form.end)}'
        line = f'{one} ("\\n" {one})*' if several else one
    else:
        line = "call"
    return Grammar.of_lark(f"start: {line}\ncall: {call}", "tools")
