"""The circuit model's variables: places as optional nodes of a circuit, the runs of layers they hold, and what bounds both."""

import math
from itertools import pairwise
from typing import Any

from splitinference.core.cost.checks.eligible import forbidden
from splitinference.core.cost.link import Links
from splitinference.core.cost.site import Site
from splitinference.core.cost.stage import adapter_bytes, layer_cost, memory_bytes, utilization_after
from splitinference.core.planner.columns import cp_sat
from splitinference.core.planner.columns.heuristics import places
from splitinference.core.values.cluster import LinkQuality
from splitinference.core.values.problem import Problem

SLACK = 1e-9


class CircuitRoute:
    """Places on a circuit through the gateway, each with a run of layers; `problem` must be one that `circuit.covers`."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.layers = problem, len(problem.profile.layers)
        self.sites = places(problem)
        self.links = Links(problem.snapshot.network, problem.snapshot.nodes)
        self.model = cp_sat.Model()
        count, m = len(self.sites), self.model
        self.used = [m.new_bool_var(f"used:{n}") for n in range(count)]
        self.start = [m.new_int_var(0, self.layers, f"start:{n}") for n in range(count)]
        self.end = [m.new_int_var(0, self.layers, f"end:{n}") for n in range(count)]
        self.arcs: dict[tuple[int, int], Any] = {}
        self._prefixes = [self._prefix(site) for site in self.sites]
        self._runs()
        self._route()
        self.groups = self._groups()
        self.held = [self._held(n) for n in range(count)]
        for number, (a, b) in enumerate(self.groups):
            m.add(sum(held[number] for held in self.held) == b - a)
        self._room()
        self._counts()

    def _prefix(self, site: Site) -> tuple[list[float], list[float]]:
        """Prefix sums over layers of the prompt's and of a step's time."""
        prompt, step = [0.0], [0.0]
        for layer in self.problem.profile.layers:
            cost = layer_cost(layer, site, self.problem.workload)
            prompt.append(prompt[-1] + cost.prefill_ms)
            step.append(step[-1] + cost.decode_ms)
        return prompt, step

    def _groups(self) -> list[tuple[int, int]]:
        """Runs of layers that follow each other and cost the same everywhere: how many of each a place holds says what it takes."""
        layers = self.problem.profile.layers
        measured = any(site.node.layer_times for site in self.sites)
        cuts = [0]
        for number, (before, after) in enumerate(pairwise(layers), start=1):
            figures = [(layer.kind, layer.weight_bytes, layer.read_bytes_per_token, layer.quantized_weights, layer.flops_per_token,
                        layer.flops_per_token_and_context, layer.kv_bytes_per_token) for layer in (before, after)]  # fmt: skip
            if figures[0] != figures[1] or measured:
                cuts.append(number)
        return list(pairwise([*cuts, self.layers]))

    def _held(self, n: int) -> list[Any]:
        """How many layers of each group the place holds."""
        result = []
        for a, b in self.groups:
            within = []
            for figure in (self.start[n], self.end[n]):
                above, inside = self.model.new_int_var(a, self.layers, ""), self.model.new_int_var(a, b, "")
                self.model.add_max_equality(above, [figure, a])
                self.model.add_min_equality(inside, [above, b])
                within.append(inside)
            held = self.model.new_int_var(0, b - a, "")
            self.model.add(held == within[1] - within[0])
            self.model.add(held <= (b - a) * self.used[n])
            result.append(held)
        self.model.add(sum(result) == self.end[n] - self.start[n])
        return result

    def _room(self) -> None:
        """Memory once more, as a sum: implied by the runs, but the relaxation sees it. Tied copies count once at most."""
        profile, load = self.problem.profile, self.problem.workload
        tied = sum(layer.tied_bytes for layer in profile.layers if layer.tied_to is not None)
        tokens = load.max_concurrent_sequences * load.max_context_tokens
        for n, site in enumerate(self.sites):
            room = math.floor(site.memory_bytes / (1.0 + self.problem.constraints.memory_margin)) + 1 + tied - profile.runtime_bytes
            each = [
                profile.layers[a].weight_bytes
                + profile.layers[a].kv_bytes_per_token * tokens
                + adapter_bytes(profile, load.adapter_bytes, a, a + 1)
                for a, _ in self.groups
            ]
            self.model.add(sum(held * (size >> 10) for held, size in zip(self.held[n], each, strict=True)) <= (max(room, 0) >> 10) + 1)

    def _may_hold(self, n: int, a: int, b: int) -> bool:
        site, bounds = self.sites[n], self.problem.constraints
        if memory_bytes(self.problem, a, b) > site.memory_bytes:
            return False
        if bounds.utilization_ceiling is None:
            return True
        after = utilization_after(site, self._busy(n, a, b), self.problem.workload.requests_per_s)
        return after <= bounds.utilization_ceiling * (1 + SLACK)

    def _busy(self, n: int, a: int, b: int) -> float:
        """Milliseconds of work that one request brings to a run."""
        prompt, step = self._prefixes[n]
        load, overhead = self.problem.workload, self.sites[n].node.stage_overhead_ms
        return prompt[b] - prompt[a] + overhead + load.output_tokens * (step[b] - step[a] + overhead) / load.batch

    def _runs(self) -> None:
        """Which runs each place may hold: by memory, trust, pins, split points and the utilization ceiling."""
        bounds = self.problem.constraints
        points = set(range(self.layers + 1)) if bounds.split_points is None else {0, self.layers, *bounds.split_points}
        known: dict[object, list[tuple[int, int]]] = {}
        for n, site in enumerate(self.sites):
            banned = tuple(forbidden(site.node, i, bounds) is not None for i in range(self.layers))
            # Without a ceiling only memory and bans tell places apart here.
            key = (site.memory_bytes, banned, n if bounds.utilization_ceiling is not None else -1)
            if key not in known:
                pairs = [(0, 0)]
                for a in sorted(points - {self.layers}):
                    for b in range(a + 1, self.layers + 1):
                        if banned[b - 1] or not self._may_hold(n, a, b):
                            break
                        if b in points:
                            pairs.append((a, b))
                known[key] = pairs
            pairs = known[key]
            furthest = [max((b for a, b in pairs if a == at), default=0) for at in range(self.layers + 1)]
            whole = sum(max(0, f - a) for a, f in enumerate(furthest)) + 1 == len(pairs)
            if whole and all(f > 0 for f in furthest[:-1]):
                # Every end up to the furthest is possible: one bound for each start says it all.
                most = self.model.new_int_var(0, self.layers, "")
                self.model.add_element(self.start[n], furthest, most)
                self.model.add(self.end[n] <= most).only_enforce_if(self.used[n])
                self.model.add(self.end[n] == 0).only_enforce_if(~self.used[n])
                self.model.add(self.start[n] == 0).only_enforce_if(~self.used[n])
            else:
                self.model.add_allowed_assignments([self.start[n], self.end[n]], pairs)
            self.model.add(self.end[n] > self.start[n]).only_enforce_if(self.used[n])
            self.model.add(self.end[n] == self.start[n]).only_enforce_if(~self.used[n])

    def _open(self, n: int, m: int) -> bool:
        least = self.problem.constraints.min_bandwidth_bytes_per_s
        if least is None:
            return True
        there, back = self._qualities(n, m)
        return min(there.bandwidth_bytes_per_s, back.bandwidth_bytes_per_s) >= least

    def _qualities(self, n: int, m: int) -> tuple[LinkQuality, LinkQuality]:
        source = self.problem.snapshot.network.ingress if n < 0 else self.sites[n].node.name
        target = self.sites[m].node.name
        return self.links.quality(source, target), self.links.quality(target, source)

    def _route(self) -> None:
        """The circuit: the gateway (node 0), then each used place once; an unused one is skipped by an arc to itself."""
        count, m = len(self.sites), self.model
        arcs: list[tuple[int, int, Any]] = []
        for n in range(count):
            first, last = m.new_bool_var(f"first:{n}"), m.new_bool_var(f"last:{n}")
            arcs += [(0, n + 1, first), (n + 1, 0, last), (n + 1, n + 1, ~self.used[n])]
            self.arcs[-1, n] = first
            m.add(self.start[n] == 0).only_enforce_if(first)
            m.add(self.end[n] == self.layers).only_enforce_if(last)
            for other in range(count):
                if other != n and self._open(n, other):
                    arc = m.new_bool_var(f"{n}:{other}")
                    arcs.append((n + 1, other + 1, arc))
                    self.arcs[n, other] = arc
                    m.add(self.start[other] == self.end[n]).only_enforce_if(arc)
        m.add_circuit(arcs)
        m.add(sum(self.end) - sum(self.start) == self.layers)

    def _counts(self) -> None:
        """Nodes are come to once, and not too many of them; segments neither too many nor too few."""
        bounds, m = self.problem.constraints, self.model
        self.entering: dict[str, list[Any]] = {}
        for (n, other), arc in self.arcs.items():
            name = self.sites[other].node.name
            if n < 0 or self.sites[n].node.name != name:
                self.entering.setdefault(name, []).append(arc)
        for arcs in self.entering.values():
            m.add_at_most_one(arcs)
        if bounds.max_nodes is not None:
            m.add(sum(arc for arcs in self.entering.values() for arc in arcs) <= bounds.max_nodes)
        if bounds.min_segments > 1:
            m.add(sum(self.used) >= bounds.min_segments)
        if bounds.max_segments is not None:
            m.add(sum(self.used) <= bounds.max_segments)
