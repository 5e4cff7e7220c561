"""What a chain adds up to: a sum over its segments, hops and nodes, linear in the times; and combinations of such sums."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitinference.core.cost.objective import GIB
from splitinference.core.planner.chain.tables import Bools, Floats, Tables
from splitinference.core.values.problem import Goal


@dataclass(frozen=True)
class Criterion:
    """Weights of a sum: prefill and decode ms of segments by class, a constant per node visited and per segment, GiB moved, hops."""

    prefill: Floats
    decode: Floats
    entry: Floats
    per_use: Floats
    moved: float
    hop_prefill: float
    hop_decode: float

    def __add__(self, other: "Criterion") -> "Criterion":
        return Criterion(
            self.prefill + other.prefill,
            self.decode + other.decode,
            self.entry + other.entry,
            self.per_use + other.per_use,
            self.moved + other.moved,
            self.hop_prefill + other.hop_prefill,
            self.hop_decode + other.hop_decode,
        )

    def times(self, factor: float) -> "Criterion":
        """The same sum, weighted."""
        return Criterion(
            self.prefill * factor,
            self.decode * factor,
            self.entry * factor,
            self.per_use * factor,
            self.moved * factor,
            self.hop_prefill * factor,
            self.hop_decode * factor,
        )

    def only(self, classes: list[int]) -> "Criterion":
        """The same sum over these classes alone."""
        return Criterion(
            self.prefill[classes],
            self.decode[classes],
            self.entry[classes],
            self.per_use[classes],
            self.moved,
            self.hop_prefill,
            self.hop_decode,
        )

    def with_use(self, penalties: Floats, per_node: float = 0.0) -> "Criterion":
        """The same sum and a penalty for each use of a class, and for each node visited."""
        return Criterion(
            self.prefill,
            self.decode,
            self.entry + per_node,
            self.per_use + penalties,
            self.moved,
            self.hop_prefill,
            self.hop_decode,
        )


def sum_of(tables: Tables, *, prefill: float = 0.0, decode: float = 0.0, moved: float = 0.0) -> Criterion:
    """The sum of chain times: `prefill` of the prompt's, `decode` of a step's, both with their hops; `moved` per GiB."""
    n = tables.count
    return Criterion(np.full(n, prefill), np.full(n, decode), np.zeros(n), np.zeros(n), moved, prefill, decode)


def per_node(amount: Floats) -> Criterion:
    """The sum of an amount for each node visited, class by class."""
    nothing = np.zeros(len(amount))
    return Criterion(nothing, nothing, amount, nothing, 0.0, 0.0, 0.0)


def of_goal(tables: Tables, goal: Goal) -> Criterion | None:
    """The sum that `goal` is for one chain; None if it is not a sum."""
    load = tables.problem.workload
    n = tables.count
    match goal:
        case Goal.LATENCY:
            return sum_of(tables, prefill=1.0, decode=1.0)
        case Goal.ENERGY:
            joules = tables.watts / 1e3
            return Criterion(joules / load.output_tokens, joules / load.batch, np.zeros(n), np.zeros(n), 0.0, 0.0, 0.0)
        case Goal.COST:
            return per_node(tables.price)
        case Goal.MOVE:
            return sum_of(tables, moved=1.0)
        case _:
            return None


def stops(allowed: Sequence[Bools]) -> list[int]:
    """Per boundary: one past the last end of a segment from there that any class may hold."""
    ends = np.stack([mask.any(axis=0) for mask in allowed])
    last = ends.shape[1] - np.argmax(ends[:, ::-1], axis=1)
    return [int(n) for n in np.where(ends.any(axis=1), last, np.arange(1, len(last) + 1))]


class Arrays:
    """A criterion over tables: the cost of segments from a boundary, of hops over a boundary, of entering a class.

    `stop[a]` is one past the last end that any class may hold from boundary a: segments reach no further, so neither do the arrays.
    """

    def __init__(
        self,
        tables: Tables,
        criterion: Criterion,
        allowed: Sequence[Bools],
        hops: Sequence[Bools] | None = None,
        stop: Sequence[int] | None = None,
    ) -> None:
        self.tables = tables
        self.criterion = criterion
        self.allowed = allowed
        self.stop = stops(allowed) if stop is None else stop
        self._hops_open = hops
        self._base: Arrays | None = None
        self._penalties: Floats = np.zeros(0)
        self._kept: list[Floats | None] = [None] * len(self.stop)
        self._hops_at: list[Floats | None] = [None] * len(self.stop)
        self._keep = tables.count * sum(stop - a - 1 for a, stop in enumerate(self.stop)) * 8 < 120 * 2**20
        self._plain_hop: dict[int, Floats] = {}
        self._hop: dict[tuple[int, int], Floats] = {}
        self._less: Floats | None = None
        self._inside = (tables.node[:, None] == tables.node[None, :]) & tables.shares_node[None, :] if tables.shares_node.any() else None
        self._served = [
            (c, start, end)
            for start, end, name in sorted(set(tables.problem.serving))
            for c, members in enumerate(tables.members)
            if members[0][1].node.name == name and end <= tables.layers
        ]

    def segments_from(self, a: int) -> Floats:
        """Class by end: cost of segment [a, b) for b from a + 1 to before `stop[a]`, inf where it may not be."""
        kept = self._kept[a]
        if kept is not None:
            return kept
        cost = self._segments_from(a) if self._base is None else self._base.segments_from(a) + self._penalties
        if self._keep:
            self._kept[a] = cost
        return cost

    def _segments_from(self, a: int) -> Floats:
        t, c, ends = self.tables, self.criterion, slice(a + 1, self.stop[a])
        cost = c.prefill[:, None] * (t.prefill[:, ends] - t.prefill[:, a : a + 1])
        cost += c.decode[:, None] * (t.decode[:, ends] - t.decode[:, a : a + 1])
        cost += ((c.prefill + c.decode) * t.overhead + c.per_use)[:, None]
        if c.moved:
            cost += c.moved * t.weights[a, ends][None, :] / GIB
            for served, start, end in self._served:
                if start == a and end < self.stop[a]:
                    cost[served, end - a - 1] -= c.moved * t.weights[start, end] / GIB
        cost[~self.allowed[a][:, ends]] = np.inf
        return cost

    def segment(self, a: int, b: int, place: int) -> float:
        """Cost of one segment."""
        return float(self.segments_from(a)[place, b - a - 1])

    def hops(self, boundary: int) -> Floats:
        """Class by class: cost of the hop over an inner boundary, entering the next node included; inf where it may not be."""
        found = self._hops_at[boundary]
        if found is None:
            found = self._hops_at[boundary] = self._hops(boundary)
        return found

    def _hops(self, boundary: int) -> Floats:
        size = self.tables.tensor_bytes(boundary)
        if self._hops_open is None:
            return self._hops_of(size)
        mask = self._hops_open[boundary]
        found = self._hop.get((size, id(mask)))
        if found is None:
            found = self._hop[size, id(mask)] = np.where(mask, self._hops_of(size), np.inf)
        return found

    def with_use(self, penalties: Floats) -> "Arrays":
        """The same criterion and a penalty for each use of a class."""
        made = Arrays(self.tables, self.criterion.with_use(penalties), self.allowed, self._hops_open, self.stop)
        made._base, made._penalties, made._hops_at, made._plain_hop = self, penalties[:, None], self._hops_at, self._plain_hop
        made._less = self._less
        return made

    def lowered(self, less: Floats) -> "Arrays":
        """The same criterion with each hop cheaper by `less`, class by class."""
        made = Arrays(self.tables, self.criterion, self.allowed, self._hops_open, self.stop)
        made._base, made._penalties, made._kept = self._base, self._penalties, self._kept
        made._less = less if self._less is None else self._less + less
        return made

    def _hops_of(self, tensor_bytes: int) -> Floats:
        cost = self._plain_hop.get(tensor_bytes)
        if cost is None:
            cost = self._hop_cost(tensor_bytes, self.tables.links) + self.criterion.entry[None, :]
            if self._inside is not None:
                cost -= np.where(self._inside, self.criterion.entry[None, :], 0.0)
            cost[~self.tables.open_links] = np.inf
            single = np.flatnonzero(self.tables.multiplicity == 1)
            cost[single, single] = np.inf
            if self._less is not None:
                cost -= self._less
            self._plain_hop[tensor_bytes] = cost
        return cost

    def entering(self) -> Floats:
        """Per class: cost of the hop from the gateway and of entering the first node."""
        cost = self._hop_cost(self.tables.tensor_bytes(0), self.tables.ingress) + self.criterion.entry
        cost[~self.tables.open_ingress] = np.inf
        return cost if self._hops_open is None else np.where(self._hops_open[0][0], cost, np.inf)

    def _hop_cost(self, tensor_bytes: int, quality: tuple[Floats, Floats, Floats]) -> Floats:
        turn, there, back = quality
        prompt, step = self.tables.hop_terms
        wp, wd = self.criterion.hop_prefill, self.criterion.hop_decode
        forward = tensor_bytes * (wp * prompt.per_tensor_byte + wd * step.per_tensor_byte)
        forward += wp * prompt.message_bytes + wd * step.message_bytes
        return (wp + wd) * turn + forward * there + (wp * prompt.answer_bytes + wd * step.answer_bytes) * back


def hop_occupancy(tables: Tables, boundary: int) -> Floats:
    """Class by class (boundary 0: one row, from the gateway): how long a step takes the link of the hop over `boundary`."""
    load = tables.problem.workload
    share = load.batch / load.output_tokens
    prompt, step = tables.hop_terms
    _, there, back = tables.links if boundary else tables.ingress
    size = tables.tensor_bytes(boundary)
    forward = size * (step.per_tensor_byte + share * prompt.per_tensor_byte) + step.message_bytes + share * prompt.message_bytes
    taken = np.maximum(forward * there, (1.0 + share) * step.answer_bytes * back)
    return taken if boundary else taken[None, :]
