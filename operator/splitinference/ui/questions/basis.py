"""The problem of a resource as the operator would plan it now, from the same objects that it reads. Pure."""

from collections.abc import Mapping
from typing import Any

from splitinference.controller.api.spec import Rejected, Resource, read_resource
from splitinference.controller.cluster_state.snapshot import Reading
from splitinference.controller.history.calibration import read_calibration
from splitinference.controller.manifests import profile_pod
from splitinference.controller.plan_io.plan_status import read_plan
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.model_files.config import profile_from_model
from splitinference.core.model_files.safetensors import with_content
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile
from splitinference.settings import Settings
from splitinference.ui.questions.asked import Basis, UnanswerableError
from splitinference_modelfiles.stored.headers import ModelRefusedError


def parsed(body: Mapping[str, Any]) -> Resource:
    """The resource. Raises UnanswerableError where its spec is rejected."""
    resource = read_resource(body)
    if isinstance(resource, Rejected):
        raise UnanswerableError(f"The resource's spec is rejected: {resource}")
    return resource


def profile_of(resource: Resource, kept: Mapping[str, Any] | None, settings: Settings) -> Profile:
    """The model's profile from the ConfigMap where the operator keeps it. Raises UnanswerableError where it has not read the model."""
    packed = profile_pod.cached(resource, kept) if kept else None
    unpacked = profile_pod.unpack(packed) if packed else None
    if unpacked is None:
        raise UnanswerableError("The operator has not read this model yet. Its condition Accepted says why.")
    model, runtime = resource.spec.model, settings.segment_runtime_mib * 2**20
    try:
        profile = profile_from_model(
            unpacked.config,
            unpacked.tensors,
            model.dtype,
            files=unpacked.files,
            runtime_bytes=runtime,
            llama_runtime_bytes=settings.segment_llama_cpp_runtime_mib * 2**20,
            model=model.id,
            weights=model.weights,
        )
        # As the operator names it: otherwise its plan would be one of another model.
        return with_content(profile, unpacked.root, unpacked.commit)
    except ModelRefusedError as error:
        raise UnanswerableError(f"The model cannot be served: {error}") from error


def basis_of(resource: Resource, body: Mapping[str, Any], profile: Profile, reading: Reading) -> Basis:
    """The problem, and the plan in force where it is of this model. Raises UnanswerableError where the spec does not fit the model."""
    spec = resource.spec
    bounds = plan_constraints.constraints(spec, len(profile.layers), profile.positions, profile.split_points)
    if isinstance(bounds, Rejected):
        raise UnanswerableError(f"The resource's spec does not fit its model: {bounds}")
    status = body.get("status") or {}
    planned = read_plan(status, lambda given: read_resource({**body, "spec": given}))
    plan = planned.plan if planned and planned.plan.model_digest == profile.digest else None
    known = read_calibration(status)
    now = reading.snapshot.observed_at
    snapshot = reading.snapshot.for_dtype(profile.dtype)
    problem = Problem(
        profile=profile,
        snapshot=known.applied_to(snapshot, now) if now is not None else snapshot,
        workload=plan_constraints.workload(spec),
        objective=plan_constraints.objective(spec),
        constraints=bounds,
        slo=plan_constraints.slo(spec),
        link_encoding=plan_constraints.link_encoding(spec),
        serving=tuple((s.start, s.end, s.node) for s in plan.segments) if plan else (),
    )
    return Basis(problem, plan, reading.notes[:10])
