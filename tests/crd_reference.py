"""docs/reference/crd.md from the CRD itself: `python -m tests.crd_reference` writes it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CRD = ROOT / "crds" / "splitinference.yaml"
PAGE = ROOT / "docs" / "reference" / "crd.md"

_HEAD = """# The SplitInference resource

Every field of the specification: type, default, limits and meaning.
The API server enforces the limits and the rules when you apply a resource.
`python -m tests.crd_reference` writes this page from `crds/splitinference.yaml`.
The [status](status.md) has a page of its own.

| field | type | default | meaning |
|---|---|---|---|
"""

_LIMITS = {
    "minimum": "at least {}",
    "maximum": "at most {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} entries",
}


def rendered() -> str:
    """The whole page."""
    version = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]
    resource = version["schema"]["openAPIV3Schema"]
    spec = resource["properties"]["spec"]
    lines = [_HEAD]
    lines += [f"| `{path}` | {kind} | {default} | {meaning} |\n" for path, kind, default, meaning in _rows("spec", spec)]
    lines.append("\n## Rules\n\nThe API server refuses a resource that breaks one of these rules, with the words below.\n\n")
    lines += [f"- {message}\n" for message in _rules(resource)]
    return "".join(lines)


def _rows(path: str, schema: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    required = set(schema.get("required", ()))
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        default = "required" if name in required else _default(field)
        yield here, _kind(field), default, _cell(_meaning(field))
        inner = field.get("items", field) if field.get("type") == "array" else field
        yield from _rows(f"{here}[]" if field.get("type") == "array" else here, inner)


def _kind(field: dict[str, Any]) -> str:
    if field.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map of {_kind(field['additionalProperties'])}"
    return str(field.get("type", "any"))


def _default(field: dict[str, Any]) -> str:
    if "default" not in field or isinstance(field["default"], dict | list):
        return ""
    value = field["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _meaning(field: dict[str, Any]) -> str:
    words = [str(field.get("description", "")).strip()]
    if "enum" in field:
        words.append("One of " + ", ".join(f"`{value}`" for value in field["enum"]) + ".")
    limits = ["not empty"] if field.get("minLength") == 1 else []
    limits += [words_of.format(field[key]) for key, words_of in _LIMITS.items() if key in field and (key, field[key]) != ("minLength", 1)]
    if limits:
        words.append(f"Limits: {', '.join(limits)}.")
    return " ".join(word for word in words if word)


def _rules(schema: dict[str, Any]) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        if "message" in rule:
            yield " ".join(str(rule["message"]).split())
    for name, field in schema.get("properties", {}).items():
        if name != "status":
            yield from _rules(field)
    if isinstance(schema.get("items"), dict):
        yield from _rules(schema["items"])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(rendered())
