"""Did a move pay? What was promised held against what requests saw, once the new route has had a whole window to itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from splitinference.controller.history.adaptation_state import Promise, Recall
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.core.decide.base.decision import Adopt
from splitinference_protocol.report import ObservedTraffic

_PATIENCE = timedelta(minutes=10)
"""A move that nobody used for so long is not judged any more."""


@dataclass(frozen=True)
class Verdict:
    """What is remembered afterwards; and, once it is known, the outcome for the decision of this revision."""

    recall: Recall
    revision: str = ""
    outcome: Mapping[str, Any] = field(default_factory=dict)


def promised(recall: Recall, decision: Adopt, revision: str, traffic: ObservedTraffic | None) -> Recall:
    """Remember what an optional move promises. Any other change of the plan makes an earlier promise void."""
    if decision.before_ms is None or decision.plan.prediction is None:
        return recall.model_copy(update={"promise": None})
    seen = traffic.time_per_output_token_ms.p50 if traffic is not None and traffic.requests else None
    promise = Promise(
        revision=revision,
        predicted_before_ms=round(decision.before_ms, 3),
        predicted_after_ms=round(decision.plan.prediction.time_per_output_token_ms, 3),
        observed_before_ms=seen,
    )
    return recall.model_copy(update={"promise": promise})


def judge(seen: Seen, settled: bool) -> Verdict:
    """The verdict of this pass; `settled`: the walk is done."""
    recall, promise, now = seen.recall, seen.recall.promise, seen.now
    if promise is None or seen.stored is None or seen.stored.route.revision != promise.revision or not settled:
        return Verdict(recall)
    if promise.settled_at is None:
        return Verdict(recall.model_copy(update={"promise": promise.model_copy(update={"settled_at": now})}))
    traffic = seen.report.observed if seen.report is not None and seen.report.revision == promise.revision else None
    if now - promise.settled_at > _PATIENCE:
        return Verdict(recall.model_copy(update={"promise": None}))
    if traffic is None or not traffic.requests or (now - promise.settled_at).total_seconds() < traffic.window_seconds:
        return Verdict(recall)
    after = traffic.time_per_output_token_ms.p50
    if after is None:
        return Verdict(recall)
    outcome, counted = outcome_of(promise, after)
    paid = outcome.get("paid")
    counts = {"paid": recall.paid + (paid is True), "unpaid": recall.unpaid + (paid is False)} if counted else {}
    return Verdict(recall.model_copy(update={"promise": None, **counts}), promise.revision, outcome)


def outcome_of(promise: Promise, after_ms: float) -> tuple[dict[str, Any], bool]:
    """What came of the move, and whether it counts: only one that promised quicker tokens and whose before and after were seen."""
    outcome: dict[str, Any] = {
        "predictedBeforeMs": promise.predicted_before_ms,
        "predictedAfterMs": promise.predicted_after_ms,
        "predictedGainPercent": _gain_percent(promise.predicted_before_ms, promise.predicted_after_ms),
        "observedAfterMs": after_ms,
    }
    before_ms = promise.observed_before_ms
    if before_ms is None:
        return outcome, False
    outcome |= {"observedBeforeMs": before_ms, "observedGainPercent": _gain_percent(before_ms, after_ms)}
    if promise.predicted_after_ms >= promise.predicted_before_ms:
        return outcome, False
    return outcome | {"paid": after_ms < before_ms}, True


def _gain_percent(before_ms: float, after_ms: float) -> float:
    """Share of the time that is gained, in per cent; negative where it got longer."""
    return round(100 * (before_ms - after_ms) / before_ms, 1) if before_ms > 0 else 0.0
