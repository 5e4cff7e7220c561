"""What a segment's container requests: CPU and memory, and the device that its plan gives it."""

from collections.abc import Mapping
from dataclasses import dataclass

from splitinference.controller.kube_values.device_images import class_of, image_of, resource_of
from splitinference.controller.manifests.pod_parts import ObjectBody
from splitinference.core.values.profile import Engine
from splitinference.settings import Settings

MIB = 2**20


@dataclass(frozen=True)
class DeviceNeeds:
    """What a segment on a device has besides: its image and RuntimeClass, the extended resource, and memory of the node for its server."""

    resource: str
    image: str
    runtime_class: str | None
    variables: Mapping[str, str]
    host_bytes: int
    limit_bytes: int


def device_needs(engine: Engine, processor: str, memory_bytes: int, settings: Settings) -> DeviceNeeds | None:
    """None for a segment on a CPU. `memory_bytes`: what it takes of the device's memory. A device whose rule or image is gone since the
    plan was made has the image for CPUs: the next plan replaces its segment."""
    if not processor:
        return None
    kind = class_of(processor, settings)
    found = image_of(kind, engine, settings)
    plain = settings.segment_llama_cpp_image if engine is Engine.LLAMA_CPP else settings.segment_image
    host = settings.segment_device_host_mib * MIB
    on_cpu = settings.devices_compute_on_cpu
    return DeviceNeeds(
        resource=resource_of(processor),
        image=found.image if found is not None else plain,
        runtime_class=(found.runtime_class_name or None) if found is not None else None,
        variables={"SI_DEVICE": "cpu" if on_cpu else kind or "cuda"},
        host_bytes=host,
        limit_bytes=host + (memory_bytes if on_cpu else 0),
    )


def resources_of(memory_bytes: int, device: DeviceNeeds | None, settings: Settings) -> ObjectBody:
    """Requests and limits. Kubernetes takes whole devices, with the same number as request and limit."""
    requests = {"cpu": settings.segment_cpu_request, "memory": str(memory_bytes)}
    limits = {"memory": str(memory_bytes)}
    if device is not None:
        requests |= {"memory": str(device.host_bytes), device.resource: "1"}
        limits |= {"memory": str(device.limit_bytes), device.resource: "1"}
    if settings.segment_cpu_limit:
        limits["cpu"] = settings.segment_cpu_limit
    return {"requests": requests, "limits": limits}
