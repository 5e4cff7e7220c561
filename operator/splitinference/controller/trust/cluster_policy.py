"""What the cluster's administrator lets resources ask of nodes: folders to mount, and taints to tolerate. Nothing, unless settings say so.

The chart's ValidatingAdmissionPolicy refuses the same with the same rules when a resource is written; this holds where that is not
installed, and for resources of before.
"""

from collections.abc import Iterator

from splitinference.controller.api.sections.placement_spec import TolerationSpec
from splitinference.controller.api.spec import FieldProblem, Spec
from splitinference.settings import AllowedToleration, Settings


def violations(spec: Spec, settings: Settings) -> tuple[FieldProblem, ...]:
    """Each field that asks for more than is allowed, with what is."""
    return tuple(_violations(spec, settings))


def _violations(spec: Spec, settings: Settings) -> Iterator[FieldProblem]:
    sources = {"spec.model": spec.model.source} | {f"spec.adapters[{i}]": adapter.source for i, adapter in enumerate(spec.adapters)}
    for where, source in sources.items():
        if source.host_path is not None and not is_allowed_path(source.host_path.path, settings.allowed_host_paths):
            listed = ", ".join(settings.allowed_host_paths) or "none"
            message = f"{source.host_path.path} is not in a folder that policy.allowedHostPaths allows ({listed})"
            yield FieldProblem(path=f"{where}.source.hostPath.path", message=message)
    for index, toleration in enumerate(spec.placement.tolerations):
        if not any(_covers(allowed, toleration) for allowed in settings.allowed_tolerations):
            listed = "; ".join(map(str, settings.allowed_tolerations)) or "none"
            message = f"the toleration of {_in_words(toleration)} is not one that policy.allowedTolerations allows ({listed})"
            yield FieldProblem(path=f"spec.placement.tolerations[{index}]", message=message)


def is_allowed_path(path: str, allowed: tuple[str, ...]) -> bool:
    """Whether the path is one of these folders or in one: whole components count, and none may be `.` or `..`."""
    parts = path.split("/")
    if not path.startswith("/") or ".." in parts or "." in parts:
        return False
    return any(path == folder.rstrip("/") or path.startswith(folder.rstrip("/") + "/") for folder in allowed)


def _covers(allowed: AllowedToleration, asked: TolerationSpec) -> bool:
    """Whether what is asked tolerates no taint that is not tolerated by what is allowed."""
    if allowed.key and allowed.key != asked.key:
        return False
    if allowed.operator == "Equal" and (asked.operator != "Equal" or asked.value != allowed.value):
        return False
    return not allowed.effect or asked.effect == allowed.effect


def _in_words(toleration: TolerationSpec) -> str:
    key = toleration.key or "every taint"
    value = f"={toleration.value}" if toleration.operator == "Equal" else ""
    return f"{key}{value}" + (f":{toleration.effect}" if toleration.effect else "")
