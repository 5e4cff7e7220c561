"""docs/reference/devices.md from known resources, fields of rules and the catalogue: `python -m tests.devices_reference` writes it."""

from collections.abc import Iterator
from pathlib import Path

from splitinference.catalogue import built_in
from splitinference.core.cost.fitting.catalogue import Nominal
from splitinference.settings.devices import KNOWN, DeviceRule

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "devices.md"
FIELDS = {
    "resource": "Name of the extended resource. A `*` at its end stands for any ending. The first rule that fits counts.",
    "class": "What images of segments are built for. `images.segment.byClass` names them.",
    "ignore": "`true`: the resource is no device of its own.",
    "product": "Name of the product in the catalogue, where no label says it.",
    "productLabels": "Node labels that say the product. The first one that a node has counts.",
    "memoryLabel": "Node label that says the memory of one device.",
    "memoryUnit": "Bytes that the number in this label counts, by default 1. The value may also be a quantity such as 64G.",
    "memoryOfAll": "`true`: the label says the memory of all devices of the node together.",
    "memoryMib": "Memory of one device in MiB, where no label says it.",
    "gflops": "10^9 operations a second of matrix products in 16 bits, of one device.",
    "gbps": "Memory bandwidth of one device in 10^9 bytes a second.",
}
HEAD = """# Devices

`python -m tests.devices_reference` writes this page. [Use GPUs](../how-to/gpus.md) is the guide.

A device is one of a node's extended resources. Plans name a device's place `<resource>/<number>`, such as `nvidia.com/gpu/0`.
The kubelet chooses which of the equal devices a pod gets, so the number only counts them. The place without a name is the node's CPU.

## Known resources

"""
RULES = """
`{resource}` in a label stands for the name of the resource without `.shared`.
Of `nvidia.com`, `amd.com`, `gpu.intel.com`, `habana.ai` and `aws.amazon.com`, other resources are shown as unknown devices.

## Rules of your own

`devices.rules` of the chart is a list of rules. They come before the known ones.

"""
FIGURES = """
## Where figures come from

| figure | first | then | then | otherwise |
|---|---|---|---|---|
| FLOP/s | label `splitinference.dev/device-gflops` | the rule | the catalogue | not used |
| bytes/s | label `splitinference.dev/device-memory-bandwidth-gbps` | the rule | the catalogue | not used |
| memory | the memory label | the rule | the catalogue, or the profile of a MIG slice | not used |

- Labels are for nodes whose devices are all alike. While a plan serves, measured step times also correct the figures, for each device.
- A label that says more than 1.25 times the memory of the rule, product or profile is not believed. The smaller figure counts, with a note.
- FLOP/s in float32 are a sixteenth of those in 16 bits where the catalogue does not say them. That is the ratio of the A100.
- A MIG slice has its share of the product's compute slices and memory. `7` in the table below: the GPU has seven compute slices.
- Shared devices (time-slicing, MPS) count as equal shares, by the label `<resource>.replicas`.
- The numbers of devices that labels say are compared with the node's own. The node's own number counts.

## The catalogue

Nominal figures, dense. A ConfigMap adds products: `catalogue.configMap` of the chart.
[The cost model](../concepts/cost-model.md#the-catalogue) has the format.

| product | TFLOP/s, 16 bits | float32 | GB/s | memory, GB | slices | sources |
|---|---:|---:|---:|---:|---:|---|
"""


def rendered() -> str:
    """The page."""
    known = "".join(f"{line}\n" for line in _known())
    rules = "| field | meaning |\n|---|---|\n" + "".join(f"| `{name}` | {words} |\n" for name, words in FIELDS.items())
    products = "".join(f"{_product(name, nominal)}\n" for name, nominal in sorted(built_in().processors.items()))
    return HEAD + known + RULES + rules + FIGURES + products


def _known() -> Iterator[str]:
    yield "| resource | class | product label | memory label |"
    yield "|---|---|---|---|"
    for rule in KNOWN:
        kind = "not a device of its own" if rule.ignore else f"`{rule.kind}`"
        yield f"| `{rule.resource}` | {kind} | {_labels(rule)} | {_memory(rule)} |"


def _labels(rule: DeviceRule) -> str:
    return ", ".join(f"`{label}`" for label in rule.product_labels)


def _memory(rule: DeviceRule) -> str:
    if not rule.memory_label:
        return ""
    unit = {1: "bytes or a quantity", 2**20: "MiB"}[rule.memory_unit]
    return f"`{rule.memory_label}`, {unit}{', of all devices together' if rule.memory_of_all else ''}"


def _product(name: str, nominal: Nominal) -> str:
    full = nominal.flops_by_dtype.get("float32")
    cells = [
        name,
        f"{nominal.flops_per_s / 1e12:g}",
        f"{full / 1e12:g}" if full else "",
        f"{nominal.memory_bandwidth_bytes_per_s / 1e9:g}",
        f"{nominal.memory_bytes / 1e9:g}" if nominal.memory_bytes else "",
        str(nominal.slices or ""),
        "; ".join(filter(None, (nominal.source, nominal.more_source))),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(rendered())
