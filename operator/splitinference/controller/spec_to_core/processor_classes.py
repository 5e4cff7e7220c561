"""Which classes of processors a resource's segments may use, and why not others."""

from collections.abc import Mapping

from splitinference.controller.api.spec import FieldProblem, Spec
from splitinference.controller.kube_values.device_images import image_of
from splitinference.core.values.profile import Engine
from splitinference.settings import Settings
from splitinference.settings.devices import CPU_CLASS


def barred(spec: Spec, engine: Engine, settings: Settings) -> Mapping[str, str]:
    """By class why no segment of this resource may use it, in words."""
    wanted = spec.placement.processor_classes
    found = {}
    for kind in sorted({CPU_CLASS, *settings.device_classes}):
        if wanted and kind not in wanted:
            found[kind] = f"spec.placement.processorClasses asks for {', '.join(wanted)}"
        elif kind != CPU_CLASS and spec.verification is not None:
            found[kind] = "spec.verification compares what CPUs compute; no tolerance was measured for devices"
        elif kind != CPU_CLASS and image_of(kind, engine, settings) is None:
            found[kind] = f"no segment image of class {kind} has the engine {engine.value}"
    return found


def unknown_class(spec: Spec, settings: Settings) -> FieldProblem | None:
    """A class that no known resource and no rule is of: no node can ever have it."""
    known = {CPU_CLASS, *settings.device_classes}
    for index, kind in enumerate(spec.placement.processor_classes):
        if kind not in known:
            message = f"no device is of class {kind!r}; known classes are {', '.join(sorted(known))}"
            return FieldProblem(path=f"spec.placement.processorClasses[{index}]", message=message)
    return None
