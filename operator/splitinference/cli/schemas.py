"""The published JSON schemas of the planner and of `bench serve`: `python -m splitinference.cli.schemas docs/reference`."""

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from splitinference.cli.bench.serving.report import Report
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
VERSION = "v1"


def schemas() -> dict[str, dict[str, Any]]:
    """File name → schema."""
    models: dict[str, type[BaseModel]] = {"problem": Problem, "plan": Plan, "snapshot": Snapshot, "profile": Profile}
    models["bench-serve"] = Report
    result = {f"{name}.schema.json": _titled(name, model.model_json_schema()) for name, model in models.items()}
    return {
        **result,
        "outcome.schema.json": _titled("outcome", _outcome()),
        "several.schema.json": _titled("several", _several()),
    }


def _titled(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"$schema": DIALECT, "$id": f"splitinference.dev/{VERSION}/{name}.schema.json", **schema, "title": f"{name} {VERSION}"}


def _outcome() -> dict[str, Any]:
    """What `splitinference plan --json` prints for one problem."""
    number, maybe = {"type": "number"}, {"anyOf": [{"type": "number"}, {"type": "null"}]}
    solved = {
        "outcome": {"const": "solved"}, "value": number, "bound": number, "gap": number, "optimal": {"type": "boolean"},
        "seconds": number, "plan": {"$ref": "#/$defs/Plan"},
    }  # fmt: skip
    late = {
        "outcome": {"const": "timedOut"}, "value": maybe, "bound": maybe,
        "plan": {"anyOf": [{"$ref": "#/$defs/Plan"}, {"type": "null"}]},
    }  # fmt: skip
    return _one_of(solved, late)


def _several() -> dict[str, Any]:
    """What `splitinference plan --json` prints for several problems."""
    number, maybe = {"type": "number"}, {"anyOf": [{"type": "number"}, {"type": "null"}]}
    solved = {
        "outcome": {"const": "solved"}, "value": number,
        "valueIs": {"type": "string", "description": "in words: how `value` and `bound` add the plans' values up"},
        "alone": {
            "anyOf": [{"type": "array", "items": number}, {"type": "null"}],
            "description": "where goals are unlike: the best value that each problem reaches alone; null: `value` is a plain sum",
        },
        "bound": maybe, "gap": maybe, "optimal": {"type": "boolean"}, "seconds": number,
        "plans": {"type": "array", "items": {"$ref": "#/$defs/Plan"}, "minItems": 2},
    }  # fmt: skip
    return _one_of(solved, {"outcome": {"const": "timedOut"}})


def _one_of(solved: dict[str, Any], late: dict[str, Any]) -> dict[str, Any]:
    """A solved, an infeasible or a late outcome, with the plan's definitions."""
    plan = Plan.model_json_schema()
    definitions = plan.pop("$defs")
    plan["properties"] = {"revision": {"type": "string", "description": "names the plan's content"}, **plan["properties"]}
    text = {"type": "string"}
    reason = {
        "type": "object",
        "properties": {"name": text, "message": text, "relaxation": text},
        "required": ["name", "message", "relaxation"],
    }
    infeasible = {"outcome": {"const": "infeasible"}, "reasons": {"type": "array", "items": reason, "minItems": 1}}
    kinds = [
        {"type": "object", "properties": kind, "required": list(kind), "additionalProperties": False} for kind in (solved, infeasible, late)
    ]
    return {"oneOf": kinds, "$defs": {**definitions, "Plan": plan}}


def main(folder: Path) -> None:
    """Write them all."""
    for name, schema in schemas().items():
        (folder / name).write_text(json.dumps(schema, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
