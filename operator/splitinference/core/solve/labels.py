"""Labels of the search, column by column: chains so far that ended at one boundary."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitinference.core.solve.tables import Bools, Floats, Ints


@dataclass
class Labels:
    """Labels that ended at one boundary, column by column."""

    priced: Floats
    plain: Floats
    sums: Floats
    occupancy: Floats
    utilization: Floats
    busy: Floats
    nodes: Ints
    segments: Ints
    taken: NDArray[np.uint64]
    counts: NDArray[np.int16]
    last: Ints
    identity: Ints
    bound: Floats

    def pick(self, chosen: NDArray[np.intp] | Bools) -> "Labels":
        """These labels alone, in this order."""
        return Labels(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @staticmethod
    def join(parts: list["Labels"]) -> "Labels":
        """All labels of the parts, in order."""
        return parts[0] if len(parts) == 1 else Labels(
            *(np.concatenate([getattr(p, name) for p in parts]) for name in Labels.__dataclass_fields__)
        )  # fmt: skip
