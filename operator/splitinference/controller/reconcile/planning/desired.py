"""What a resource asks for, ready to be planned; or why it cannot be, as the condition Accepted says it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.spec import Rejected, Resource
from splitinference.controller.plan_io.plan_status import Planned, asked_for
from splitinference.controller.ports import Manifest, Models, Pending, Unreadable
from splitinference.controller.spec_to_core import plan_constraints, processor_classes
from splitinference.controller.trust.cluster_policy import violations
from splitinference.core.values.problem import Constraints
from splitinference.core.values.profile import Profile
from splitinference.settings import Settings


@dataclass(frozen=True)
class Asked:
    """A resource with its model's profile and the constraints for it; `digest` names all of that. `barred`: classes of processors that its
    segments may not use, and why."""

    resource: Resource
    profile: Profile
    constraints: Constraints
    digest: str
    barred: Mapping[str, str] = field(default_factory=dict)

    @property
    def condition(self) -> Condition:
        """Accepted."""
        found = self.profile
        content = (f", commit {found.commit}" if found.commit else "") + (f", digest {found.content}" if found.content else "")
        message = f"{found.model}: {len(found.layers)} layers{content}"
        return Condition(kind=Kind.ACCEPTED, holds=True, reason="Accepted", message=message)


def read_asked(body: Manifest, resource: Resource | Rejected, models: Models, settings: Settings) -> Asked | Condition:
    """What is asked for; or the condition that says why it cannot be worked with (not known: while the model is being read). `resource` is
    what was read of the body."""
    if isinstance(resource, Rejected):
        return Condition(kind=Kind.ACCEPTED, holds=False, reason="SpecRejected", message=str(resource))
    # Before anything is made for it: the pod that reads a model mounts the folder, too.
    if broken := violations(resource.spec, settings):
        message = "; ".join(map(str, broken)) + ". Ask whoever installed the operator to allow it; the present plan keeps serving"
        return Condition(kind=Kind.ACCEPTED, holds=False, reason="PolicyViolation", message=message)
    profile = models.profile(resource)
    match profile:
        case Unreadable(reason=reason, message=message):
            return Condition(kind=Kind.ACCEPTED, holds=False, reason=reason, message=message)
        case Pending(message=message):
            return Condition(kind=Kind.ACCEPTED, holds=None, reason="ReadingModel", message=message)
    constraints = plan_constraints.constraints(resource.spec, len(profile.layers), profile.positions, profile.split_points)
    if isinstance(constraints, Rejected):
        return Condition(kind=Kind.ACCEPTED, holds=False, reason="SpecRejected", message=str(constraints))
    if resource.spec.verification is not None and not any(layer.kv_bytes_per_token for layer in profile.layers):
        message = "spec.verification: it is for models that generate text; this model's segments keep no sequences"
        return Condition(kind=Kind.ACCEPTED, holds=False, reason="SpecRejected", message=message)
    if (unknown := processor_classes.unknown_class(resource.spec, settings)) is not None:
        return Condition(kind=Kind.ACCEPTED, holds=False, reason="SpecRejected", message=str(Rejected(problems=(unknown,))))
    spec: Mapping[str, object] = body.get("spec") or {}
    barred = processor_classes.barred(resource.spec, profile.engine, settings)
    return Asked(resource=resource, profile=profile, constraints=constraints, digest=asked_for(spec, profile), barred=barred)


def profile_for(planned: Planned, now: Asked | Condition, models: Models) -> Profile | None:
    """The profile that a plan needs: mostly that of what is asked for now; None where the model that it was made for cannot be read."""
    if isinstance(now, Asked) and now.profile.digest == planned.plan.model_digest:
        return now.profile
    found = models.profile(planned.resource)
    return found if isinstance(found, Profile) and found.digest == planned.plan.model_digest else None
