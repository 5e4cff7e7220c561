"""What a node can compute, and where that is from: a label wins over what was measured here, that over the catalogue's figures of its
product, and these over the settings' defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitinference.catalogue import extended
from splitinference.controller.cluster_state.figures.node_benchmark import MEASURED, Record
from splitinference.controller.cluster_state.figures.node_metrics import GPU, PREFIX, processor_of
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.ports import Manifest
from splitinference.core.cost.fitting.catalogue import Nominal
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from splitinference.settings import Settings

PRODUCTS = (f"{PREFIX}processor-product", "nvidia.com/gpu.product")
"""Labels that name a node's GPUs; the first one wins."""
ENGINE = "torch"
"""The engine that segments compute with, as the catalogue names it."""
LAUNCH = f"{PREFIX}layer-launch-ms"
"""Label of what every layer takes besides its products, on the whole node when idle."""
MOST_LAUNCH_MS = 1e4
USUAL = "bfloat16"
"""The data type of a spec that says none."""
_DOUBTFUL = 2.0
"""A label that differs from what was measured by more than this factor is doubted, though it counts."""


@dataclass(frozen=True)
class Capacity:
    """GFLOP/s and GB/s, where these come from, GFLOP/s by data type where only measured ones are known, and what is to be said."""

    gflops: float
    gbps: float
    basis: str
    by_dtype: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    efficiency: Efficiency = field(default_factory=Efficiency)


def capacity_of(
    node: Manifest,
    gflops: float | None,
    gbps: float | None,
    cores: float,
    settings: Settings,
    *,
    launch_ms: float | None = None,
    gpu: bool | None = None,
) -> Capacity:
    """`gflops`, `gbps` and `launch_ms` are what labels say. Zero is as good as none, but a launch may take nothing. `gpu`: whether the node
    computes with GPUs that no segment requests; None: as its label says.

    What was measured of launches counts with the measured bandwidth only: a label's bandwidth may be that of whole layers."""
    record = node.get(MEASURED)
    rates = record.rate(USUAL) if isinstance(record, Record) else None
    prior = None if gflops or gbps or rates or not (processor_of(node) == GPU if gpu is None else gpu) else _prior(node, settings)
    if prior is not None:
        nominal, efficiency = prior
        return Capacity(nominal.flops_per_s / 1e9, nominal.memory_bandwidth_bytes_per_s / 1e9, "catalogue", efficiency=efficiency)
    name, least = node["metadata"]["name"], max(cores, 0.001)
    compute, by = _first(gflops, rates.gflops if rates else None, least * settings.core_gflops)
    bandwidth, other = _first(gbps, rates.gbps if rates else None, least * settings.core_memory_bandwidth_gbps)
    by_dtype = {}
    if by == "measured" and isinstance(record, Record):
        by_dtype = {dtype: found.gflops * 1e9 for dtype, found in record.rates.items() if found.gflops != compute}
    notes = [
        f"a label says {said:g} {unit} of node {name}, where {found:g} were measured: the label is used"
        for said, found, unit in ((gflops, rates and rates.gflops, "GFLOP/s"), (gbps, rates and rates.gbps, "GB/s"))
        if said and found and not 1 / _DOUBTFUL <= said / found <= _DOUBTFUL
    ]
    launch = _launch_ms(launch_ms, rates.launch_ms if rates and other == "measured" else 0.0, str(name), notes)
    basis = by if by == other else " and ".join(sorted({by, other}))
    return Capacity(compute, bandwidth, basis, by_dtype, tuple(notes), with_launch(launch))


def with_launch(milliseconds: float) -> Efficiency:
    """All of the figures is reached, and each layer takes so much besides, in a prefill as in a decode step."""
    phase = PhaseEfficiency(launch_ms=milliseconds)
    return Efficiency(prefill=phase, decode=phase)


def _launch_ms(labelled: float | None, measured: float, name: str, notes: list[str]) -> float:
    if labelled is not None and labelled > MOST_LAUNCH_MS:
        notes.append(f"{LAUNCH} of node {name} is {labelled:g}, more than {MOST_LAUNCH_MS:g}: {measured:g} is taken")
        return measured
    return measured if labelled is None else labelled


def _prior(node: Manifest, settings: Settings) -> tuple[Nominal, Efficiency] | None:
    """What the catalogue says of one of the node's GPUs; None for unknown products."""
    labels = labels_of(node)
    product = next((labels[key] for key in PRODUCTS if labels.get(key)), None)
    return extended(settings.catalogue_folder).prior(product, ENGINE) if product else None


def _first(labelled: float | None, measured: float | None, assumed: float) -> tuple[float, str]:
    if labelled:
        return labelled, "labelled"
    return (measured, "measured") if measured else (assumed, "assumed")
