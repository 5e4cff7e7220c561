"""What users may add to the pods of segments and gateways: in `spec.podTemplate`, and in the chart's values for all resources.

What the operator itself sets (names, selectors, ports, its own variables) is reserved: such keys are refused, never overwritten.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

RESERVED_PREFIXES = ("app.kubernetes.io/", "splitinference.dev/")
RESERVED_VARIABLES = ("HOME", "USER", "HF_TOKEN")
RESERVED_VARIABLE_PREFIX = "SI_"


def _unreserved(keys: Mapping[str, str]) -> Mapping[str, str]:
    if taken := sorted(key for key in keys if key.startswith(RESERVED_PREFIXES)):
        raise ValueError(f"{', '.join(taken)}: keys of app.kubernetes.io/ and splitinference.dev/ are the operator's own")
    return keys


def word(value: object) -> object:
    """YAML has numbers and booleans where Kubernetes wants strings: values such as `"8080"` lose their quotes on the way through tools."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, int | float) else value


def _as_text(values: object) -> object:
    return {str(key): word(value) for key, value in values.items()} if isinstance(values, Mapping) else values


Words = Annotated[Mapping[str, str], BeforeValidator(_as_text), AfterValidator(_unreserved)]


class TemplateValue(BaseModel):
    """A part of the template: camelCase outside, snake_case here."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Variable(TemplateValue):
    """An environment variable: a value, or where it comes from, as in a pod."""

    name: str = Field(min_length=1, pattern="^[A-Za-z_][A-Za-z0-9_]*$")
    value: Annotated[str, BeforeValidator(word)] | None = None
    value_from: Mapping[str, Any] | None = None

    @model_validator(mode="after")
    def _is_free(self) -> "Variable":
        if self.name.startswith(RESERVED_VARIABLE_PREFIX) or self.name in RESERVED_VARIABLES:
            raise ValueError(f"{self.name}: SI_*, {', '.join(RESERVED_VARIABLES)} are the operator's own")
        if self.value is not None and self.value_from is not None:
            raise ValueError(f"{self.name}: must have at most one of value and valueFrom")
        return self

    def as_container_has_it(self) -> dict[str, Any]:
        """JSON."""
        if self.value_from is not None:
            return {"name": self.name, "valueFrom": dict(self.value_from)}
        return {"name": self.name, "value": self.value or ""}


class DnsConfig(TemplateValue):
    """As in a pod."""

    nameservers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[Mapping[str, str], ...] = ()


class SeLinuxOptions(TemplateValue):
    """As in a pod."""

    level: str | None = None
    role: str | None = None
    type: str | None = None
    user: str | None = None


class PodSecurity(TemplateValue):
    """The bits of a pod's security context that may differ from cluster to cluster. Root is never one of them."""

    run_as_user: int | None = Field(default=None, ge=1)
    run_as_group: int | None = Field(default=None, ge=1)
    fs_group: int | None = Field(default=None, ge=1)
    supplemental_groups: tuple[int, ...] = ()
    se_linux_options: SeLinuxOptions | None = None


class PodTemplate(TemplateValue):
    """What is added to one kind of pods. `env` and `runtime_class_name` change what a segment computes with, so they make other segments;
    the rest is for new pods only."""

    annotations: Words = Field(default_factory=dict)
    labels: Words = Field(default_factory=dict)
    priority_class_name: str = ""
    runtime_class_name: str = ""
    scheduler_name: str = ""
    dns_policy: Literal["", "ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"] = ""
    dns_config: DnsConfig | None = None
    env: tuple[Variable, ...] = ()
    image_pull_secrets: tuple[str, ...] = ()
    security_context: PodSecurity | None = None

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "PodTemplate":
        names = [variable.name for variable in self.env]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"env: {', '.join(twice)} is given more than once")
        if self.dns_policy == "None" and not (self.dns_config and self.dns_config.nameservers):
            raise ValueError("dnsPolicy None needs dnsConfig.nameservers")
        return self

    def over(self, defaults: "PodTemplate") -> "PodTemplate":
        """This template, with the defaults where it says nothing. Annotations, labels and variables are taken together, by name."""
        variables = {variable.name: variable for variable in (*defaults.env, *self.env)}
        return PodTemplate(
            annotations={**defaults.annotations, **self.annotations},
            labels={**defaults.labels, **self.labels},
            priority_class_name=self.priority_class_name or defaults.priority_class_name,
            runtime_class_name=self.runtime_class_name or defaults.runtime_class_name,
            scheduler_name=self.scheduler_name or defaults.scheduler_name,
            dns_policy=self.dns_policy or defaults.dns_policy,
            dns_config=self.dns_config or defaults.dns_config,
            env=tuple(variables.values()),
            image_pull_secrets=tuple(dict.fromkeys([*defaults.image_pull_secrets, *self.image_pull_secrets])),
            security_context=self.security_context or defaults.security_context,
        )


class PodTemplates(TemplateValue):
    """The templates of both kinds of pods."""

    segments: PodTemplate = PodTemplate()
    gateway: PodTemplate = PodTemplate()
