"""What is known of processor products before anything is measured here: nominal figures, and by engine what is reached of them."""

import math
from collections.abc import Mapping
from statistics import median

from pydantic import Field, model_validator

from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from splitinference.core.values.value import Value

LEAST_FOREIGN_SPREAD = 0.5
"""Least spread of figures that another engine reached on the product: engines differ by this much where both were measured."""
_SHARES = ("compute", "bandwidth", "attention")


class Nominal(Value):
    """What the maker says of one processor: FLOP/s in 16 bits without sparsity, and bytes/s; `source`: who says so.

    `memory_bytes`: None where it is not known, or the product has several sizes; `flops_by_dtype`: FLOP/s of data types that differ;
    `slices`: compute slices that it can be cut into (NVIDIA's multi-instance GPU), None where it is not known or cannot be cut;
    `more_source`: who says these three.
    """

    flops_per_s: float = Field(gt=0)
    memory_bandwidth_bytes_per_s: float = Field(gt=0)
    source: str
    aliases: tuple[str, ...] = Field(
        default=(), description="other names of the product, such as values of the label nvidia.com/gpu.product"
    )
    memory_bytes: int | None = Field(default=None, gt=0)
    flops_by_dtype: Mapping[str, float] = Field(default_factory=dict)
    slices: int | None = Field(default=None, ge=1, le=64)
    more_source: str = ""

    @model_validator(mode="after")
    def _figures_are_positive(self) -> "Nominal":
        if wrong := [dtype for dtype, figure in self.flops_by_dtype.items() if not 0 < figure < math.inf]:
            raise ValueError(f"flops_by_dtype: {wrong[0]} must be above 0")
        return self


class Entry(Value):
    """What one engine reaches on one product, fitted from `rows` measured rows."""

    processor: str = Field(min_length=1)
    engine: str = Field(min_length=1)
    rows: int = Field(ge=1)
    efficiency: Efficiency


class CatalogueFile(Value):
    """Products and entries that add to a catalogue; an entry's product may be one that the catalogue knows already."""

    processors: Mapping[str, Nominal] = Field(default_factory=dict)
    entries: tuple[Entry, ...] = ()


class Catalogue(CatalogueFile):
    """Products by name, and entries by product and engine."""

    @model_validator(mode="after")
    def _agree(self) -> "Catalogue":
        known = set()
        for entry in self.entries:
            if entry.processor not in self.processors:
                raise ValueError(f"entry {entry.processor!r}, {entry.engine!r}: no processor has this name")
            if (entry.processor, entry.engine) in known:
                raise ValueError(f"entry {entry.processor!r}, {entry.engine!r} occurs twice")
            known.add((entry.processor, entry.engine))
        names = [name for product, nominal in self.processors.items() for name in (product, *nominal.aliases)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: named by two processors")
        return self

    def with_more(self, more: CatalogueFile) -> "Catalogue":
        """With products and entries that replace those of the same name (and engine). Raises ValueError where they do not agree."""
        named = [entry.model_copy(update={"processor": self.name_of(entry.processor) or entry.processor}) for entry in more.entries]
        own = {(entry.processor, entry.engine) for entry in named}
        kept = [entry for entry in self.entries if (entry.processor, entry.engine) not in own]
        return Catalogue(processors={**self.processors, **more.processors}, entries=(*kept, *named))

    def name_of(self, product: str) -> str | None:
        """The catalogue's name of a product, which may be given by an alias; None where it is not known."""
        if product in self.processors:
            return product
        return next((name for name, nominal in self.processors.items() if product in nominal.aliases), None)

    def nominal(self, product: str) -> Nominal | None:
        """Nominal figures of a product, which may be given by an alias; None where it is not known."""
        name = self.name_of(product)
        return None if name is None else self.processors[name]

    def prior(self, product: str, engine: str) -> tuple[Nominal, Efficiency] | None:
        """Nominal figures and efficiency of a product with an engine; None where the product or every engine on it is unknown.

        Where only other engines were measured on it, the medians of their figures count. Their spread is then at least
        LEAST_FOREIGN_SPREAD, and the source says which engines these were.
        """
        name = self.name_of(product)
        found = [entry for entry in self.entries if entry.processor == name]
        if name is None or not found:
            return None
        own = next((entry.efficiency for entry in found if entry.engine == engine), None)
        return self.processors[name], own or typical(found, f"for {engine or 'an engine'} taken from")


def typical(entries: list[Entry], words: str = "typical of") -> Efficiency:
    """The medians of several entries' figures, with the widest of their spreads. Raises ValueError where there is none."""
    if not entries:
        raise ValueError("no entry is given")
    known = [entry.efficiency for entry in entries]
    rates = [e.dequantized_per_s for e in known if e.dequantized_per_s is not None]
    who = sorted({f"{entry.engine} on {entry.processor}" for entry in entries})
    return Efficiency(
        prefill=_middle([e.prefill for e in known]),
        decode=_middle([e.decode for e in known]),
        dequantized_per_s=median(rates) if rates else None,
        source=f"{words} {', '.join(who)}"[:300],
    )


def _middle(phases: list[PhaseEfficiency]) -> PhaseEfficiency:
    shares = {name: math.exp(median(math.log(getattr(phase, name)) for phase in phases)) for name in _SHARES}
    spread = max([LEAST_FOREIGN_SPREAD, *(phase.spread for phase in phases if phase.spread is not None)])
    return PhaseEfficiency(**shares, launch_ms=median(phase.launch_ms for phase in phases), spread=spread)
