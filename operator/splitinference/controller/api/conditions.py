"""The status as users and tools read it: conditions that kstatus, Argo CD and Flux understand, figures for columns, the last decisions.

What is written is a merge patch of what changed, so at rest nothing is written.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from splitinference.core.transition.state import Route
from splitinference.core.values.value import Value
from splitinference_protocol.report import ObservedTraffic

MOST_DECISIONS = 10
_OBSERVED_EVERY_SECONDS = 15.0
_LONGEST_MESSAGE = 2000


class Kind(StrEnum):
    """Types of conditions. The last two are there only while they hold: so kstatus has it."""

    ACCEPTED = "Accepted"
    PLANNED = "Planned"
    METRICS_AVAILABLE = "MetricsAvailable"
    PROGRESSING = "Progressing"
    READY = "Ready"
    PRIVACY_LABELS_TRUSTED = "PrivacyLabelsTrusted"
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


def observed(before: Mapping[str, Any], traffic: ObservedTraffic | None, revision: str, at: datetime) -> dict[str, Any]:
    """status.observed: renewed every 15 seconds while there are requests; figures of another revision are not kept."""
    kept = dict(before) if before.get("revision") == revision else {}
    if traffic is None or not traffic.requests or 0 <= _age(kept, at) < _OBSERVED_EVERY_SECONDS:
        return kept
    return {
        "revision": revision,
        "time": stamp(at),
        "windowSeconds": traffic.window_seconds,
        "requests": traffic.requests,
        "failed": traffic.failed,
        "replays": traffic.replays,
        "timeToFirstTokenMs": traffic.time_to_first_token_ms.model_dump(exclude_none=True),
        "timePerOutputTokenMs": traffic.time_per_output_token_ms.model_dump(exclude_none=True),
        **traffic.model_dump(by_alias=True, exclude_none=True, include={"tokens_per_second", "kv_reserved"}),
        "stages": {name: times.model_dump(by_alias=True, exclude_none=True) for name, times in sorted(traffic.stages.items())},
    }


def _age(written: Mapping[str, Any], at: datetime) -> float:
    try:
        return (at - datetime.fromisoformat(str(written["time"]))).total_seconds()
    except (KeyError, TypeError, ValueError):
        return float("inf")


def latency(figures: Mapping[str, Any], output_tokens: int) -> str:
    """Observed latency of one request of the workload, in the median; empty while nothing was seen. A single output is the first one."""
    first = (figures.get("timeToFirstTokenMs") or {}).get("p50")
    each = 0.0 if output_tokens == 1 else (figures.get("timePerOutputTokenMs") or {}).get("p50")
    if first is None or each is None:
        return ""
    return duration(first + (output_tokens - 1) * each)


def duration(milliseconds: float) -> str:
    """For a column: 840ms, 1.9s, 75s."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    return f"{milliseconds / 1000:.1f}s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f}s"


def nodes(route: Route | None, where: Mapping[str, str]) -> str:
    """Nodes of the route, stage by stage; pipelines apart by a bar."""
    if route is None:
        return ""
    return " | ".join(",".join(where.get(name, "?") for name in pipeline) for pipeline in route.pipelines)


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
