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

from splitinference.core.cost.link import bytes_per_token, hop
from splitinference.core.cost.objective import GIB
from splitinference.core.cost.predict import added_watts
from splitinference.core.planner.columns import cp_sat
from splitinference.core.planner.columns.heuristics import places
from splitinference.core.planner.lab.circuit_route import SLACK, CircuitRoute
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Goal, Problem

_BITS = 36
"""Bits of the largest single figure: sums of some thousand of them stay within the solver's 64 bits."""
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


class _Model(CircuitRoute):
    """The route with what its objective counts."""

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
            room = math.floor(limit * (1 + SLACK) * unit) + len(terms)
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
