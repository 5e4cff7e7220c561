"""What clusters and users want of our pods beyond what they do: applied last, to a pod that is otherwise complete.

Resources of every container, opt-outs of service meshes, hints for what drains nodes, and the templates of `spec.podTemplate`.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from splitinference.controller.api.pod_values import PodTemplate, PodTemplates, word
from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.pod_parts import ObjectBody
from splitinference.settings import Settings


class PodKind(StrEnum):
    """Whose pod it is. Jobs read or fetch a model and end."""

    SEGMENTS = "segments"
    GATEWAY = "gateway"
    JOBS = "jobs"


NO_MESH_ANNOTATIONS = {
    "sidecar.istio.io/inject": "false",
    "linkerd.io/inject": "disabled",
    "consul.hashicorp.com/connect-inject": "false",
    "kuma.io/sidecar-injection": "disabled",
}
NO_MESH_LABELS = {"sidecar.istio.io/inject": "false", "istio.io/dataplane-mode": "none", "kuma.io/sidecar-injection": "disabled"}
SAFE_TO_EVICT = "cluster-autoscaler.kubernetes.io/safe-to-evict"
DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"


def template_of(resource: Resource, settings: Settings, kind: PodKind, runtime_class: str | None = None) -> PodTemplate:
    """The resource's template over the cluster's defaults. `runtime_class`: what a rule of privacy asks for, which wins over both.
    Raises ValueError where the defaults make no sense."""
    defaults, own = PodTemplates.model_validate(settings.pod_template), resource.spec.pod_template
    ruled = {"runtime_class_name": runtime_class} if runtime_class else {}
    if kind is PodKind.GATEWAY:
        return own.gateway.over(defaults.gateway).model_copy(update=ruled)
    found = own.segments.over(defaults.segments)
    # A job computes nothing, so it needs no runtime of its own; but it may need a proxy, which variables name.
    return found.model_copy(update=ruled if kind is PodKind.SEGMENTS else {"runtime_class_name": ""})


def content_of(template: PodTemplate) -> dict[str, Any]:
    """What of a template changes what a segment computes with; empty where it says nothing, so that its name stays as it was."""
    found: dict[str, Any] = {}
    if template.env:
        found["env"] = [variable.as_container_has_it() for variable in template.env]
    if template.runtime_class_name:
        found["runtimeClass"] = template.runtime_class_name
    return found


def finish(pod: ObjectBody, resource: Resource, settings: Settings, kind: PodKind, runtime_class: str | None = None) -> ObjectBody:
    """The pod, or a Deployment's pod template, with all that. It is changed in place and returned. `runtime_class` as in `template_of`."""
    template = template_of(resource, settings, kind, runtime_class)
    about, spec = pod.setdefault("metadata", {}), pod["spec"]
    opted_out = kind.value in settings.mesh_opt_outs
    annotations = {**(NO_MESH_ANNOTATIONS if opted_out else {}), **_disruption(settings, kind), **template.annotations}
    labels = {**(NO_MESH_LABELS if opted_out else {}), **template.labels}
    # What the operator set itself wins: its keys are reserved, and Prometheus' annotations name our ports.
    about["annotations"] = {**annotations, **(about.get("annotations") or {})}
    about["labels"] = {**labels, **(about.get("labels") or {})}
    _resources(spec, settings, kind)
    for field, value in (
        ("priorityClassName", template.priority_class_name),
        ("runtimeClassName", template.runtime_class_name),
        ("schedulerName", template.scheduler_name),
        ("dnsPolicy", template.dns_policy),
    ):
        if value:
            spec[field] = value
    if template.dns_config is not None:
        spec["dnsConfig"] = _dns(template, spec.get("dnsConfig") or {})
    if template.env:
        added = [variable.as_container_has_it() for variable in template.env]
        for container in (spec["containers"][0], *(spec.get("initContainers") or [])):
            container["env"] = [*(container.get("env") or []), *added]
    names = [*(secret["name"] for secret in spec.get("imagePullSecrets") or []), *template.image_pull_secrets]
    if names:
        spec["imagePullSecrets"] = [{"name": name} for name in dict.fromkeys(names)]
    _secure(spec, template)
    return pod


def _disruption(settings: Settings, kind: PodKind) -> dict[str, str]:
    """What autoscalers are told. A job may be stopped at any time."""
    found: dict[str, str] = {}
    if kind is PodKind.JOBS:
        found[SAFE_TO_EVICT] = "true"
    elif settings.safe_to_evict:
        found[SAFE_TO_EVICT] = settings.safe_to_evict
    if settings.do_not_disrupt and kind is not PodKind.JOBS:
        found[DO_NOT_DISRUPT] = "true"
    return found


def _resources(spec: ObjectBody, settings: Settings, kind: PodKind) -> None:
    """Requests and limits as the settings have them, beside or instead of those that were computed."""
    main = {PodKind.SEGMENTS: settings.segment_resources, PodKind.GATEWAY: settings.gateway_resources}.get(kind, settings.job_resources)
    for container, more in (
        *((container, main) for container in spec["containers"]),
        *((container, settings.job_resources) for container in spec.get("initContainers") or []),
    ):
        container["resources"] = _merged(container.get("resources") or {}, more)


def _merged(computed: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in ("requests", "limits"):
        values = {**(computed.get(part) or {}), **{name: str(word(value)) for name, value in (more.get(part) or {}).items()}}
        if values:
            found[part] = values
    return found


def _dns(template: PodTemplate, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The user's DNS configuration; our option `ndots` stays unless the user sets it."""
    given = template.dns_config
    assert given is not None  # noqa: S101 - what the caller has checked
    options: Sequence[Mapping[str, Any]] = [*given.options]
    options = [*options, *(option for option in ours.get("options") or [] if option["name"] not in {o.get("name") for o in options})]
    found: dict[str, Any] = {"options": [dict(option) for option in options]}
    found |= {"nameservers": list(given.nameservers)} if given.nameservers else {}
    return found | ({"searches": list(given.searches)} if given.searches else {})


def _secure(spec: ObjectBody, template: PodTemplate) -> None:
    if (given := template.security_context) is not None:
        spec["securityContext"] = {
            **spec.get("securityContext", {}),
            **given.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True),
        }
