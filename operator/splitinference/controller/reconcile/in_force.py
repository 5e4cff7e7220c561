"""What is in force before a pass: the plan in the status, of which model, and its segments; and what a resource keeps between passes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from splitinference.controller.api.conditions import Condition
from splitinference.controller.api.group import DEFAULT_CLASS
from splitinference.controller.api.newer_fields import known_part
from splitinference.controller.api.sections.adaptation_spec import Adaptation
from splitinference.controller.api.spec import Resource, SpecReader
from splitinference.controller.cluster_state.segment_probes import Proofs
from splitinference.controller.kube_values.start_failures import Told
from splitinference.controller.plan_io.plan_status import Built, Planned, build, read_plan
from splitinference.controller.ports import Manifest, Ports
from splitinference.controller.reconcile.planning.desired import Asked, profile_for
from splitinference.controller.reconcile.planning.plan_pass import Course
from splitinference.controller.reconcile.planning.privacy import promised_rules
from splitinference.controller.reconcile.unload import Sleep
from splitinference.controller.reconcile.upkeep.adapters import Told as AdaptersTold
from splitinference.controller.reconcile.upkeep.upkeep import Applied
from splitinference.core.values.problem import Constraints
from splitinference.core.values.profile import Profile


@dataclass(frozen=True)
class ReadPlan:
    """The plan that a resource's status has (`written`), as it was read; and its segments, for the model with `profile`."""

    uid: str
    written: Mapping[str, Any]
    planned: Planned
    profile: Profile | None = None
    built: Built | None = None


@dataclass
class Remembered:
    """What is kept between passes of one resource, only to do less: after a restart all of it is found out anew."""

    proofs: Proofs
    specs: SpecReader = field(default_factory=SpecReader)
    plan: ReadPlan | None = None
    applied: Applied = field(default_factory=Applied)
    refusals: int = 0
    told: Told = field(default_factory=Told)
    sleep: Sleep | None = None
    adapters: AdaptersTold = field(default_factory=AdaptersTold)


@dataclass(frozen=True)
class InForce:
    """What a resource goes by. `resource`: what is asked for; while that cannot be worked with, as it was when the plan was made. `profile`
    and `built` are there only where the model that the plan was made for can be read."""

    resource: Resource | None
    planned: Planned | None = None
    profile: Profile | None = None
    built: Built | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the plan's segments."""
        return frozenset(self.built.target.segments) if self.built is not None else frozenset()

    @property
    def course(self) -> Course | None:
        """The plan as a pass goes by it."""
        if self.planned is None:
            return None
        rules = promised_rules(self.planned, self.profile) if self.profile is not None else Constraints()
        return Course(self.planned.plan, self.built.target if self.built is not None else None, self.planned.asked, rules)


def read_in_force(ports: Ports, body: Manifest, remembered: Remembered, asked: Asked | Condition) -> InForce:
    """Each is read anew only where it is another than in the last pass."""
    status, kept, uid = body.get("status") or {}, remembered.plan, str(body["metadata"].get("uid", ""))
    written = status.get("plan") or {}
    if kept is None or kept.uid != uid or kept.written != written:
        # A newer operator may have made it; what it wrote into the specification beyond what is known here cannot be kept here.
        planned = read_plan(status, lambda spec: remembered.specs.read(body, known_part(spec)))
        kept = ReadPlan(uid, written, planned) if planned is not None else None
    resource = asked.resource if isinstance(asked, Asked) else kept.planned.resource if kept is not None else None
    if kept is None:
        remembered.plan = None
        return InForce(resource)
    if isinstance(asked, Asked):
        kept = replace(kept, planned=_as_asked_now(kept.planned, asked, body.get("spec") or {}))
    profile = profile_for(kept.planned, asked, ports.models)
    if profile is not None and (kept.built is None or kept.profile != profile):
        kept = replace(kept, profile=profile, built=build(kept.planned, profile, ports.builder))
    remembered.plan = kept
    return InForce(resource, kept.planned, profile, kept.built if profile is not None else None)


def _as_asked_now(planned: Planned, asked: Asked, spec: Mapping[str, Any]) -> Planned:
    """A plan that was made for what is asked now, though that was written otherwise, counts as made for what is written now: a newer CRD
    has more defaults than the one of then, and an older one fewer. So neither an upgrade nor a rollback is a reason to plan."""
    if planned.spec == spec or planned.plan.model_digest != asked.profile.digest:
        return planned
    before, now = (resource.spec.model_copy(update=_NO_REASON_TO_PLAN) for resource in (planned.resource, asked.resource))
    return replace(planned, resource=asked.resource, spec=spec, asked=asked.digest) if before == now else planned


_NO_REASON_TO_PLAN = {"adaptation": Adaptation(), "operator_class": DEFAULT_CLASS, "scaling": None}
"""Parts that say how to answer to change, and by which operator: `asked_for` leaves them out, too."""
