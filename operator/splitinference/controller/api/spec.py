"""A SplitInference as a frozen value, and what it means to the core.

The API server has already refused what the schema can refuse; here the same limits are types, and the rules that need the model (a layer
that it does not have) are checked against its profile. What is wrong is a value that names the field.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from splitinference.controller.api.pod_values import PodTemplates
from splitinference.core.values import problem as core
from splitinference.core.values.profile import Engine, Profile
from splitinference.core.values.value import Value
from splitinference_modelfiles.gguf_models import MOST_RUNNING_SEQUENCES

GROUP = "splitinference.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
PLURAL = "splitinferences"
KIND = "SplitInference"
DEFAULT_CLASS = "default"

TRUSTED = "node-restriction.kubernetes.io/splitinference-trusted"
"""The label of trusted nodes, unless a resource names others."""

_DURATION = re.compile(r"^(?:[0-9]+(?:\.[0-9]+)?(?:ms|s|m|h))+$")
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_RANGE = re.compile(r"^([0-9]{1,4}):([0-9]{1,4})$")


def parse_duration(text: object) -> object:
    """'1m30s' → timedelta. What is no string is handed on; a string of another form raises ValueError (for pydantic)."""
    if not isinstance(text, str):
        return text
    if not _DURATION.match(text):
        raise ValueError(f"{text!r} is not a duration such as 800ms, 30s or 1m30s")
    return timedelta(seconds=sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text)))


Duration = Annotated[timedelta, BeforeValidator(parse_duration)]


class SpecValue(Value):
    """A part of the spec: camelCase in the resource, snake_case here."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False)


class LayerRange(SpecValue):
    """`first`, `last` or `start:end`, half-open."""

    text: str

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: object) -> object:
        return {"text": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _has_a_meaning(self) -> Self:
        found = _RANGE.match(self.text)
        if self.text not in (core.FIRST, core.LAST) and not found:
            raise ValueError(f"{self.text!r} must be first, last or start:end such as 0:4")
        if found and int(found[1]) >= int(found[2]):
            raise ValueError(f"{self.text!r} holds no layer: start must be less than end")
        return self

    def of(self, layers: int) -> tuple[int, int] | None:
        """The range in a model of so many layers; None where the model has no such layers."""
        if self.text == core.FIRST:
            return (0, 1)
        if self.text == core.LAST:
            return (layers - 1, layers)
        start, end = (int(part) for part in self.text.split(":"))
        return (start, end) if end <= layers else None


class SecretKey(SpecValue):
    """A key of a Secret in the resource's namespace."""

    name: str
    key: str = "token"


class ClaimSource(SpecValue):
    """A folder in a PersistentVolumeClaim."""

    claim_name: str
    path: str = ""


class HostPathSource(SpecValue):
    """A folder on every node that may run a segment."""

    path: str


class HuggingFaceSource(SpecValue):
    """A repository of the Hugging Face hub."""

    repository: str
    revision: str = "main"
    token_secret_ref: SecretKey | None = None


class ModelSource(SpecValue):
    """Where the model's files are: exactly one."""

    persistent_volume_claim: ClaimSource | None = None
    host_path: HostPathSource | None = None
    hugging_face: HuggingFaceSource | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = [name for name in ("persistent_volume_claim", "host_path", "hugging_face") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("must have exactly one of persistentVolumeClaim, hostPath and huggingFace")
        return self

    @property
    def gguf(self) -> str | None:
        """The name of the GGUF file that the path names; None where it names a folder."""
        path = (self.host_path and self.host_path.path) or (self.persistent_volume_claim and self.persistent_volume_claim.path) or ""
        return path.rstrip("/").rpartition("/")[2] if path.rstrip("/").endswith(".gguf") else None

    def describe(self) -> str:
        """In words, for messages."""
        what = "file" if self.gguf else "folder"
        if self.host_path:
            return f"the {what} {self.host_path.path} on the nodes"
        if claim := self.persistent_volume_claim:
            return f"the {what} {claim.path or '/'} of the claim {claim.claim_name}"
        assert self.hugging_face is not None  # noqa: S101 - what the validator above ensures
        return f"{self.hugging_face.repository} at {self.hugging_face.revision} on the Hugging Face hub"


GgufName = Annotated[str, Field(max_length=512, pattern=r"^[A-Za-z0-9][-A-Za-z0-9._+]*(/[A-Za-z0-9][-A-Za-z0-9._+]*)*\.gguf$")]


class Model(SpecValue):
    """The model and how it is held. `file`: the GGUF file, where the source has several."""

    id: str = Field(min_length=1, max_length=128)
    source: ModelSource
    engine: Literal["Auto", "Torch", "LlamaCpp"] = "Auto"
    file: GgufName | None = None
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    max_context_tokens: int = Field(default=2048, ge=16)
    max_concurrent_sequences: int = Field(default=4, ge=1, le=1024)

    @property
    def gguf(self) -> str | None:
        """The GGUF file that the source or `file` names; None where neither does."""
        return self.file or self.source.gguf

    @property
    def may_be_gguf(self) -> bool:
        """Whether llama.cpp may be what computes it, as far as the spec says."""
        return self.engine == "LlamaCpp" or (self.engine == "Auto" and self.gguf is not None)

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.engine == "Torch" and self.gguf is not None:
            raise ValueError(
                f"engine Torch does not read {self.gguf}: it needs engine Auto or LlamaCpp, or convert it with segment-convert"
            )
        if self.file is not None and self.source.gguf is not None:
            raise ValueError("file must not be set where source names a GGUF file itself")
        if self.digest is not None and self.may_be_gguf:
            raise ValueError("digest is available for safetensors alone: segments with llama.cpp do not check their tensors")
        return self

    @property
    def max_running_sequences(self) -> int:
        """How many may run where they are short: the KV planned for is what bounds them, and this what a segment keeps account of."""
        return 4 * self.max_concurrent_sequences


class WorkloadSpec(SpecValue):
    """The request that the plan is made for."""

    prompt_tokens: int = Field(default=128, ge=1)
    output_tokens: int = Field(default=128, ge=1)


class Weights(SpecValue):
    """What else counts, in ms of the goal: for a peak utilization of 1.0, and for each GiB to load elsewhere."""

    utilization: float = Field(default=0.0, ge=0)
    move: float = Field(default=0.0, ge=0)


class ObjectiveSpec(SpecValue):
    """What a better plan is."""

    goal: Literal["latency", "bottleneck"] = "latency"
    weights: Weights = Weights()


class SloSpec(SpecValue):
    """Upper limits of a plan."""

    time_to_first_token: Duration | None = Field(default=None, gt=timedelta(0))
    time_per_output_token: Duration | None = Field(default=None, gt=timedelta(0))


class PinSpec(SpecValue):
    """Layers that must run on a node."""

    layers: LayerRange
    node: str


class Partition(SpecValue):
    """Where the model may be cut."""

    min_segments: int = Field(default=1, ge=1, le=64)
    max_segments: int | None = Field(default=None, ge=1, le=64)
    allowed_split_points: tuple[int, ...] | None = None
    pins: tuple[PinSpec, ...] = ()


RuntimeClassName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")]


class PrivacyRule(SpecValue):
    """Layers that need nodes with these labels, and a RuntimeClass for the pods that hold them."""

    layers: LayerRange
    node_labels: Mapping[str, str] = Field(min_length=1)
    runtime_class_name: RuntimeClassName | None = None


class OnViolation(StrEnum):
    """What becomes of requests while what serves breaks a rule."""

    STOP = "Stop"
    DRAIN = "Drain"


Percent = Annotated[float, Field(ge=0, le=100)]


class Privacy(SpecValue):
    """All rules that cover a layer hold for it. `token_recovery_percent` has one figure for each boundary inside the model, as
    `splitinference bench privacy` prints them: the first is for the boundary after layer 0."""

    rules: tuple[PrivacyRule, ...] = ()
    on_violation: OnViolation = OnViolation.STOP
    trusted_node_labels: Mapping[str, str] = Field(default_factory=lambda: {TRUSTED: "true"}, min_length=1)
    max_token_recovery_percent: int | None = Field(default=None, ge=0, le=100)
    token_recovery_percent: tuple[Percent, ...] | None = Field(default=None, min_length=1, max_length=1024)

    @model_validator(mode="after")
    def _has_a_table(self) -> Self:
        if self.max_token_recovery_percent is not None and self.token_recovery_percent is None:
            raise ValueError(
                "maxTokenRecoveryPercent needs tokenRecoveryPercent: measure your model with "
                "`splitinference bench privacy --model DIR --yaml`"
            )
        return self

    @model_validator(mode="after")
    def _has_one_runtime_class(self) -> Self:
        named = sorted({rule.runtime_class_name for rule in self.rules if rule.runtime_class_name is not None})
        if len(named) > 1:
            raise ValueError(f"rules must name at most one runtimeClassName, as a pod has only one; they name {', '.join(named)}")
        return self


class VerificationSpec(SpecValue):
    """Spot checks of segments on nodes that are not trusted. No tolerance means the one of the data type."""

    sample_percent: float = Field(gt=0, le=100)
    tolerance: float | None = Field(default=None, gt=0, le=1)
    replicas: Literal[1] = 1


TOLERANCES: Mapping[str, float] = {"bfloat16": 0.016, "float16": 0.004, "float32": 0.001}
"""Of each data type: docs/reference/verification.md has the measurements."""


class TolerationSpec(SpecValue):
    """As in a pod."""

    key: str = ""
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class Placement(SpecValue):
    """Which nodes may be used at all."""

    node_selector: Mapping[str, str] = Field(default_factory=dict)
    tolerations: tuple[TolerationSpec, ...] = ()
    max_nodes: int | None = Field(default=None, ge=1)


class SegmentsSpec(SpecValue):
    """How every segment runs."""

    threads: int | None = Field(default=None, ge=1, le=256)
    weights: Literal["Packed", "Stored"] = "Packed"
    link_encoding: Literal["Plain", "Int8"] = "Plain"
    memory_margin_percent: int = Field(default=10, ge=0, le=100)


class KeysSecret(SpecValue):
    """API keys in a Secret of the resource's namespace; no key means all of its keys."""

    name: str = Field(min_length=1)
    key: str | None = Field(default=None, min_length=1)


class TokenReviewSpec(SpecValue):
    """Tokens of the cluster for this audience."""

    audience: str = Field(default="splitinference", min_length=1)


class AuthSpec(SpecValue):
    """Who may ask the gateway: at most one of the two."""

    api_keys_secret_ref: KeysSecret | None = None
    token_review: TokenReviewSpec | None = None

    @model_validator(mode="after")
    def _is_at_most_one(self) -> Self:
        if self.api_keys_secret_ref and self.token_review:
            raise ValueError("must have at most one of apiKeysSecretRef and tokenReview")
        return self


class PrefixReuse(StrEnum):
    """Whose earlier prompts a prompt may begin with."""

    CLIENT = "Client"
    ALL = "All"
    OFF = "Off"


class UnknownFields(StrEnum):
    """What becomes of a request's fields that nobody knows."""

    WARN = "Warn"
    REFUSE = "Refuse"


class LongAnswers(StrEnum):
    """What becomes of a request for more tokens than fit."""

    CUT = "Cut"
    REFUSE = "Refuse"


class GenerationConfig(StrEnum):
    """Where sampling parameters come from that a request does not name."""

    MODEL = "Model"
    NEUTRAL = "Neutral"


Origin = Annotated[str, Field(max_length=256, pattern=r"^(\*|https?://[a-z0-9._-]+(:[0-9]{1,5})?)$")]


class GatewaySpec(SpecValue):
    """The server in front."""

    replicas: int = Field(default=1, ge=1, le=16)
    prefix_reuse: PrefixReuse = PrefixReuse.CLIENT
    unknown_fields: UnknownFields = UnknownFields.WARN
    long_answers: LongAnswers = LongAnswers.CUT
    generation_config: GenerationConfig = GenerationConfig.MODEL
    cors_origins: tuple[Origin, ...] = Field(default=(), max_length=32)
    auth: AuthSpec = AuthSpec()


class Mode(StrEnum):
    """What the operator may do by itself."""

    AUTO = "Auto"
    ADVISORY = "Advisory"
    FROZEN = "Frozen"


class Strategy(StrEnum):
    """Whether a new segment is made before the old one goes."""

    SURGE = "Surge"
    BREAK_FIRST = "BreakFirst"


class Prefetch(StrEnum):
    """Whether weights are brought to nodes before a move."""

    OFF = "Off"
    LIKELY_TARGETS = "LikelyTargets"


class Thresholds(SpecValue):
    """What makes the operator look for a better plan."""

    utilization_percent: int = Field(default=70, ge=1, le=100)


class Adaptation(SpecValue):
    """How the operator answers to change."""

    mode: Mode = Mode.AUTO
    thresholds: Thresholds = Thresholds()
    window: Duration = timedelta(seconds=60)
    confirmations: int = Field(default=3, ge=1)
    cooldown: Duration = timedelta(minutes=5)
    stabilization: Duration = timedelta(minutes=10)
    min_gain_percent: int = Field(default=10, ge=0, le=100)
    max_moves_per_hour: int = Field(default=6, ge=0)
    strategy: Strategy = Strategy.SURGE
    prefetch: Prefetch = Prefetch.OFF
    drain: Duration = timedelta(seconds=30)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.window < timedelta(seconds=self.confirmations):
            raise ValueError("window must hold confirmations: at least 1s for each")
        if self.mode is Mode.AUTO and self.max_moves_per_hour == 0:
            raise ValueError("maxMovesPerHour 0 contradicts mode Auto")
        return self


def not_with_llama_cpp(spec: "Spec") -> str | None:
    """What the spec asks for that segments with llama.cpp cannot do; None where they can do all."""
    if spec.verification is not None:
        return "verification needs engine Torch: what llama.cpp computes differs by processor, and no tolerance was measured for that"
    if spec.segments.weights == "Stored":
        return "segments.weights Stored needs engine Torch: llama.cpp keeps weights as the GGUF file has them"
    if spec.model.max_running_sequences > MOST_RUNNING_SEQUENCES:
        most = MOST_RUNNING_SEQUENCES // 4
        return f"model.maxConcurrentSequences must be at most {most} with llama.cpp: four times as many may run, and it knows 256"
    return None


def not_served(spec: "Spec", profile: Profile) -> str | None:
    """What the spec asks for that the engine of the model's files cannot do; None where it can do all."""
    problem = not_with_llama_cpp(spec) if profile.engine is Engine.LLAMA_CPP else None
    return None if problem is None else f"{spec.model.source.describe()} has a GGUF model, which llama.cpp serves: spec.{problem}"


class Spec(SpecValue):
    """What the user asks for."""

    operator_class: str = Field(default=DEFAULT_CLASS, min_length=1, max_length=63)
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
    pod_template: PodTemplates = PodTemplates()
    adaptation: Adaptation = Adaptation()

    @model_validator(mode="after")
    def _can_be_verified(self) -> Self:
        if self.verification is not None and self.segments.link_encoding == "Int8":
            raise ValueError("verification needs segments.linkEncoding Plain: the loss of Int8 would hide what is to be found")
        return self

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        if self.model.may_be_gguf and (problem := not_with_llama_cpp(self)) is not None:
            raise ValueError(problem)
        return self


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
        return Rejected(problems=tuple(FieldProblem(path=_path(e["loc"]), message=_message(e["msg"])) for e in error.errors()))


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


def _message(text: str) -> str:
    return text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
