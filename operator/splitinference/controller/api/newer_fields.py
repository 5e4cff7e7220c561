"""Fields of a CRD that is newer than this operator: during an upgrade, after a rollback, or where another release owns the CRD.

The API server fills in defaults of such fields, also in resources whose owner never heard of them. A default asks for what this operator
does anyway, so it is left out. A value that somebody chose is not: it may be a limit that must be kept, so the specification is refused.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from splitinference.controller.api.crd_gaps import models_of
from splitinference.controller.api.group import VERSION
from splitinference.controller.api.spec import Spec

Schema = Mapping[str, Any]


def spec_schema(crd: Mapping[str, Any]) -> Schema:
    """The schema of a specification in this CRD; empty where it does not have our version."""
    versions = (crd.get("spec") or {}).get("versions") or []
    whole: Schema = next((found["schema"]["openAPIV3Schema"] for found in versions if found.get("name") == VERSION), {})
    found: Schema = (whole.get("properties") or {}).get("spec") or {}
    return found


def without_newer_defaults(spec: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    """The specification without fields that this operator does not know and whose value is the default of the CRD's `schema`."""
    return _left(spec, schema, (Spec,))


def has_newer_fields(spec: Mapping[str, Any]) -> bool:
    """Whether it has a field that this operator does not know."""
    return next(_unknown(spec, (Spec,)), None) is not None


def known_part(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The specification without any field that this operator does not know: of a plan that a newer operator made."""
    return _left(spec, None, (Spec,))


@cache
def _known(models: tuple[type[BaseModel], ...]) -> Mapping[str, tuple[type[BaseModel], ...]]:
    """Names of fields as the resource has them, each with the models of its parts."""
    found: dict[str, tuple[type[BaseModel], ...]] = {}
    for model in models:
        for name, field in model.model_fields.items():
            found[field.alias or name] = tuple(models_of(field.annotation))
    return found


def _unknown(value: Mapping[str, Any], models: tuple[type[BaseModel], ...]) -> Iterator[str]:
    known = _known(models)
    for name, inner in value.items():
        if name not in known:
            yield name
        elif known[name]:
            for part in inner if isinstance(inner, list) else [inner]:
                if isinstance(part, Mapping):
                    yield from _unknown(part, known[name])


def _left(value: Mapping[str, Any], schema: Schema | None, models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """`schema` None: nothing that is not known is left."""
    known, parts = _known(models), None if schema is None else schema.get("properties") or {}
    left: dict[str, Any] = {}
    for name, inner in value.items():
        if name not in known:
            part = parts.get(name) if parts is not None else None
            if parts is not None and not (part is not None and "default" in part and inner == _default(part)):
                left[name] = inner
            continue
        below = None if parts is None else parts.get(name) or {}
        if known[name] and isinstance(inner, Mapping):
            left[name] = _left(inner, below, known[name])
        elif known[name] and isinstance(inner, list):
            items = None if below is None else below.get("items") or {}
            left[name] = [_left(part, items, known[name]) if isinstance(part, Mapping) else part for part in inner]
        else:
            left[name] = inner
    return left


def _default(schema: Schema) -> Any:
    """The default as the API server writes it: with the defaults of its own parts."""
    return _filled(schema["default"], schema)


def _filled(value: Any, schema: Schema) -> Any:
    if not isinstance(value, Mapping):
        return value
    filled = dict(value)
    for name, part in (schema.get("properties") or {}).items():
        if name in filled:
            filled[name] = _filled(filled[name], part)
        elif "default" in part:
            filled[name] = _default(part)
    return filled
