"""Plans that are proposed in mode Advisory: how the status offers one, and how a person answers by an annotation.

An answer names one offer by its ID, which no later offer has. So an annotation that stays approves nothing twice, also not the same plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.controller.api.sections.adaptation_spec import Mode as SpecMode
from splitinference.controller.plan_io.plan_status import Built, Planned, read_plan, write_plan
from splitinference.controller.ports import Manifest
from splitinference.controller.reconcile.planning.desired import Asked
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.values.plan import Plan

APPROVE = "splitinference.dev/approve"
REJECT = "splitinference.dev/reject"
_STILL_OFFERED = (Kept.CONFIRMING, Kept.SETTLING, Kept.UNKNOWN_METRICS, Kept.OVERTAKEN)
"""Decisions that say nothing of whether the offered plan is still worth it."""


@dataclass(frozen=True)
class Offer:
    """What status.proposal has, if it is still of use: the plan as it was read, and what a person said of it."""

    written: Mapping[str, Any]
    plan: Plan
    approved: bool
    rejected: bool


def read_offer(body: Manifest, asked: Asked, serving: Built | None) -> Offer | None:
    """The offer in the status with its answer. None where there is none, or where it was made beside another plan, spec or mode."""
    written = (body.get("status") or {}).get("proposal") or {}
    if serving is None or asked.resource.spec.adaptation.mode is not SpecMode.ADVISORY:
        return None
    if written.get("from") != serving.target.route.revision or written.get("asked") != asked.digest:
        return None
    planned = read_plan({"plan": {**written, "madeFor": {}}}, lambda _: asked.resource)
    if planned is None:
        return None
    annotations, name = body["metadata"].get("annotations") or {}, str(written.get("id", ""))
    rejected = bool(name) and annotations.get(REJECT) == name
    return Offer(written, planned.plan, approved=bool(name) and annotations.get(APPROVE) == name and not rejected, rejected=rejected)


def with_rejection(seen: Seen, offer: Offer | None) -> Seen:
    """With the memory that the offered plan was rejected."""
    if offer is None or not offer.rejected:
        return seen
    return replace(seen, recall=seen.recall.rejecting(offer.plan.revision, seen.now))


def said_of(offer: Offer | None, decision: Adopt | Keep | None) -> Adopt | Keep | None:
    """The decision; where nothing else is decided in the pass in which a plan was rejected, that it was."""
    if offer is None or not offer.rejected or not (decision is None or (isinstance(decision, Keep) and decision.trigger is None)):
        return decision
    segments = " ".join(f"{s.node}[{s.start}:{s.end}]" for s in offer.plan.segments)
    return Keep(reason=Kept.REJECTED, message=f"{segments} was rejected, so it is not proposed again for 24 h")


def offer_after(
    offer: Offer | None, decision: Adopt | Keep | None, made: tuple[Planned, Built] | None, seen: Seen, serving: Built | None
) -> Mapping[str, Any]:
    """status.proposal after the pass; empty: none. `made`: the plan that the decision proposes, with its segments; `serving`: the plan in
    force. An offer of the same plan stays as it was written, so that its ID does."""
    if isinstance(decision, Keep) and decision.proposal is not None and made is not None and serving is not None:
        if offer is not None and not offer.rejected and offer.plan.revision == decision.proposal.revision:
            return offer.written
        planned, built = made
        written = write_plan(planned, built, {})
        written.pop("madeFor")
        revision = built.target.route.revision
        moment = f"{seen.now:%Y%m%dT%H%M%SZ}"
        reason = decision.trigger.reason.value if decision.trigger is not None else ""
        return written | {
            "id": f"{revision}-{moment}",
            "from": serving.target.route.revision,
            "time": stamp(seen.now),
            "reason": reason,
            "message": decision.message,
        }
    if offer is None or offer.rejected or isinstance(decision, Adopt):
        return {}
    if isinstance(decision, Keep) and decision.trigger is not None and decision.reason not in _STILL_OFFERED:
        return {}
    return offer.written
