"""A problem as arrays: places grouped into classes of equals, what each layer takes there, and what each hop takes.

Two places are equal if no plan can tell them apart: same capacity, rules and links. A search that treats them as one class with
a multiplicity loses nothing and is spared their permutations.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.cost.link import MESSAGE_BYTES, bytes_per_token
from splitinference.core.cost.predict import added_watts
from splitinference.core.cost.site import Site
from splitinference.core.cost.stage import adapter_bytes, batch_levels, layer_cost, reserved_sequences
from splitinference.core.planner.chain.classes import equal_places, link_qualities, speed
from splitinference.core.values.problem import Problem

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


_AT_ONCE = 2_000_000
"""Figures that are computed in one array; more would only fill memory."""
_PER_CLASS = ("prefill", "decode", "overhead", "price", "watts", "others", "free", "bad")
_PER_PAIR = ("links", "ingress", "open_links", "open_ingress")


@dataclass(frozen=True)
class HopTerms:
    """Milliseconds of a hop as a sum: `turns` * half of both RTTs + bytes * inverse bandwidth there + bytes * inverse bandwidth back."""

    turns: float
    per_tensor_byte: float
    message_bytes: float
    answer_bytes: float


class Tables:
    """The arrays of one problem. Index c: class of equal places; a, b: boundaries 0..L; all times in ms."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layers = len(problem.profile.layers)
        self.unusable = {n.name: reason for n in problem.snapshot.nodes if (reason := unusable(n, problem))}
        usable = tuple(node for node in problem.snapshot.nodes if node.name not in self.unusable)
        self._qualities, kinds = link_qualities(problem, usable)
        self.members = equal_places(problem, usable, kinds)
        first = [m[0] for m in self.members]
        self.sites: list[Site] = [site for _, site in first]
        self.count = len(first)
        self.multiplicity: Ints = np.array([len(m) for m in self.members], dtype=np.int64)
        names = {name: number for number, name in enumerate(dict.fromkeys(site.node.name for site in self.sites))}
        self.node: Ints = np.array([names[site.node.name] for site in self.sites], dtype=np.int64)
        self.shares_node: Bools = np.array([bool(site.node.processors) for site in self.sites], dtype=bool)
        self._number: Ints = np.array([number for number, _ in first], dtype=np.int64)
        self._kinds = kinds

    def only(self, classes: list[int]) -> "Tables":
        """The same tables with these classes alone, in this order."""
        part = object.__new__(Tables)
        part.__dict__.update({k: v for k, v in self.__dict__.items() if k not in (*_PER_CLASS, *_PER_PAIR, "_prefix", "_by_batch")})
        part.__dict__.update({k: self.__dict__[k][classes] for k in _PER_CLASS if k in self.__dict__})
        grid = np.ix_(classes, classes)
        if "links" in self.__dict__:
            part.__dict__["links"] = tuple(matrix[grid] for matrix in self.links)
        if "ingress" in self.__dict__:
            part.__dict__["ingress"] = tuple(row[classes] for row in self.ingress)
        if "open_links" in self.__dict__:
            part.__dict__["open_links"] = self.open_links[grid]
        if "open_ingress" in self.__dict__:
            part.__dict__["open_ingress"] = self.open_ingress[classes]
        part.members = [self.members[c] for c in classes]
        part.sites = [self.sites[c] for c in classes]
        part.count = len(classes)
        part.multiplicity, part.node = self.multiplicity[classes], self.node[classes]
        part.shares_node, part._number = self.shares_node[classes], self._number[classes]
        return part

    @cached_property
    def prefill(self) -> Floats:
        """Prefix sums over layers, class by boundary, of the prompt's time."""
        return self._prefix[0]

    @cached_property
    def decode(self) -> Floats:
        """Prefix sums over layers, class by boundary, of one decode step's time."""
        return self._prefix[1]

    @cached_property
    def _prefix(self) -> tuple[Floats, Floats]:
        prefill, decode = np.zeros((self.count, self.layers + 1)), np.zeros((self.count, self.layers + 1))
        known: dict[tuple[object, ...], tuple[list[float], list[float]]] = {}
        for c, site in enumerate(self.sites):
            node = site.node
            key = (*speed(site), node.layer_times, site.processor)
            if key not in known or node.layer_times:
                costs = self._layer_costs(site)
                known[key] = ([p for p, _ in costs], [d for _, d in costs])
            np.cumsum(known[key][0], out=prefill[c, 1:])
            np.cumsum(known[key][1], out=decode[c, 1:])
        return prefill, decode

    def _layer_costs(self, site: Site) -> list[tuple[float, float]]:
        workload, cache, result = self.problem.workload, {}, []
        for layer in self.problem.profile.layers:
            same = (layer.kind, layer.weight_bytes, layer.read_bytes_per_token, layer.quantized_weights, layer.flops_per_token,
                    layer.flops_per_token_and_context, layer.kv_bytes_per_token,
                    layer.index if site.node.layer_times else None)  # fmt: skip
            if same not in cache:
                cost = layer_cost(layer, site, workload)
                cache[same] = (cost.prefill_ms, cost.decode_ms)
            result.append(cache[same])
        return result

    @cached_property
    def overhead(self) -> Floats:
        """Per class: server overhead of one step."""
        return np.array([site.node.stage_overhead_ms for site in self.sites])

    @cached_property
    def price(self) -> Floats:
        """Per class: cost per hour of its node."""
        return np.array([site.node.cost_per_hour for site in self.sites])

    @cached_property
    def draw(self) -> Floats:
        """Watts that each class's node draws while it works."""
        return np.array([site.node.busy_watts for site in self.sites])

    @cached_property
    def watts(self) -> Floats:
        """Per class: watts that work adds."""
        return np.array([added_watts(site) for site in self.sites])

    @cached_property
    def others(self) -> Floats:
        """Per class: utilization by others, 0 where unknown."""
        return np.array([site.node.utilization or 0.0 for site in self.sites])

    @cached_property
    def free(self) -> Ints:
        """Per class: bytes of free memory."""
        return np.array([site.memory_bytes for site in self.sites], dtype=np.int64)

    @cached_property
    def _held(self) -> Ints:
        """Bytes of weights of segment [a, b), boundary by boundary: a tied copy inside counts once; 0 where there is no such segment."""
        layers = self.problem.profile.layers
        so_far = np.cumsum([0, *(layer.weight_bytes for layer in layers)], dtype=np.int64)
        held = so_far[None, :] - so_far[:, None]
        for layer in layers:
            if layer.tied_to is not None:
                held[: min(layer.index, layer.tied_to) + 1, max(layer.index, layer.tied_to) + 1 :] -= layer.tied_bytes
        return np.triu(held, 1)

    @cached_property
    def need(self) -> Ints:
        """Bytes that segment [a, b) needs; boundary by boundary; huge where there is no such segment. As `memory_bytes` has it."""
        return self._need(reserved_sequences(self.problem.workload))

    def _need(self, sequences: int) -> Ints:
        """The same with KV of so many sequences."""
        profile, workload = self.problem.profile, self.problem.workload
        tokens = sequences * workload.max_context_tokens
        cache = np.cumsum([0, *(layer.kv_bytes_per_token for layer in profile.layers)], dtype=np.int64) * tokens
        net = self._held + (cache[None, :] - cache[:, None]) + profile.runtime_bytes
        if workload.adapter_bytes:
            each = [adapter_bytes(profile, workload.adapter_bytes, i, i + 1) for i in range(len(profile.layers))]
            adapters = np.cumsum([0, *each], dtype=np.int64)
            net += adapters[None, :] - adapters[:, None]
        need = np.ceil(net * (1.0 + self.problem.constraints.memory_margin)).astype(np.int64)
        need[np.tril_indices(self.layers + 1)] = np.iinfo(np.int64).max
        return need

    @cached_property
    def weights(self) -> Floats:
        """Bytes of weights of segment [a, b)."""
        return self._held.astype(float)

    @cached_property
    def points(self) -> Bools:
        """Per boundary: whether a segment may start or end there."""
        allowed = self.problem.constraints.split_points
        points = np.ones(self.layers + 1, dtype=bool)
        if allowed is not None:
            points[1 : self.layers] = False
            points[list(allowed)] = True
        return points

    @cached_property
    def bad(self) -> Ints:
        """Prefix sums of the layers that trust or pins forbid, class by boundary."""
        bounds = self.problem.constraints
        bad = np.zeros((self.count, self.layers + 1), dtype=np.int64)
        if bounds.pins or bounds.trust:
            for c, site in enumerate(self.sites):
                row = [forbidden(site.node, layer, bounds) is not None for layer in range(self.layers)]
                np.cumsum(row, out=bad[c, 1:])
        return bad

    def allowed_from(self, a: int) -> Bools:
        """Class by boundary: whether segment [a, b) may be there by memory, trust, pins, split points and utilization ceiling."""
        fits: Bools = (self.need[a][None, :] <= self.free[:, None]) & (self.bad == self.bad[:, a : a + 1]) & self.points[None, :]
        fits &= np.arange(self.layers + 1)[None, :] > a
        if not self.points[a]:
            fits[:] = False
        ceiling = self.problem.constraints.utilization_ceiling
        if ceiling is not None:
            fits &= self.utilization_from(a) <= ceiling * (1 + 1e-9)
        return fits

    def allowed(self) -> list[Bools]:
        """`allowed_from` for every boundary; of few places all at once, which is quicker."""
        bounds = self.problem.constraints
        if bounds.utilization_ceiling is not None or self.count * (self.layers + 1) ** 2 > _AT_ONCE:
            return [self.allowed_from(a) for a in range(self.layers + 1)]
        fits = self.need[:, None, :] <= self.free[None, :, None]
        if bounds.pins or bounds.trust:
            fits &= self.bad[None, :, :] == self.bad.T[:, :, None]
        if bounds.split_points is not None:
            fits &= self.points[:, None, None] & self.points[None, None, :]
        return list(fits)

    @cached_property
    def _by_batch(self) -> list[tuple[int, Ints, Floats]]:
        """Where memory limits batches: each one with the bytes that segments need for it, and prefix sums of its step's time."""
        found = []
        for batch in batch_levels(self.problem.workload):
            load = self.problem.workload.model_copy(update={"batch": batch, "batch_by_memory": False})
            other = Tables.__new__(Tables)
            other.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("_prefix", "prefill", "decode", "_by_batch")})
            other.problem = self.problem.model_copy(update={"workload": load})
            found.append((batch, self._need(batch), other.decode))
        return found

    def busy_from(self, a: int) -> Floats:
        """Class by boundary: ms of work that a request brings to segment [a, b)."""
        load = self.problem.workload
        if load.batch_by_memory:
            return self._busy_by_memory(a)
        factor = load.output_tokens / load.batch
        work = (self.prefill - self.prefill[:, a : a + 1]) + factor * (self.decode - self.decode[:, a : a + 1])
        return work + (self.overhead * (1.0 + factor))[:, None]

    def _busy_by_memory(self, a: int) -> Floats:
        """The same where a segment steps as many sequences as its memory holds."""
        tokens, found = self.problem.workload.output_tokens, np.zeros((self.count, self.layers + 1))
        for batch, need, decode in self._by_batch:
            steps = tokens / batch
            work = self.prefill - self.prefill[:, a : a + 1] + steps * (decode - decode[:, a : a + 1])
            work += (self.overhead * (1.0 + steps))[:, None]
            fits = need[a][None, :] <= self.free[:, None]
            found = work if batch == 1 else np.where(fits, work, found)
        return found

    def utilization_from(self, a: int) -> Floats:
        """Class by boundary: utilization of the node after placing segment [a, b) alone on it, with all requests."""
        share = np.minimum(1.0, self.problem.workload.requests_per_s * self.busy_from(a) / 1e3)
        return np.minimum(1.0, self.others[:, None] + (1.0 - self.others)[:, None] * share)

    def occupancy_from(self, a: int) -> Floats:
        """Class by boundary: how long a step takes segment [a, b)."""
        load = self.problem.workload
        return self.busy_from(a) * (load.batch / load.output_tokens)

    @cached_property
    def hop_terms(self) -> tuple[HopTerms, HopTerms]:
        """The hop's terms for the prompt and for a decode step."""
        load = self.problem.workload
        prompt = HopTerms(1.0, float(load.prompt_tokens), MESSAGE_BYTES, MESSAGE_BYTES)
        return prompt, HopTerms(1.0, float(load.batch), MESSAGE_BYTES, MESSAGE_BYTES)

    def tensor_bytes(self, boundary: int) -> int:
        """Bytes of one token's tensor over `boundary`."""
        return bytes_per_token(self.problem, boundary)

    def _quality(self, there: NDArray[np.int32], back: NDArray[np.int32]) -> tuple[Floats, Floats, Floats]:
        rtt = np.array([q.rtt_ms for q, _ in self._qualities])
        inverse = np.array([1e3 / q.bandwidth_bytes_per_s for q, _ in self._qualities])
        return (rtt[there] + rtt[back]) / 2.0, inverse[there], inverse[back]

    def _within(self, c: int) -> int:
        """Kind of link between two places of one class: inside a node for processors, else between two members."""
        members = self.members[c]
        return int(self._kinds[members[0][0], members[min(1, len(members) - 1)][0]])

    @cached_property
    def links(self) -> tuple[Floats, Floats, Floats]:
        """Class by class: half of both RTTs, inverse bandwidth there and back (ms per byte); the diagonal is between two members."""
        there = self._between()
        return self._quality(there, there.T)

    def _between(self) -> NDArray[np.int32]:
        there = self._kinds[np.ix_(self._number, self._number)]
        there[np.arange(self.count), np.arange(self.count)] = [self._within(c) for c in range(self.count)]
        return there

    @cached_property
    def ingress(self) -> tuple[Floats, Floats, Floats]:
        """Per class: the same for the hop from the gateway."""
        return self._quality(self._kinds[-1, self._number], self._kinds[self._number, -1])

    @cached_property
    def open_links(self) -> Bools:
        """Class by class: whether a hop may go there, and keeps the minimum bandwidth."""
        least = self.problem.constraints.min_bandwidth_bytes_per_s
        _, there, back = self.links
        way: Bools = np.array([is_open for _, is_open in self._qualities])[self._between()]
        return way if least is None else way & (np.maximum(there, back) <= 1e3 / least * (1 + 1e-12))

    @cached_property
    def open_ingress(self) -> Bools:
        """Per class: whether requests may enter there."""
        return np.asarray(np.array([is_open for _, is_open in self._qualities])[self._kinds[-1, self._number]])
