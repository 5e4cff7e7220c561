"""One row of the corpus."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.modelfiles import tables


@dataclass(frozen=True)
class Case:
    """One model. `refused`: words of the reason, nothing where it is served. `numbers`: its published count of parameters, where known."""

    name: str
    config: Mapping[str, Any]
    refused: str = ""
    numbers: int | None = None
    positions: int | None = None
    shapes: tables.Shapes = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
