"""The circuit model: one CP-SAT model of a whole chain, independent of the planner's own algorithms.

Places are optional nodes of a circuit through the gateway; every place that is used holds one run of layers, and the next place on
the circuit starts where it ends. The model is built from the judge's cost functions alone, in whole numbers, with one worker and a
fixed seed. It is the oracle of tests up to the sizes that it proves, and the CP-SAT baseline of the benchmark.

What it leaves out: several pipelines, stages on several nodes, throughput, and a weight on utilization.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from ortools.sat.python import cp_model

from splitinference.core.cost.eligible import forbidden
from splitinference.core.cost.link import Links, bytes_per_token, hop
from splitinference.core.cost.objective import GIB
from splitinference.core.cost.predict import added_watts
from splitinference.core.cost.site import Site
from splitinference.core.cost.stage import adapter_bytes, layer_cost, memory_bytes, utilization_after
from splitinference.core.planner.columns import cp_sat
from splitinference.core.planner.columns.heuristics import places
from splitinference.core.values.cluster import LinkQuality
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Goal, Problem

_BITS = 36
"""Bits of the largest single figure: sums of some thousand of them stay within the solver's 64 bits."""
_SLACK = 1e-9
Terms = list[tuple[Any, int]]


@dataclass(frozen=True)
class Circuit:
    """The best plan found (None: none), a bound for the objective, and whether the answer is final."""

    plan: Plan | None
    bound: float
    proven: bool


def covers(problem: Problem) -> bool:
    """Whether the model expresses the problem."""
    bounds, objective = problem.constraints, problem.objective
    single = bounds.pipelines == 1 and bounds.max_stage_nodes == 1 and not objective.then
    crowded = bounds.utilization_ceiling is not None and any(node.processors for node in problem.snapshot.nodes)
    network = problem.snapshot.network
    if network.closed or network.closed_zones or network.only_listed or network.shared:
        return False
    return single and objective.goal is not Goal.THROUGHPUT and not objective.utilization_weight and not crowded


def circuit(problem: Problem, seconds: float) -> Circuit:
    """The best chain by one CP-SAT model. Raises ValueError for a problem that it does not express."""
    if not covers(problem):
        raise ValueError("the circuit model is for one chain of single nodes, without throughput and weights of utilization")
    if not places(problem):
        return Circuit(None, math.inf, proven=True)
    return _Model(problem).solve(seconds)


class _Model:
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
                profile.layers[a].weight_bytes + profile.layers[a].kv_bytes_per_token * tokens
                + adapter_bytes(profile, load.adapter_bytes, a, a + 1)
                for a, _ in self.groups
            ]  # fmt: skip
            self.model.add(sum(held * (size >> 10) for held, size in zip(self.held[n], each, strict=True)) <= (max(room, 0) >> 10) + 1)

    def _may_hold(self, n: int, a: int, b: int) -> bool:
        site, bounds = self.sites[n], self.problem.constraints
        if memory_bytes(self.problem, a, b) > site.memory_bytes:
            return False
        if bounds.utilization_ceiling is None:
            return True
        after = utilization_after(site, self._busy(n, a, b), self.problem.workload.requests_per_s)
        return after <= bounds.utilization_ceiling * (1 + _SLACK)

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

    def _along(self, prompt: float, step: float, per_ms: list[float], unit: float) -> Terms:
        """Terms of a sum over segments: `prompt` times the prompt's and `step` times a step's time, times each place's `per_ms`."""
        return [term for n in range(len(self.sites)) for term in self._on_place(n, prompt, step, per_ms[n] * unit)]

    def _on_place(self, n: int, prompt: float, step: float, scale: float) -> Terms:
        first, each = self._prefixes[n]
        terms: Terms = []
        for held, (a, _) in zip(self.held[n], self.groups, strict=True):
            terms.append((held, round(scale * (prompt * (first[a + 1] - first[a]) + step * (each[a + 1] - each[a])))))
        terms.append((self.used[n], round(scale * (prompt + step) * self.sites[n].node.stage_overhead_ms)))
        return terms

    def _sizes(self) -> dict[int, list[int]]:
        """Boundaries inside the model by the bytes of their tensor."""
        found: dict[int, list[int]] = {}
        for b in range(1, self.layers):
            found.setdefault(bytes_per_token(self.problem, b), []).append(b)
        return found

    def _over_hops(self, what: Any, unit: float) -> Terms:
        """Terms of a sum over hops; `what` takes a figure of a hop. Where tensors differ, the boundary of the hop decides."""
        terms: Terms = []
        sizes = self._sizes()
        kinds = list(sizes.values()) or [[1]]
        at: dict[tuple[int, int], Any] = {}
        if len(kinds) > 1:
            for n in range(len(self.sites)):
                for k, boundaries in enumerate(kinds):
                    at[n, k] = self.model.new_bool_var("")
                    domain = cp_model.Domain.from_values(boundaries)
                    self.model.add_linear_expression_in_domain(self.end[n], domain).only_enforce_if(at[n, k])
                    self.model.add_linear_expression_in_domain(self.end[n], domain.complement()).only_enforce_if(~at[n, k])
        for (n, m), arc in self.arcs.items():
            if n < 0:
                terms.append((arc, round(what(hop(self.problem, 0, *self._qualities(n, m))) * unit)))
                continue
            costs = [round(what(hop(self.problem, boundaries[0], *self._qualities(n, m))) * unit) for boundaries in kinds]
            if len(set(costs)) == 1:
                terms.append((arc, costs[0]))
                continue
            paid = self.model.new_int_var(0, max(costs), "")
            for k, cost in enumerate(costs):
                self.model.add(paid >= cost).only_enforce_if([arc, at[n, k]])
            terms.append((paid, 1))
        return terms

    def _sum(self, goal: Goal, unit: float) -> Terms:
        load, ones = self.problem.workload, [1.0] * len(self.sites)
        match goal:
            case Goal.LATENCY:
                return [*self._along(1.0, 1.0, ones, unit), *self._over_hops(lambda h: h.prefill_ms + h.decode_ms, unit)]
            case Goal.ENERGY:
                watts = [added_watts(site) / 1e3 for site in self.sites]
                return self._along(1.0 / load.output_tokens, 1.0 / load.batch, watts, unit)
            case Goal.COST:
                price = {site.node.name: site.node.cost_per_hour for site in self.sites}
                return [(arc, round(price[name] * unit)) for name, arcs in self.entering.items() for arc in arcs]
            case _:
                return self._moved(unit)

    def _moved(self, unit: float) -> Terms:
        """GiB of weights that do not serve now: all that segments hold, less tied copies inside, less segments that stay."""
        terms: Terms = []
        layers = self.problem.profile.layers
        so_far = [0]
        for layer in layers:
            so_far.append(so_far[-1] + layer.weight_bytes)
        values = [round(v / GIB * unit) for v in so_far]
        for n, site in enumerate(self.sites):
            at = [self.model.new_int_var(0, values[-1], "") for _ in range(2)]
            self.model.add_element(self.start[n], values, at[0])
            self.model.add_element(self.end[n], values, at[1])
            terms += [(at[1], 1), (at[0], -1)]
            for layer in layers:
                if layer.tied_to is not None and layer.tied_to != layer.index:
                    low, high = min(layer.index, layer.tied_to), max(layer.index, layer.tied_to)
                    both = self._reified([(self.start[n], 0, low), (self.end[n], high + 1, self.layers)])
                    terms.append((both, -round(layer.tied_bytes / GIB * unit)))
            for start, end, name in sorted(set(self.problem.serving)):
                if name == site.node.name and end <= self.layers:
                    stays = self._reified([(self.start[n], start, start), (self.end[n], end, end)])
                    terms.append((stays, -round(self.problem.profile.weight_bytes(start, end) / GIB * unit)))
        return terms

    def _reified(self, within: list[tuple[Any, int, int]]) -> Any:
        """A variable that is true exactly where every figure is within its limits."""
        parts = []
        for figure, low, high in within:
            part = self.model.new_bool_var("")
            domain = cp_model.Domain(low, high)
            self.model.add_linear_expression_in_domain(figure, domain).only_enforce_if(part)
            self.model.add_linear_expression_in_domain(figure, domain.complement()).only_enforce_if(~part)
            parts.append(part)
        every = self.model.new_bool_var("")
        self.model.add_bool_and(parts).only_enforce_if(every)
        self.model.add_bool_or([~part for part in parts]).only_enforce_if(~every)
        return every

    def _slowest(self, unit: float) -> Any:
        """The slowest stage or link."""
        load = self.problem.workload
        most = sum(self._busy(n, 0, self.layers) for n in range(len(self.sites))) * load.batch / load.output_tokens
        for n, m in self.arcs:
            most = max(most, *(hop(self.problem, b, *self._qualities(n, m)).occupancy_ms for b in range(self.layers)))
        slowest = self.model.new_int_var(0, math.ceil(most * unit) + 1, "slowest")
        share = load.batch / load.output_tokens
        for n in range(len(self.sites)):
            self.model.add(slowest >= sum(x * c for x, c in self._on_place(n, share, 1.0, unit)))
        for (n, m), arc in self.arcs.items():
            for boundaries in [[0]] if n < 0 else self._sizes().values():
                cost = round(hop(self.problem, boundaries[0], *self._qualities(n, m)).occupancy_ms * unit)
                if n < 0 or len(self._sizes()) == 1:
                    self.model.add(slowest >= cost).only_enforce_if(arc)
                    continue
                here = self.model.new_bool_var("")
                domain = cp_model.Domain.from_values(boundaries)
                self.model.add_linear_expression_in_domain(self.end[n], domain).only_enforce_if(here)
                self.model.add_linear_expression_in_domain(self.end[n], domain.complement()).only_enforce_if(~here)
                self.model.add(slowest >= cost).only_enforce_if([arc, here])
        return slowest

    def _unit(self, largest: float) -> float:
        return 2.0 ** (_BITS - math.frexp(largest)[1]) if largest > 0 else 1.0

    def _objective(self) -> tuple[Any, float]:
        """What is minimised, and its units."""
        objective, load = self.problem.objective, self.problem.workload
        worst = max(sum(prefix[-1] for prefix in pair) + 2 * site.node.stage_overhead_ms
                    for pair, site in zip(self._prefixes, self.sites, strict=True))  # fmt: skip
        hops = [hop(self.problem, b, *self._qualities(n, m)) for n, m in self.arcs for b in ([0] if n < 0 else
                [sizes[0] for sizes in self._sizes().values()])]  # fmt: skip
        worst = max(worst, *(h.prefill_ms + h.decode_ms for h in hops))
        match objective.goal:
            case Goal.COST:
                worst = max(site.node.cost_per_hour for site in self.sites)
            case Goal.ENERGY:
                worst *= max(added_watts(site) for site in self.sites) / 1e3 * (1.0 / load.output_tokens + 1.0 / load.batch)
            case Goal.MOVE:
                worst = self.problem.profile.weight_bytes(0, self.layers) / GIB
            case _:
                pass
        worst = max(worst, objective.move_weight * self.problem.profile.weight_bytes(0, self.layers) / GIB)
        unit = self._unit(worst)
        value = self._slowest(unit) if objective.goal is Goal.BOTTLENECK else sum(x * c for x, c in self._sum(objective.goal, unit))
        if objective.move_weight:
            value = value + sum(x * c for x, c in self._moved(unit * objective.move_weight))
        return value, unit

    def _limits(self) -> None:
        """The SLO. Rounding is on the side of the limit: the judge looks at the plan afterwards."""
        slo, ones = self.problem.slo, [1.0] * len(self.sites)
        for limit, prompt, step in ((slo.time_to_first_token_ms, 1.0, 0.0), (slo.time_per_output_token_ms, 0.0, 1.0)):
            if limit is None:
                continue
            unit = 2.0 ** (_BITS - math.frexp(limit)[1])
            terms = [*self._along(prompt, step, ones, unit), *self._over_hops(lambda h, p=prompt: h.prefill_ms if p else h.decode_ms, unit)]
            room = math.floor(limit * (1 + _SLACK) * unit) + len(terms)
            self.model.add(sum(x * c for x, c in terms) <= room)

    def solve(self, seconds: float) -> Circuit:
        """Minimise, and read the chain along the circuit."""
        self._limits()
        value, unit = self._objective()
        self.model.minimize(value)
        solver = cp_sat.solver(seconds)
        status = solver.solve(self.model)
        if status == cp_model.INFEASIBLE:
            return Circuit(None, math.inf, proven=True)
        bound = solver.best_objective_bound / unit
        if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return Circuit(None, bound if math.isfinite(bound) else -math.inf, proven=False)
        following = {n: m for (n, m), arc in self.arcs.items() if solver.value(arc)}
        order, here = [], -1
        while here in following:
            here = following[here]
            order.append(here)
        edges = [0, *(solver.value(self.end[n]) for n in order)]
        segments = tuple(
            Segment(start=a, end=b, node=self.sites[n].node.name, processor=self.sites[n].processor)
            for n, (a, b) in zip(order, pairwise(edges), strict=True)
        )
        plan = Plan(model_digest=self.problem.profile.digest, pipelines=(Pipeline(segments=segments),))
        return Circuit(plan, bound, proven=status == cp_model.OPTIMAL)
