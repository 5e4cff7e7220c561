"""Settings of devices: which extended resources are processors, what computes on them, and what a segment there needs besides."""

import re
from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings

_RESOURCE = re.compile(r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?|([A-Za-z0-9][-A-Za-z0-9_.]*)?\*)$")
_CLASS = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
CPU_CLASS = "cpu"
MOST_RULES = 64
SHARED = ".shared"
"""What NVIDIA's device plugin appends to the name of a resource that several pods share."""
_PLACE = "{resource}"


class DeviceRule(BaseModel):
    """What an extended resource is. `resource` may end with `*`: any name that starts so. The first rule that fits counts.

    `class`: what its segments are built for, such as cuda. `product` and the figures: of one whole device, where labels do not say it.
    `product_labels`, `memory_label`: node labels that say it, the first one that is there; `{resource}` stands for the resource's name
    without `.shared`. `memory_unit`: bytes that the number of the memory label counts. `memory_of_all`: that number is of all devices of
    the node together. `gflops`: 10^9 operations of matrix products in 16 bits per second; `gbps`: 10^9 bytes per second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    resource: str = Field(max_length=317)
    kind: str = Field(alias="class", pattern=_CLASS, max_length=40)
    product: str = Field(default="", max_length=253)
    product_labels: tuple[str, ...] = ()
    memory_label: str = ""
    memory_unit: int = Field(default=1, ge=1)
    memory_of_all: bool = False
    memory_mib: float | None = Field(default=None, gt=0, le=2**30)
    gflops: float | None = Field(default=None, gt=0, le=1e9)
    gbps: float | None = Field(default=None, gt=0, le=1e9)
    ignore: bool = Field(default=False, description="the resource is no processor of its own")

    @field_validator("resource")
    @classmethod
    def _is_an_extended_resource(cls, value: str) -> str:
        if not _RESOURCE.match(value):
            raise ValueError(f"{value!r} is no extended resource, such as example.com/npu")
        if re.search(r"(^|\.)kubernetes\.io$", value.partition("/")[0]):
            raise ValueError(f"{value!r}: resources of kubernetes.io are no devices")
        return value

    @field_validator("kind")
    @classmethod
    def _is_no_cpu(cls, value: str) -> str:
        if value == CPU_CLASS:
            raise ValueError(f"the class {CPU_CLASS} is that of the nodes themselves; no device has it")
        return value

    def fits(self, resource: str) -> bool:
        """Whether the rule is about this resource."""
        return resource.startswith(self.resource[:-1]) if self.resource.endswith("*") else resource == self.resource

    def label(self, label: str, resource: str) -> str:
        """The name of a label of this resource's devices."""
        return label.replace(_PLACE, resource.removesuffix(SHARED))


class ClassImage(BaseModel):
    """The segment image of a class of devices, and what its pods need besides."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)

    image: str = Field(min_length=1)
    runtime_class_name: str = Field(default="", max_length=253)


class DeviceSettings(BaseSettings):
    """Devices of nodes, such as GPUs."""

    device_rules: tuple[DeviceRule, ...] = Field(
        default=(),
        max_length=MOST_RULES,
        description=(
            "Extended resources that are processors, as a JSON list. They come before the known ones. [Devices](devices.md) has the fields."
        ),
    )
    segment_images_by_class: dict[str, ClassImage] = Field(
        default={},
        description=(
            "Segment images for devices, as a JSON object: a class (`cuda`, `rocm`, `xpu`, `gaudi`, `neuron`, or one of `device_rules`) "
            "and an object with `image` and perhaps `runtimeClassName`. Devices of a class without an image are not used. GGUF models "
            "compute on CPUs alone."
        ),
    )
    segment_device_host_mib: int = Field(
        default=2048,
        ge=64,
        description=(
            "Memory of the node in MiB that a segment on a device requests. Weights and KV cache are in the device's memory. 2048: an "
            "estimate for Triton, torch and the driver's context. It was not measured on a GPU."
        ),
    )
    device_grace_seconds: float = Field(
        default=60.0,
        ge=0,
        description=(
            "Time that a device may be missing from its node before a segment leaves it. A device plugin that starts anew takes its "
            "devices away for some seconds, and pods that hold one go on."
        ),
    )
    devices_compute_on_cpu: bool = Field(
        default=False,
        description=(
            "For tests with devices that do not exist. Segments request their device and compute on the CPU. A class without an image "
            "gets the image for CPUs. Memory limits then also cover the weights, but requests do not."
        ),
    )

    @field_validator("segment_images_by_class")
    @classmethod
    def _classes_are_words(cls, value: Mapping[str, ClassImage]) -> Mapping[str, ClassImage]:
        for name in value:
            if not re.match(_CLASS, name):
                raise ValueError(f"class {name!r}: small letters, digits and dashes are allowed")
            if name == CPU_CLASS:
                raise ValueError(f"class {CPU_CLASS}: its image is that of all segments without a device (segment_image)")
        return value

    @model_validator(mode="after")
    def _plans_request_devices(self) -> Self:
        """What every segment requested would make plans wrong, and fractions of devices are no requests."""
        more: Mapping[str, Any] = getattr(self, "segment_resources", None) or {}
        for part in ("requests", "limits"):
            for resource, amount in (more.get(part) or {}).items():
                if rule_for(resource, self.device_rules) is not None:
                    raise ValueError(
                        f"segment_resources.{part}: {resource} is {amount}. Plans decide which segments request devices, always whole"
                    )
        return self

    @property
    def device_classes(self) -> frozenset[str]:
        """Classes that some known resource or rule is of."""
        return frozenset(rule.kind for rule in (*self.device_rules, *KNOWN)) | self.segment_images_by_class.keys()


_GFD = {"kind": "cuda", "memory_label": "{resource}.memory", "memory_unit": 2**20}
_AMD_LABELS = ("amd.com/gpu.product-name", "beta.amd.com/gpu.product-name")
_XPU = {"kind": "xpu", "product_labels": ("gpu.intel.com/product",), "memory_label": "gpu.intel.com/memory.max", "memory_of_all": True}
KNOWN: tuple[DeviceRule, ...] = (
    DeviceRule.model_validate({**_GFD, "resource": "nvidia.com/gpu", "product_labels": ("{resource}.product",)}),
    DeviceRule.model_validate({**_GFD, "resource": "nvidia.com/gpu.shared", "product_labels": ("{resource}.product",)}),
    DeviceRule.model_validate({**_GFD, "resource": "nvidia.com/mig-*", "product_labels": ("{resource}.product", "nvidia.com/gpu.product")}),
    DeviceRule(resource="amd.com/gpu", kind="rocm", product_labels=_AMD_LABELS, memory_label="amd.com/gpu.vram"),
    DeviceRule.model_validate({**_XPU, "resource": "gpu.intel.com/i915"}),
    DeviceRule.model_validate({**_XPU, "resource": "gpu.intel.com/xe"}),
    DeviceRule(resource="gpu.intel.com/*", kind="xpu", ignore=True),
    DeviceRule(resource="habana.ai/gaudi", kind="gaudi"),
    DeviceRule(resource="aws.amazon.com/neuron", kind="neuron"),
    DeviceRule(resource="aws.amazon.com/neuroncore", kind="neuron", ignore=True),
    DeviceRule(resource="aws.amazon.com/neurondevice", kind="neuron", ignore=True),
)
"""Resources of the vendors' device plugins. Monitoring resources and Neuron's cores are no devices of their own."""
VENDORS = ("nvidia.com", "amd.com", "gpu.intel.com", "habana.ai", "aws.amazon.com")
"""Whose other resources are shown as unknown devices."""


def rule_for(resource: str, own: tuple[DeviceRule, ...] = ()) -> DeviceRule | None:
    """The rule about this resource, a rule of one's own first; None where there is none."""
    return next((rule for rule in (*own, *KNOWN) if rule.fits(resource)), None)
