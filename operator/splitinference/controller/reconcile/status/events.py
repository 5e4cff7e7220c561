"""Which events a pass makes: what is new in its status since the one before."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from splitinference.controller.api.conditions import (
    Kind,
    is_new,
)
from splitinference.controller.reconcile.status.report import GATEWAY_STUCK, NAME_TAKEN, NOT_STARTING, Report
from splitinference.controller.reconcile.status.start_problems import NO_START
from splitinference.core.decide.base.decision import Keep

Event = tuple[Literal["Normal", "Warning"], str, str]


def events(report: Report, before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Iterator[Event]:
    """What is worth an event, once: new decisions, and conditions that came to be bad or became good again."""
    if (new := report.new_decision) is not None and is_new(report.seen.status.get("decisions") or [], new):
        bad = isinstance(report.decision, Keep) and report.decision.trigger is not None and report.decision.trigger.mandatory
        yield ("Warning" if bad else "Normal", new.reason, new.message)
    known = {str(c.get("type")): c for c in before}
    for condition in after:
        old = known.get(condition["type"], {})
        changed = (old.get("status"), old.get("reason")) != (condition["status"], condition["reason"])
        if (
            condition["type"] in (Kind.ACCEPTED, Kind.METRICS_AVAILABLE, Kind.PRIVACY_LABELS_TRUSTED, Kind.FILTERED, Kind.ADAPTERS_READY)
            and condition["status"] == "False"
            and changed
        ):
            yield ("Warning", condition["reason"], condition["message"])
        if condition["reason"] == NOT_STARTING:
            changed = bool(_causes(condition) - _causes(old))
        warned = ("Blocked", "Refused", NAME_TAKEN, NOT_STARTING, GATEWAY_STUCK)
        if condition["type"] == Kind.PROGRESSING and condition["reason"] in warned and changed:
            yield ("Warning", condition["reason"], condition["message"])
        if condition["type"] == Kind.READY and condition["status"] == "True" and changed:
            yield ("Normal", condition["reason"], condition["message"])


def _causes(condition: Mapping[str, Any]) -> frozenset[str]:
    """Which segments do not start on which nodes: another one is worth another event, another word for the same is not."""
    if condition.get("reason") != NOT_STARTING:
        return frozenset()
    return frozenset(
        part.partition(" since ")[0].partition(": ")[0] for part in str(condition.get("message", "")).split("; ") if NO_START in part
    )
