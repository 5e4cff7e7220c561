"""The flow through runs of layers, fast: what the judge's cost model says of them, by OR-Tools' maximum flow.

Figures are steps of the batch per millisecond. A place that holds a run passes as many as its stage can; a link as many as its
bandwidth; a request goes from a run that ends where another starts. The judge looks at the plan afterwards.
"""

from collections.abc import Sequence

import numpy as np
from ortools.graph.python import max_flow

from splitinference.core.cost.site import Site
from splitinference.core.planner.chain.criterion import hop_occupancy
from splitinference.core.planner.chain.tables import Floats, Tables

_WHOLE = 2.0**40
"""The largest capacity in the solver's whole numbers."""
_FINE = 200
"""Of more classes rates are kept in half the memory; the judge computes the plan's own."""
Held = tuple[int, int, int]
"""A place (its number) and the layers [start, end) that it holds."""


class Flows:
    """All places of a problem with the rates of their runs and links."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.places: list[tuple[int, Site]] = [(c, site) for c, members in enumerate(tables.members) for _, site in members]
        self.number = {(site.node.name, site.processor): n for n, (_, site) in enumerate(self.places)}
        self.kind = np.array([c for c, _ in self.places], dtype=np.int64)
        self.partial = tables.problem.constraints.partial_runs
        self._rates: dict[int, Floats] = {}
        self._links: dict[int, Floats] = {}
        self.ingress: Floats = np.where(tables.open_ingress, 1.0 / hop_occupancy(tables, 0)[0], 0.0)

    def rates_from(self, a: int) -> Floats:
        """Class by end: steps per ms of run [a, b); 0 where it may not be."""
        if a not in self._rates:
            t = self.tables
            found = np.divide(1.0, t.occupancy_from(a), out=np.zeros((t.count, t.layers + 1)), where=t.allowed_from(a))
            self._rates[a] = found if t.count <= _FINE else found.astype(np.float32)
        return self._rates[a]

    def rate(self, held: Held) -> float:
        """Steps per ms of one run."""
        return float(self.rates_from(held[1])[self.kind[held[0]], held[2]])

    def links(self, boundary: int) -> Floats:
        """Class by class: steps per ms over an inner boundary; 0 where the link is not allowed."""
        size = self.tables.tensor_bytes(boundary)
        if size not in self._links:
            self._links[size] = np.where(self.tables.open_links, 1.0 / hop_occupancy(self.tables, boundary), 0.0)
        return self._links[size]

    def follows(self, end: int, run: Held) -> bool:
        """Whether a request that has passed `end` layers may go on with `run`."""
        return run[1] == end or (self.partial and run[1] < end < run[2])

    def value(self, runs: Sequence[Held]) -> float:
        """Steps per ms through the runs."""
        count, layers = len(runs), self.tables.layers
        if not count:
            return 0.0
        start, end = np.array([r[1] for r in runs]), np.array([r[2] for r in runs])
        place = self.kind[[r[0] for r in runs]]
        own = np.array([self.rate(r) for r in runs])
        after = start[None, :] == end[:, None]
        if self.partial:
            after |= (start[None, :] < end[:, None]) & (end[:, None] < end[None, :])
        np.fill_diagonal(after, val=False)
        source, target = np.nonzero(after)
        over = np.zeros(len(source))
        for boundary in np.unique(end[source]):
            some = end[source] == boundary
            over[some] = self.links(int(boundary))[place[source[some]], place[target[some]]]
        first, last = np.flatnonzero(start == 0), np.flatnonzero(end == layers)
        if not len(first) or not len(last):
            return 0.0
        tails = np.concatenate([2 * np.arange(count), 2 * source + 1, np.full(len(first), 2 * count), 2 * last + 1])
        heads = np.concatenate([2 * np.arange(count) + 1, 2 * target, 2 * first, np.full(len(last), 2 * count + 1)])
        total = float(own.sum())
        if total <= 0:
            return 0.0
        room = np.concatenate([own, over, self.ingress[place[first]], np.full(len(last), total)])
        unit = _WHOLE / total
        graph = max_flow.SimpleMaxFlow()
        graph.add_arcs_with_capacity(tails, heads, np.minimum(room * unit, _WHOLE).astype(np.int64))
        graph.solve(2 * count, 2 * count + 1)
        return float(graph.optimal_flow()) / unit
