"""What a cluster's CRD lacks of the specification that this operator knows.

Somebody may have applied an older CRD, and the API server drops what it does not know without a word.
"""

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from splitinference.controller.api.group import VERSION
from splitinference.controller.api.spec import Spec


def gaps(crd: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of fields, such as `spec.podTemplate`, that the CRD does not have; of a missing part only the part itself."""
    versions = (crd.get("spec") or {}).get("versions") or []
    schema = next((found["schema"]["openAPIV3Schema"] for found in versions if found.get("name") == VERSION), None)
    if schema is None:
        return (VERSION,)
    return tuple(_missing(Spec, (schema.get("properties") or {}).get("spec") or {}, "spec"))


def gaps_in_words(crd: Mapping[str, Any] | None) -> str:
    """For a condition; empty where the CRD knows all."""
    found = gaps(crd) if crd is not None else ()
    if not found:
        return ""
    return f"the CRD in the cluster is older than the operator and drops {', '.join(found)}: apply crds/splitinference.yaml"


def _missing(model: type[BaseModel], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    if schema.get("x-kubernetes-preserve-unknown-fields") or schema.get("type") not in (None, "object"):
        return
    known = schema.get("properties")
    if known is None:
        return
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias not in known:
            yield f"{path}.{alias}"
            continue
        part = known[alias]
        for inner in models_of(field.annotation):
            yield from _missing(inner, part.get("items") or part, f"{path}.{alias}")


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in a type such as `tuple[Pin, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        return
    for inner in get_args(annotation):
        yield from models_of(inner)
