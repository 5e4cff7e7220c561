"""The master problem: CP-SAT chooses among columns, under everything that couples them.

A column is one chain with what it costs and what it takes of every place. Label setting prices columns and bounds their cost; this
model chooses. One chain for one problem is the smallest case: exactly one column. Pipelines, stages on several nodes and several
problems on the same nodes add what they share: nodes, memory of places, compute, limits on nodes, and goals in order.

All figures are whole numbers. Demand rounds up, capacity rounds down, and what is minimised rounds down, so that the solver's bound
stays a bound.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ortools.sat.python import cp_model

from splitinference.core.cost.checks.violations import TOLERANCE, loads
from splitinference.core.cost.objective import GIB
from splitinference.core.cost.site import sites
from splitinference.core.planner.columns import cp_sat
from splitinference.core.planner.columns.columns import Column, Pool
from splitinference.core.values.problem import Goal, Problem

_SHARE = 10**8
"""Units of a share of a node's compute or utilization."""
_BUDGET = 10**12
"""Parts of a budget."""
TINY = 8
"""Of so few columns the choice needs no presolving."""
_DIGITS = 40
"""Bits of the largest figure of a column: sums of many stay within the solver's 64 bits."""
_TIED = 1e-9
"""Relative difference up to which a plan counts as equally good, when goals follow each other."""


@dataclass(frozen=True)
class Choice:
    """The chosen columns, problem by problem (None: no choice is valid), and a bound for choices from these pools."""

    columns: tuple[tuple[Column, ...], ...] | None
    bound: float
    refuted: bool


class _Model:
    """One CP-SAT model over the pools of one or more problems that share their nodes; each problem's value counts by its weight."""

    def __init__(self, problems: Sequence[Problem], pools: Sequence[Pool], weights: Sequence[float]) -> None:
        self.model = cp_sat.Model()
        self.problems, self.pools, self.weights = problems, pools, weights
        self.take = [[self.model.new_bool_var(f"{r}:{i}") for i in range(len(p.columns))] for r, p in enumerate(pools)]
        self.pairs = [list(zip(take, p.columns, strict=True)) for take, p in zip(self.take, pools, strict=True)]
        self.used: list[dict[str, Any]] = []
        for r, problem in enumerate(problems):
            self._counts(r, problem)
        if len(problems) > 1 or problems[0].constraints.pipelines > 1:
            self._memory()
        if len(problems) > 1:
            self._compute()

    def _counts(self, r: int, problem: Problem) -> None:
        """As many columns as pipelines, apart if that is asked, on no more nodes than allowed."""
        pairs, bounds = self.pairs[r], problem.constraints
        self.used.append({})
        if bounds.pipelines == 1:
            self.model.add_exactly_one(self.take[r])
            return
        self.model.add(sum(x for x, _ in pairs) == bounds.pipelines)
        by_node: dict[str, list[Any]] = defaultdict(list)
        by_segment: dict[tuple[int, int, str, str], list[Any]] = defaultdict(list)
        for x, column in pairs:
            for name in sorted(column.nodes):
                by_node[name].append(x)
            for segment in column.pipeline.segments:
                for name in segment.nodes:
                    by_segment[segment.start, segment.end, name, segment.processor].append(x)
        for users in by_node.values() if bounds.disjoint_pipelines else by_segment.values():
            self.model.add_at_most_one(users)
        budgets = [(bounds.max_cost_per_hour, "cost_per_hour"), (bounds.max_watts, "busy_watts")]
        limited = [(limit, name) for limit, name in budgets if limit is not None]
        if bounds.max_nodes is not None or limited or problem.counts_cost:
            for name, users in by_node.items():
                self.used[r][name] = self.model.new_bool_var(f"{r}:used:{name}")
                self.model.add_max_equality(self.used[r][name], users)
        if bounds.max_nodes is not None:
            self.model.add(sum(self.used[r].values()) <= bounds.max_nodes)
        amounts = {node.name: node for node in problem.snapshot.nodes}
        for limit, field in limited:
            # In parts of the limit, rounded down: the judge's slack is larger than what rounding leaves out.
            taken = [x * math.floor(getattr(amounts[name], field) / limit * _BUDGET) for name, x in sorted(self.used[r].items())]
            self.model.add(sum(taken) <= _BUDGET)

    def goal(self, r: int, goal: Goal, weight: float, unit: float) -> Any:
        """The goal's value over the chosen columns, times `weight`, in whole `unit`s."""
        problem, pairs = self.problems[r], self.pairs[r]
        count = problem.constraints.pipelines

        def whole(value: float) -> int:
            return math.floor(weight * value * unit)

        match goal:
            case Goal.LATENCY:
                first = [(x, whole(c.prediction.time_to_first_token_ms)) for x, c in pairs]
                each = [(x, whole(c.prediction.time_per_output_token_ms)) for x, c in pairs]
                if count == 1:
                    return sum(x * (a + b) for (x, a), (_, b) in zip(first, each, strict=True))
                # The judge counts the slowest first token and the slowest further token, which may be of two pipelines.
                return self._at_least(self._exclusive(r, first)) + self._at_least(self._exclusive(r, each))
            case Goal.BOTTLENECK:
                if count == 1:
                    return sum(x * whole(c.prediction.bottleneck_ms) for x, c in pairs)
                taken: dict[object, list[tuple[Any, int]]] = defaultdict(list)
                for x, column in pairs:
                    for place, ms in (*column.laid.load.place_ms.items(), *column.laid.load.link_ms.items()):
                        taken[place].append((x, whole(ms)))
                return self._at_least(list(taken.values()))
            case Goal.ENERGY:
                return sum(x * whole(c.prediction.energy_joules_per_token / count) for x, c in pairs)
            case Goal.COST:
                if count == 1:
                    return sum(x * whole(c.prediction.cost_per_hour) for x, c in pairs)
                price = {node.name: node.cost_per_hour for node in problem.snapshot.nodes}
                return sum(x * whole(price[name]) for name, x in sorted(self.used[r].items()))
            case Goal.MOVE:
                return sum(x * whole(c.prediction.moved_bytes / GIB) for x, c in pairs)
            case Goal.THROUGHPUT:
                raise ValueError("throughput is chosen among runs of layers, not among chains")

    def value(self, r: int, unit: float) -> Any:
        """The problem's main goal with its weighted terms."""
        objective, weight = self.problems[r].objective, self.weights[r]
        total = self.goal(r, objective.goal, weight, unit)
        if objective.move_weight:
            total = total + self.goal(r, Goal.MOVE, weight * objective.move_weight, unit)
        return total + self._utilization(r, weight * objective.utilization_weight, unit)

    def _exclusive(self, r: int, terms: list[tuple[Any, int]]) -> list[list[tuple[Any, int]]]:
        """Terms of columns in groups of which at most one is taken: of pipelines apart, those that use the same node."""
        if not self.problems[r].constraints.disjoint_pipelines:
            return [[term] for term in terms]
        groups: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for term, column in zip(terms, self.pools[r].columns, strict=True):
            for name in sorted(column.nodes):
                groups[name].append(term)
        return list(groups.values())

    def _at_least(self, taken: list[list[tuple[Any, int]]]) -> Any:
        """A variable that is no less than any of these sums."""
        most = max((sum(value for _, value in one) for one in taken), default=0)
        slowest = self.model.new_int_var(0, most, "slowest")
        for one in taken:
            self.model.add(slowest >= sum(x * value for x, value in one))
        return slowest

    def _utilization(self, r: int, weight: float, unit: float) -> Any:
        """Weighted peak utilization after placement: u + (1 - u) * min(1, rate * busy); a ceiling below 1 never reaches the cap."""
        problem = self.problems[r]
        ceiling, count = problem.constraints.utilization_ceiling, problem.constraints.pipelines
        if count == 1:
            most = math.inf if ceiling is None else ceiling * (1 + TOLERANCE)
            for x, column in self.pairs[r]:
                if column.prediction.peak_utilization > most:
                    self.model.add(x == 0)
            return sum(x * math.floor(weight * c.prediction.peak_utilization * unit) for x, c in self.pairs[r]) if weight else 0
        if not weight and ceiling is None:
            return 0
        rate = problem.workload.requests_per_s / count / 1e3
        others = {node.name: node.utilization or 0.0 for node in problem.snapshot.nodes}
        shares: dict[str, list[tuple[Any, float]]] = defaultdict(list)
        for x, column in self.pairs[r]:
            for name, busy in column.laid.load.busy_ms.items():
                shares[name].append((x, rate * busy))
        peak = self.model.new_int_var(0, _SHARE, f"{r}:peak")
        for name, load in sorted(shares.items()):
            free = 1.0 - others[name]
            for x, _ in load:
                self.model.add(peak >= math.floor(others[name] * _SHARE)).only_enforce_if(x)
            if ceiling is not None and ceiling < 1:
                room = math.floor((ceiling * (1 + 1e-9) - others[name]) * _SHARE)
                for x, share in load:
                    if math.floor(free * share * _SHARE) > room:
                        self.model.add(x == 0)
                self.model.add(sum(x * math.floor(free * share * _SHARE) for x, share in load) <= max(room, 0))
            if weight:
                ours = self.model.new_int_var(0, _SHARE, f"{r}:ours:{name}")
                raw = sum(x * math.floor(min(share, 2.0) * _SHARE) for x, share in load)
                self.model.add_min_equality(ours, [raw, _SHARE])
                for x, _ in load:
                    fixed = math.floor(others[name] * _SHARE) * _SHARE
                    self.model.add(_SHARE * peak >= fixed + math.floor(free * _SHARE) * ours).only_enforce_if(x)
        if not weight:
            return 0
        scaled = self.model.new_int_var(0, math.ceil(weight * unit) + 1, f"{r}:peak value")
        # weight * unit * peak / _SHARE, in nine digits of the factor: times the peak that is within 64 bits.
        factor = weight * unit / _SHARE
        parts = 10 ** max(0, 8 - math.floor(math.log10(factor))) if factor < 1e8 else 1
        self.model.add(parts * scaled >= math.floor(factor * parts) * peak - parts)
        return scaled

    def _memory(self) -> None:
        """What columns take of a place is no more than it has; of one column alone the judge has said so already."""
        demand: dict[tuple[str, str], list[tuple[Any, int]]] = defaultdict(list)
        for pairs in self.pairs:
            for x, column in pairs:
                for place, needed in column.laid.load.memory.items():
                    demand[place].append((x, needed))
        nodes = [node for problem in self.problems for node in problem.snapshot.nodes]
        free = {(node.name, site.processor): site.memory_bytes for node in nodes for site in sites(node)}
        for place, wanted in sorted(demand.items()):
            self.model.add(sum(x * needed for x, needed in wanted) <= free[place])

    def _compute(self) -> None:
        """Requests of several problems take no more of a node's free compute than there is; one alone is as it would be alone."""
        shares: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        users: dict[str, set[int]] = defaultdict(set)
        for r, problem in enumerate(self.problems):
            for x, column in self.pairs[r]:
                for name, share in loads(column.laid, problem, problem.constraints.pipelines).items():
                    if share > 0:
                        shares[name].append((x, math.ceil(share * _SHARE)))
                        users[name].add(r)
        for name, wanted in sorted(shares.items()):
            if len(users[name]) > 1:
                self.model.add(sum(x * share for x, share in wanted) <= _SHARE)


def choose(problems: Sequence[Problem], pools: Sequence[Pool], seconds: float, weights: Sequence[float] = ()) -> Choice:
    """The best choice of columns: for every problem as many as it wants pipelines, within what the nodes can hold together.

    What is minimised is the sum of the problems' values, each times its weight (1 where none are given). For one problem, its further
    goals (`then`) are minimised in order, each among the choices that are best in all goals before it.
    """
    if any(len(p.columns) < problem.constraints.pipelines for p, problem in zip(pools, problems, strict=True)):
        return Choice(None, math.inf, refuted=True)
    weights = weights or [1.0] * len(problems)
    built = _Model(problems, pools, weights)
    unit = _unit(problems, pools, weights)
    value = sum(built.value(r, unit) for r in range(len(problems)))
    built.model.minimize(value)
    tiny = sum(len(p.columns) for p in pools) <= TINY
    solver = cp_sat.solver(seconds, tiny=tiny)
    status = solver.solve(built.model)
    if status == cp_model.INFEASIBLE:
        return Choice(None, math.inf, refuted=True)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Choice(None, -math.inf, refuted=False)
    bound = solver.best_objective_bound / unit
    chosen = _taken(solver, built)
    for goal in problems[0].objective.then if len(problems) == 1 else ():
        reached = solver.value(value)
        built.model.add(value <= reached + math.ceil(abs(reached) * _TIED) + problems[0].constraints.pipelines)
        value = built.goal(0, goal, 1.0, _unit_of(goal, pools[0], 1.0))
        built.model.minimize(value)
        solver = cp_sat.solver(seconds, tiny=tiny)
        if solver.solve(built.model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            break
        chosen = _taken(solver, built)
    return Choice(chosen, bound, refuted=False)


def _taken(solver: cp_model.CpSolver, built: _Model) -> tuple[tuple[Column, ...], ...]:
    return tuple(tuple(column for x, column in pairs if solver.value(x)) for pairs in built.pairs)


def _unit(problems: Sequence[Problem], pools: Sequence[Pool], weights: Sequence[float]) -> float:
    """Units of the objective: a power of two, so fine that the largest figure of any column fills `_DIGITS` bits."""
    units = []
    for problem, pool, weight in zip(problems, pools, weights, strict=True):
        objective = problem.objective
        units.append(_unit_of(objective.goal, pool, weight))
        if objective.move_weight:
            units.append(_unit_of(Goal.MOVE, pool, weight * objective.move_weight))
        if objective.utilization_weight:
            units.append(_power(weight * objective.utilization_weight))
    return min(units)


def _unit_of(goal: Goal, pool: Pool, weight: float) -> float:
    def largest(column: Column) -> float:
        match goal:
            case Goal.LATENCY:
                return column.prediction.time_to_first_token_ms + column.prediction.time_per_output_token_ms
            case Goal.BOTTLENECK:
                return column.prediction.bottleneck_ms
            case Goal.ENERGY:
                return column.prediction.energy_joules_per_token
            case Goal.COST:
                return column.prediction.cost_per_hour
            case _:
                return column.prediction.moved_bytes / GIB

    return _power(weight * max(map(largest, pool.columns)))


def _power(largest: float) -> float:
    return 2.0 ** (_DIGITS - max(-60, math.frexp(largest)[1])) if largest > 0 else 2.0**_DIGITS
