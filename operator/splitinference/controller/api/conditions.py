"""The status as users and tools read it: conditions that kstatus, Argo CD and Flux understand, figures for columns, the last decisions.

What is written is a merge patch of what changed, so at rest nothing is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from splitinference.core.values.value import Value

MOST_DECISIONS = 10
_LONGEST_MESSAGE = 2000


class Kind(StrEnum):
    """Types of conditions. The last two are there only while they hold: so kstatus has it. The five before only where a spec asks."""

    ACCEPTED = "Accepted"
    PLANNED = "Planned"
    METRICS_AVAILABLE = "MetricsAvailable"
    PROGRESSING = "Progressing"
    READY = "Ready"
    PRIVACY_LABELS_TRUSTED = "PrivacyLabelsTrusted"
    VERIFIED = "Verified"
    SCALED = "Scaled"
    SCALING_ACTIVE = "ScalingActive"
    FILTERED = "Filtered"
    ADAPTERS_READY = "AdaptersReady"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Condition(Value):
    """One condition. `holds` None: it is not known."""

    kind: Kind
    holds: bool | None
    reason: str
    message: str = ""


class Decision(Value):
    """One decision, for status.decisions."""

    time: datetime
    reason: str
    message: str
    transition: str
    revision: str = ""


def stamp(moment: datetime) -> str:
    """As Kubernetes writes times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def conditions(before: Sequence[Mapping[str, Any]], now: Iterable[Condition], generation: int, at: datetime) -> list[dict[str, Any]]:
    """The conditions as JSON. The time of transition changes only with the status."""
    known = {str(condition.get("type")): condition for condition in before}
    written = []
    for condition in now:
        text = {True: "True", False: "False", None: "Unknown"}[condition.holds]
        old = known.get(condition.kind.value, {})
        since = old.get("lastTransitionTime") if old.get("status") == text else None
        written.append(
            {
                "type": condition.kind.value,
                "status": text,
                "reason": condition.reason,
                "message": condition.message[:_LONGEST_MESSAGE],
                "lastTransitionTime": since or stamp(at),
                "observedGeneration": generation,
            }
        )
    return written


def decisions(before: Sequence[Mapping[str, Any]], new: Decision | None) -> list[dict[str, Any]]:
    """The last ten, newest first. Staying again for the same reason is no new decision."""
    kept = [dict(entry) for entry in before]
    if new is not None and not _repeats(kept, new):
        entry = {"time": stamp(new.time), "reason": new.reason, "message": new.message[:_LONGEST_MESSAGE], "transition": new.transition}
        kept.insert(0, entry | ({"revision": new.revision} if new.revision else {}))
    return kept[:MOST_DECISIONS]


def judged(before: Sequence[Mapping[str, Any]], revision: str, outcome: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The decisions, where the newest one that led to this revision says what came of it."""
    found = next(
        (index for index, entry in enumerate(before) if entry.get("revision") == revision and entry.get("transition") != "keep"), None
    )
    return [{**entry, "outcome": dict(outcome)} if index == found else dict(entry) for index, entry in enumerate(before)]


def is_new(before: Sequence[Mapping[str, Any]], new: Decision) -> bool:
    """Whether this decision would be added."""
    return not _repeats(before, new)


def _repeats(before: Sequence[Mapping[str, Any]], new: Decision) -> bool:
    if new.transition != "keep" or not before:
        return False
    newest = before[0]
    return newest.get("transition") == "keep" and newest.get("reason") == new.reason


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) from one to the other; empty where nothing changed."""
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch
