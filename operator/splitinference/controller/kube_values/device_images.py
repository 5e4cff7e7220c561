"""The images of segments on devices, by the class of the device and the model's engine."""

from splitinference.core.values.profile import Engine
from splitinference.settings import Settings
from splitinference.settings.devices import ClassImage, rule_for


def resource_of(processor: str) -> str:
    """The resource of a device's place, whose name is `<resource>/<number>`; empty for a CPU."""
    return processor.rpartition("/")[0]


def class_of(processor: str, settings: Settings) -> str:
    """The class of a device's place; empty for a CPU, and for resources without a rule."""
    rule = rule_for(resource_of(processor), settings.device_rules) if processor else None
    return rule.kind if rule is not None else ""


def image_of(kind: str, engine: Engine, settings: Settings) -> ClassImage | None:
    """The image of a class of devices; None where there is none, as for llama.cpp, which is built for CPUs. Tests may compute on the CPU
    instead, with its image."""
    found = settings.segment_images_by_class.get(kind) if engine is Engine.TORCH else None
    if found is None and settings.devices_compute_on_cpu:
        return ClassImage(image=settings.segment_llama_cpp_image if engine is Engine.LLAMA_CPP else settings.segment_image)
    return found


def no_image(kind: str, settings: Settings) -> str:
    """Why devices of a class cannot be used by any model, in words; empty where they can."""
    if any(image_of(kind, engine, settings) is not None for engine in Engine):
        return ""
    return f"no segment image for class {kind}; set `images.segment.byClass.{kind}` in the chart"
