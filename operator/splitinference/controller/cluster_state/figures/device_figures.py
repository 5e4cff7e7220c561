"""What one device can do: its memory, FLOP/s and bytes/s, from labels of its node, the chart's rules and the catalogue, in this order.

Slices of a GPU (MIG) and shares of one (time-slicing, MPS) are parts of the whole product's figures.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from splitinference.catalogue import extended
from splitinference.controller.cluster_state.figures.node_metrics import PREFIX, positive_number
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.ports import Manifest
from splitinference.core.cost.fitting.catalogue import Nominal
from splitinference.core.values.efficiency import Efficiency
from splitinference.settings import Settings
from splitinference.settings.devices import SHARED, DeviceRule

ENGINE = "torch"
MIB = 2**20
FULL_PRECISION = "float32"
FULL_PRECISION_SHARE = 1 / 16
"""FLOP/s in float32 over those in 16 bits where nobody says them: the least of the products whose figures are known (A100)."""
DOUBTFUL = 1.25
"""A label that says this many times a product's memory is not believed."""
_MOST_BYTES = 2**50
_MOST_SHARES = 1000
_MIG = re.compile(r"mig-(?:(?P<c>[1-9]\d?)c\.)?(?P<g>[1-9]\d?)g\.(?P<gb>[1-9]\d{0,3})gb(?![0-9a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Unusable:
    """Why no segment can be planned for a device, in words."""

    why: str


@dataclass(frozen=True)
class Figures:
    """Of one device, slice or share. `basis`: where the speeds come from, in words; `notes`: what was odd."""

    memory_bytes: int
    flops_per_s: float
    bytes_per_s: float
    basis: str
    efficiency: Efficiency = field(default_factory=Efficiency)
    by_dtype: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Profile:
    """A MIG profile: compute slices and gigabytes."""

    slices: int
    gigabytes: int


@dataclass(frozen=True)
class _Part:
    """Which part of a whole product it is."""

    compute: float = 1.0
    memory: float = 1.0


@dataclass(frozen=True)
class _Whole:
    """The product's own figures."""

    flops_per_s: float
    bytes_per_s: float
    basis: str
    efficiency: Efficiency
    by_dtype: Mapping[str, float]


def figures_of(node: Manifest, resource: str, rule: DeviceRule, count: int, settings: Settings) -> Figures | Unusable:
    """What one of the node's `count` devices of this resource can do."""
    look = _Look(node, resource, rule, count, settings)
    profile, shares = look.profile(), look.shares()
    if isinstance(profile, Unusable):
        return profile
    if isinstance(shares, Unusable):
        return shares
    part, whole, memory = look.part(profile), look.speeds(), look.memory(profile)
    for found in (part, whole, memory):
        if isinstance(found, Unusable):
            return found
    assert isinstance(part, _Part) and isinstance(whole, _Whole) and not isinstance(memory, Unusable)  # noqa: S101, PT018 - as above
    look.compare_count(shares)
    compute, bandwidth = part.compute / shares, part.memory / shares
    return Figures(
        memory_bytes=int(memory / shares),
        flops_per_s=whole.flops_per_s * compute,
        bytes_per_s=whole.bytes_per_s * bandwidth,
        basis=whole.basis,
        efficiency=whole.efficiency,
        by_dtype={dtype: found * compute for dtype, found in whole.by_dtype.items()},
        notes=tuple(look.notes),
    )


def _read_profile(text: str) -> _Profile | None:
    found = _MIG.search(text)
    return None if found is None else _Profile(int(found["c"] or found["g"]), int(found["gb"]))


class _Look:
    """One look at the devices of one resource; `notes` collects what was odd."""

    def __init__(self, node: Manifest, resource: str, rule: DeviceRule, count: int, settings: Settings) -> None:
        self._node, self._resource, self._rule, self._count, self._settings = node, resource, rule, count, settings
        self._labels, self._prefix = labels_of(node), resource.removesuffix(SHARED)
        self.notes: list[str] = []
        names = (self._labels.get(rule.label(label, resource)) for label in rule.product_labels)
        self._said = next((name for name in names if name), "") or self._labels.get(f"{PREFIX}processor-product", "") or rule.product
        self._product = re.sub(r"-MIG-.*$", "", self._said.removesuffix("-SHARED"))
        self._nominal: Nominal | None = extended(settings.catalogue_folder).nominal(self._product) if self._product else None

    def profile(self) -> _Profile | Unusable | None:
        """The MIG profile of the resource or of its product label; None for whole GPUs."""
        named, labelled = _read_profile(self._resource), _read_profile(self._said)
        if named is not None and labelled is not None and named != labelled:
            return Unusable(f"labels contradict it: they say {self._said}. After a change of profile GPU feature discovery must run again")
        if named is None and labelled is None and ("/mig-" in self._resource or "-MIG-" in self._said):
            return Unusable(
                "its name and labels show no MIG profile such as 1g.10gb; add a rule with its figures to the chart's `devices.rules`"
            )
        return named or labelled

    def shares(self) -> int | Unusable:
        """How many pods share one device or slice."""
        text, strategy = self._labels.get(f"{self._prefix}.replicas", ""), self._labels.get(f"{self._prefix}.sharing-strategy", "none")
        replicas = int(text) if text.isdecimal() else 0
        if not (self._resource.endswith(SHARED) or self._said.endswith("-SHARED") or strategy != "none"):
            return max(1, min(replicas, _MOST_SHARES))
        if not 1 <= replicas <= _MOST_SHARES:
            says = repr(text) if text else "not there"
            return Unusable(f"several pods share it, and the label {self._prefix}.replicas, which says how many, is {says}")
        return replicas

    def part(self, profile: _Profile | None) -> _Part | Unusable:
        """The slice's part of the product."""
        nominal, product = self._nominal, self._product
        if profile is None or self._ruled():
            return _Part()
        if nominal is None or nominal.slices is None or nominal.memory_bytes is None:
            return Unusable(
                f"it is a slice of {product or 'an unknown product'}, and the catalogue does not say how that is cut into slices"
            )
        if profile.slices > nominal.slices:
            return Unusable(f"labels contradict it: it has {profile.slices} slices, and {product} has {nominal.slices}")
        return _Part(profile.slices / nominal.slices, min(1.0, profile.gigabytes * 1e9 / nominal.memory_bytes))

    def _ruled(self) -> bool:
        """Whether a rule says both speeds of the resource itself."""
        return bool(self._rule.gflops and self._rule.gbps)

    def speeds(self) -> _Whole | Unusable:
        """Labels over the rule, and that over the catalogue."""
        node, rule, nominal = self._node, self._rule, self._nominal
        about = self._labels, node["metadata"].get("annotations") or {}
        where = f"node {node['metadata']['name']}"
        gflops = positive_number(*about, f"{PREFIX}device-gflops", self.notes, where)
        gbps = positive_number(*about, f"{PREFIX}device-memory-bandwidth-gbps", self.notes, where)
        by = {"labelled": bool(gflops or gbps), "rule": bool((rule.gflops and not gflops) or (rule.gbps and not gbps))}
        compute, bandwidth = (gflops or rule.gflops or 0.0) * 1e9, (gbps or rule.gbps or 0.0) * 1e9
        if compute and bandwidth:
            return _Whole(compute, bandwidth, _basis(by), Efficiency(), {})
        if nominal is None:
            what = f"its product {self._product} is not in the catalogue" if self._product else "no label says its product"
            return Unusable(f"{what}; extend the catalogue, or add a rule with its figures to the chart's `devices.rules`")
        prior = extended(self._settings.catalogue_folder).prior(self._product, ENGINE)
        efficiency = prior[1] if prior is not None and not compute and not bandwidth else Efficiency()
        by_dtype = {} if compute else {FULL_PRECISION: nominal.flops_per_s * FULL_PRECISION_SHARE, **nominal.flops_by_dtype}
        basis = _basis({**by, "catalogue": True})
        return _Whole(compute or nominal.flops_per_s, bandwidth or nominal.memory_bandwidth_bytes_per_s, basis, efficiency, by_dtype)

    def memory(self, profile: _Profile | None) -> float | Unusable:
        """Bytes of one device, before it is shared. Where a label and the product contradict each other, the smaller figure counts."""
        key, rule = self._rule.label(self._rule.memory_label, self._resource), self._rule
        said = self._labels.get(key, "") if rule.memory_label else ""
        labelled = self._bytes(said)
        if said and labelled is None:
            self.notes.append(f"the label {key} is {said!r}, which is no amount of memory: it is ignored")
        known = self._nominal.memory_bytes if self._nominal is not None else None
        if profile is not None:
            known = min(known or _MOST_BYTES, int(profile.gigabytes * 1e9))
        if rule.memory_mib is not None:
            known = int(rule.memory_mib * MIB)
        if labelled is not None and known is not None and labelled > DOUBTFUL * known:
            says = f"the label {key} says {labelled / MIB:.0f} MiB of {self._resource}, and it has {known / MIB:.0f}"
            self.notes.append(f"{says}: the smaller figure is used")
            return known
        found = labelled or known
        return Unusable("nothing says how much memory it has") if found is None else found

    def _bytes(self, text: str) -> float | None:
        amount = quantity(text) if text else None
        if amount is None:
            return None
        found = float(amount) * self._rule.memory_unit / (max(1, self._count) if self._rule.memory_of_all else 1)
        return found if MIB <= found <= _MOST_BYTES else None

    def compare_count(self, shares: int) -> None:
        """What labels say of the number is compared, and the node's own number counts."""
        text, name = self._labels.get(f"{self._prefix}.count", ""), self._node["metadata"]["name"]
        if text.isdecimal() and int(text) * shares != self._count:
            said = f"labels say {int(text) * shares} of {self._resource} on node {name}, and it has {self._count}"
            self.notes.append(f"{said}: its own number counts")


def _basis(by: Mapping[str, bool]) -> str:
    return " and ".join(name for name, counts in by.items() if counts)
