"""docs/reference/status.md explains every reason that a condition, a decision or an event can have, and no reason that does not exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from splitinference.controller.api.conditions import Kind
from splitinference.core.decide.base.decision import Kept
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.scaling import Why

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/reference/status.md").read_text("utf-8")
SOURCE = [path for folder in ("controller", "adapters") for path in sorted((ROOT / "operator/splitinference" / folder).rglob("*.py"))]
SOURCE += [ROOT / "operator/splitinference_modelfiles" / name for name in ("stored/digests.py", "sealed.py")]
CARRIERS = {"Condition", "Unreadable", "Samples"}
"""Classes whose `reason` becomes a condition's reason."""
CONSTANTS = {"NAME_TAKEN", "NOT_STARTING", "MISMATCH", "GATEWAY_STUCK", "REASONS"}
SILENT = {Kept.STEADY, Kept.CONFIRMING, Kept.SETTLING}
"""Reasons to keep a plan that are never written."""


def texts(value: ast.expr) -> Iterator[str]:
    """Every word that an expression for a reason may give: of a conditional or an `or`, all of its parts."""
    for node in ast.walk(value):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[A-Z][A-Za-z]+", node.value):
            yield node.value


def reasons_in_code() -> set[str]:
    """Reasons that the operator's source writes: arguments, defaults of fields, constants, variables `reason`, events."""
    found: set[str] = set()
    for path in SOURCE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Name(id=name), keywords=keywords) if name in CARRIERS:
                    found |= {text for keyword in keywords if keyword.arg == "reason" for text in texts(keyword.value)}
                case ast.Call(func=ast.Attribute(attr="event"), args=[_, _, reason, _]):
                    found |= set(texts(reason))
                case ast.ClassDef(name=name, body=body) if name in CARRIERS:
                    fields = [item for item in body if isinstance(item, ast.AnnAssign) and ast.unparse(item.target) == "reason"]
                    found |= {text for item in fields if item.value is not None for text in texts(item.value)}
                case ast.Assign(targets=[ast.Name(id=name)], value=value) if name in CONSTANTS or (
                    name == "reason" and path.name == "report.py"
                ):
                    found |= set(texts(value))
    return found


def explained() -> set[str]:
    """Reasons that the page's tables explain: those in code style in the column `reason`, in rows with an explanation."""
    found: set[str] = set()
    column: int | None = None
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            column = None
        elif column is None:
            column = cells.index("reason") if "reason" in cells else -1
        elif column >= 0 and len(cells) > column + 1 and cells[column + 1].strip("-"):
            found |= set(re.findall(r"`([A-Z][A-Za-z]+)`", cells[column]))
    return found


def test_the_source_is_read_as_it_is_written():
    """One reason of each kind of place that reasons come from."""
    assert {
        "Settled",
        "ModelUnreadable",
        "ProfileDamaged",
        "CredentialsMissing",
        "ServedByAnother",
        "NameTaken",
        "Doubtful",
    } <= reasons_in_code()


def test_every_reason_of_a_condition_or_an_event_is_explained():
    assert reasons_in_code() - explained() == set()


def test_every_reason_of_a_decision_is_explained():
    assert {reason.value for reason in (*Reason, *Kept, *Why) if reason not in SILENT} - explained() == set()


def test_the_page_explains_no_reason_that_does_not_exist():
    assert explained() - reasons_in_code() - {reason.value for reason in (*Reason, *Kept, *Why)} == set()


def test_every_condition_has_a_section():
    assert [kind.value for kind in Kind if not re.search(rf"^### .*`{kind.value}`", PAGE, re.MULTILINE)] == []
