"""A SplitInference as a frozen value, and what it means to the core.

The API server has already refused what the schema can refuse; here the same limits are types, and the rules that need the model (a layer
that it does not have) are checked against its profile. What is wrong is a value that names the field. Each part of the spec has a file of
its own beside this one.
"""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from splitinference.controller.api.adapter_spec import MOST_ADAPTERS, AdapterSpec
from splitinference.controller.api.group import DEFAULT_CLASS
from splitinference.controller.api.pod_values import PodTemplates
from splitinference.controller.api.sections.adaptation_spec import Adaptation
from splitinference.controller.api.sections.filter_spec import FilterSpec
from splitinference.controller.api.sections.gateway_spec import GatewaySpec
from splitinference.controller.api.sections.model_spec import Model
from splitinference.controller.api.sections.objective_spec import ObjectiveSpec, SloSpec, WorkloadSpec
from splitinference.controller.api.sections.placement_spec import Partition, Placement, SegmentsSpec
from splitinference.controller.api.sections.privacy_spec import Privacy, VerificationSpec
from splitinference.controller.api.sections.reuse_spec import ReuseScope, ReuseSpec
from splitinference.controller.api.sections.scaling_spec import MOST_PIPELINES, Scaling
from splitinference.controller.api.sections.spec_value import SpecValue
from splitinference.core.values.profile import Engine, Profile
from splitinference.core.values.value import Value
from splitinference_modelfiles.gguf_files.gguf_models import MOST_RUNNING_SEQUENCES


def not_with_llama_cpp(spec: "Spec") -> str | None:
    """What the spec asks for that segments with llama.cpp cannot do; None where they can do all."""
    if spec.verification is not None:
        return "verification needs engine Torch: what llama.cpp computes differs by processor, and no tolerance was measured for that"
    if spec.segments.weights == "Stored":
        return "segments.weights Stored needs engine Torch: llama.cpp keeps weights as the GGUF file has them"
    if spec.adapters or spec.segments.adapter_memory_mib:
        return "adapters need engine Torch: segments with llama.cpp hold no adapters"
    if spec.model.weights != "AsStored":
        return f"model.weights {spec.model.weights} is for safetensors: llama.cpp keeps weights as the GGUF file has them"
    if spec.model.max_running_sequences > MOST_RUNNING_SEQUENCES:
        most = MOST_RUNNING_SEQUENCES // 4
        return f"model.maxConcurrentSequences must be at most {most} with llama.cpp: four times as many may run, and it knows 256"
    return None


def not_served(spec: "Spec", profile: Profile) -> str | None:
    """What the spec asks for that the engine of the model's files, or the form of its weights, cannot do; None where it can do all."""
    if spec.verification is not None and profile.engine is Engine.TORCH and any(layer.quantized_weights for layer in profile.layers):
        return "spec.verification needs weights in 16 or 32 bits: no tolerance was measured for quantized weights, and this model has them"
    problem = not_with_llama_cpp(spec) if profile.engine is Engine.LLAMA_CPP else None
    return None if problem is None else f"{spec.model.source.describe()} has a GGUF model, which llama.cpp serves: spec.{problem}"


class Spec(SpecValue):
    """What the user asks for."""

    operator_class: str = Field(default=DEFAULT_CLASS, min_length=1, max_length=63)
    priority: int = Field(default=0, ge=-1000, le=1000)
    replicas: int = Field(default=1, ge=1, le=MOST_PIPELINES)
    scaling: Scaling | None = None
    model: Model
    workload: WorkloadSpec = WorkloadSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    slo: SloSpec = SloSpec()
    partition: Partition = Partition()
    privacy: Privacy = Privacy()
    verification: VerificationSpec | None = None
    placement: Placement = Placement()
    segments: SegmentsSpec = SegmentsSpec()
    gateway: GatewaySpec = GatewaySpec()
    reuse: ReuseSpec | None = None
    filter: FilterSpec | None = None
    adapters: tuple[AdapterSpec, ...] = Field(default=(), max_length=MOST_ADAPTERS)
    pod_template: PodTemplates = PodTemplates()
    adaptation: Adaptation = Adaptation()

    @model_validator(mode="after")
    def _can_be_verified(self) -> Self:
        if self.verification is not None and self.segments.link_encoding != "Plain":
            raise ValueError("verification needs segments.linkEncoding Plain: the loss of Int8 would hide what is to be found")
        return self

    @model_validator(mode="after")
    def _reused_answers_are_of_one_encoding(self) -> Self:
        if self.reuse is not None and self.segments.link_encoding == "Auto":
            raise ValueError("reuse needs segments.linkEncoding Plain or Int8: with Auto, answers change when a link does")
        return self

    @model_validator(mode="after")
    def _adapters_can_be_told_apart(self) -> Self:
        names = [adapter.name for adapter in self.adapters]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"adapters has {', '.join(repeated)} twice")
        if self.model.id in names:
            raise ValueError(f"adapters has {self.model.id}, which is the model's own name (model.id)")
        if names and not self.segments.adapter_memory_mib:
            raise ValueError("adapters need segments.adapterMemoryMiB: memory for them is planned, and there is none by default")
        if names and self.verification is not None:
            raise ValueError("adapters contradict verification: verifiers hold no adapters")
        return self

    @model_validator(mode="after")
    def _weights_can(self) -> Self:
        if self.model.weights != "AsStored" and self.segments.weights == "Stored":
            raise ValueError("segments.weights Stored needs model.weights AsStored: quantized weights are no longer as they are stored")
        if self.model.weights != "AsStored" and self.verification is not None:
            raise ValueError("verification needs model.weights AsStored: no tolerance was measured for quantized weights")
        return self

    @model_validator(mode="after")
    def _knows_whose_answers_it_keeps(self) -> Self:
        auth = self.gateway.auth
        named = auth.api_keys_secret_ref is not None or auth.token_review is not None
        if self.reuse is not None and self.reuse.scope is ReuseScope.CLIENT and not named:
            raise ValueError(
                "reuse with scope Client needs gateway.auth: without keys or tokens nobody knows whose an answer is. "
                "Scope All gives every client every answer"
            )
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.model.may_be_gguf and (problem := not_with_llama_cpp(self)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _goal_fits_pipelines(self) -> Self:
        if (most := self.most_pipelines) > 1 and self.objective.then:
            raise ValueError(f"objective.then is for one pipeline, and there may be {most}")
        if self.scaling is not None and self.objective.goal == "throughput":
            raise ValueError("scaling contradicts objective.goal throughput, which has as many pipelines as fit whatever the load")
        if self.scaling is not None and self.scaling.min == 0 and self.verification is not None:
            raise ValueError("scaling.min must be at least 1 with verification: verifiers are not unloaded")
        if self.objective.goal == "throughput" and (self.replicas > 1 or self.partition.pins or self.partition.min_segments > 1):
            raise ValueError("objective.goal throughput chooses the number of pipelines: without replicas, partition.pins and minSegments")
        return self

    @model_validator(mode="after")
    def _can_have_so_many_pipelines(self) -> Self:
        name, wanted = ("replicas", self.replicas) if self.scaling is None else ("scaling.max", self.scaling.max)
        if wanted > 1 and self.partition.pins:
            raise ValueError(f"{name} {wanted} contradicts partition.pins: a node can hold the pinned layers of one pipeline only")
        most, least = self.placement.max_nodes, wanted * self.partition.min_segments
        if most is not None and least > most:
            raise ValueError(
                f"{name} {wanted} with partition.minSegments {self.partition.min_segments} need {least} nodes, more than "
                f"placement.maxNodes {most}"
            )
        return self

    @property
    def most_pipelines(self) -> int:
        """The most that there may be: asked for, or by scaling."""
        return max(self.replicas, self.scaling.max if self.scaling is not None else 1)


class Resource(Value):
    """One SplitInference: its names and its spec."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Spec


class FieldProblem(Value):
    """What is wrong with one field; `path` as the user writes it, such as `spec.partition.pins[0].layers`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class Rejected(Value):
    """A resource that cannot be worked with, and each reason why."""

    problems: tuple[FieldProblem, ...] = Field(min_length=1)

    def __str__(self) -> str:
        return "; ".join(str(problem) for problem in self.problems)


def read_resource(body: Mapping[str, Any]) -> Resource | Rejected:
    """The body that the API server sent → Resource, or all that is wrong with it."""
    spec = read_spec(body.get("spec") or {})
    return spec if isinstance(spec, Rejected) else _named(body, spec)


def read_spec(spec: Mapping[str, Any]) -> Spec | Rejected:
    """The specification, or all that is wrong with it."""
    try:
        return Spec.model_validate(spec)
    except ValidationError as error:
        return Rejected(problems=tuple(FieldProblem(path=_path(e["loc"]), message=_message(e["type"], e["msg"])) for e in error.errors()))


def _named(body: Mapping[str, Any], spec: Spec) -> Resource:
    metadata = body.get("metadata") or {}
    return Resource(
        name=str(metadata.get("name", "")),
        namespace=str(metadata.get("namespace", "")),
        uid=str(metadata.get("uid", "")),
        generation=int(metadata.get("generation", 0)),
        spec=spec,
    )


class SpecReader:
    """Reads the specifications of one resource: the one of now, and the one that its plan was made for. Each is validated once for as long
    as it stays the same, whoever asks. Used by one pass at a time."""

    _MOST = 2

    def __init__(self) -> None:
        self._read: list[tuple[Mapping[str, Any], Spec | Rejected]] = []

    def read(self, body: Mapping[str, Any], spec: Mapping[str, Any] | None = None) -> Resource | Rejected:
        """The resource with its own specification, or with this one."""
        asked = (body.get("spec") or {}) if spec is None else spec
        found = next((read for known, read in self._read if known == asked), None)
        if found is None:
            found = read_spec(asked)
        self._read = [(asked, found), *(entry for entry in self._read if entry[0] != asked)][: self._MOST]
        return found if isinstance(found, Rejected) else _named(body, found)


def _path(location: tuple[int | str, ...]) -> str:
    path = "spec"
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _message(kind: str, text: str) -> str:
    if kind == "extra_forbidden":
        return "this operator does not know the field: is it older than the CRD in the cluster?"
    return text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
