"""Fields by which clients ask for structured output: OpenAI's `response_format`, and what vLLM and llama.cpp take."""

from collections.abc import Callable, Mapping
from typing import Any

from splitinference_gateway.errors import ApiError, invalid, unsupported
from splitinference_gateway.tokens.guides import Grammar

_NOTHING: tuple[object, ...] = (None, "", [], {})
_ANY_OBJECT: Mapping[str, Any] = {"type": "object"}


def structured(content: Mapping[str, Any]) -> Grammar | None:
    """What the answer must follow; None where the request asks for nothing of the kind.

    Raises:
        ApiError: 400, for a value that cannot be followed, and for two at once.
    """
    found: dict[str, Grammar] = {}
    for name, read in _READ.items():
        given = content.get(name)
        if given not in _NOTHING and (grammar := read(given, name)) is not None:
            found[name] = grammar
    if len(found) > 1:
        first, second = list(found)[:2]
        raise invalid(f"'{first}' and '{second}' exclude each other: an answer follows one of them.", second, "invalid_value")
    return next(iter(found.values()), None)


def _response_format(given: Any, name: str) -> Grammar | None:
    if not isinstance(given, dict):
        raise invalid(f"Invalid type for '{name}': expected an object, but got {type(given).__name__} instead.", name, "invalid_type")
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar.of_schema(dict(_ANY_OBJECT), name)
        case "json_schema":
            inner = given.get("json_schema")
            if not isinstance(inner, dict) or inner.get("schema") is None:
                path = f"{name}.json_schema.schema"
                raise invalid(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
            return Grammar.of_schema(inner["schema"], name)
        case _:
            raise _unknown_type(name)


def _unknown_type(name: str) -> ApiError:
    return invalid(f"Invalid value for '{name}.type': expected 'text', 'json_object' or 'json_schema'.", f"{name}.type", "invalid_value")


def _structured_outputs(given: Any, name: str) -> Grammar | None:
    """vLLM's form: one of `json`, `regex`, `choice`, `grammar`, `json_object`, and how to write white space, which has no effect here."""
    if not isinstance(given, dict):
        raise invalid(f"Invalid type for '{name}': expected an object, but got {type(given).__name__} instead.", name, "invalid_type")
    if given.get("structural_tag") not in _NOTHING:
        raise unsupported(f"{name}.structural_tag")
    found = {kind: value for kind, value in given.items() if kind in _KINDS and value not in _NOTHING and value is not False}
    if len(found) > 1:
        raise invalid(f"Only one of {', '.join(found)} may be in '{name}'.", name, "invalid_value")
    return next((_KINDS[kind](value, f"{name}.{kind}") for kind, value in found.items()), None)


_KINDS: Mapping[str, Callable[[Any, str], Grammar | None]] = {
    "json": Grammar.of_schema,
    "regex": Grammar.of_regex,
    "choice": Grammar.of_choice,
    "grammar": Grammar.of_grammar,
    "json_object": lambda given, name: Grammar.of_schema(dict(_ANY_OBJECT), name),
}
_READ: Mapping[str, Callable[[Any, str], Grammar | None]] = {
    "response_format": _response_format,
    "structured_outputs": _structured_outputs,
    "guided_json": Grammar.of_schema,
    "guided_regex": Grammar.of_regex,
    "guided_choice": Grammar.of_choice,
    "guided_grammar": Grammar.of_grammar,
    "json_schema": Grammar.of_schema,
    "grammar": Grammar.of_grammar,
}
STRUCTURED = frozenset(_READ)
