"""Labels of the search: chains so far that ended at one boundary, packed into few arrays so that choosing some of them is cheap."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitinference.core.planner.chain.tables import Bools, Floats, Ints

_FLOATS, _INTS = 6, 4


@dataclass(frozen=True)
class Labels:
    """Labels that ended at one boundary, row by row.

    `floats`: cost under prices, plain cost, slowest stage or link, peak utilization, ms of work on the last node, bound; then the
    sums that are limited. `ints`: nodes and segments so far, the last class, the label's own number. `taken`: bits of single
    places, `counts`: how many are used of classes with several.
    """

    floats: Floats
    ints: Ints
    taken: NDArray[np.uint64]
    counts: NDArray[np.int16]

    @property
    def priced(self) -> Floats:
        """Cost so far under the prices."""
        return self.floats[:, 0]

    @property
    def plain(self) -> Floats:
        """Cost so far."""
        return self.floats[:, 1]

    @property
    def occupancy(self) -> Floats:
        """The slowest stage or link so far."""
        return self.floats[:, 2]

    @property
    def utilization(self) -> Floats:
        """The highest utilization so far."""
        return self.floats[:, 3]

    @property
    def busy(self) -> Floats:
        """Work of a request on the last node."""
        return self.floats[:, 4]

    @property
    def bound(self) -> Floats:
        """What a whole chain that goes on from here costs at least."""
        return self.floats[:, 5]

    @property
    def sums(self) -> Floats:
        """Label by limited sum: how much of it is used."""
        return self.floats[:, _FLOATS:]

    @property
    def nodes(self) -> Ints:
        """Nodes visited."""
        return self.ints[:, 0]

    @property
    def segments(self) -> Ints:
        """Segments placed."""
        return self.ints[:, 1]

    @property
    def last(self) -> Ints:
        """The class of the last segment, -1 at the gateway."""
        return self.ints[:, 2]

    @property
    def identity(self) -> Ints:
        """The label's number in the search."""
        return self.ints[:, 3]

    def __len__(self) -> int:
        return len(self.ints)

    def pick(self, chosen: NDArray[np.intp] | Bools | slice) -> "Labels":
        """These labels alone, in this order."""
        return Labels(self.floats[chosen], self.ints[chosen], self.taken[chosen], self.counts[chosen])

    @staticmethod
    def root(sums: int, words: int, several: int) -> "Labels":
        """The one label of a chain that has not begun."""
        floats, ints = np.zeros((1, _FLOATS + sums)), np.zeros((1, _INTS), dtype=np.int64)
        floats[0, 5], ints[0, 2], ints[0, 3] = -np.inf, -1, -1
        return Labels(floats, ints, np.zeros((1, words), dtype=np.uint64), np.zeros((1, several), dtype=np.int16))

    @staticmethod
    def join(parts: list["Labels"]) -> "Labels":
        """All labels of the parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return Labels(
            np.concatenate([p.floats for p in parts]),
            np.concatenate([p.ints for p in parts]),
            np.concatenate([p.taken for p in parts]),
            np.concatenate([p.counts for p in parts]),
        )
