"""Which columns together: a choice by CP-SAT under what they share: nodes, memory, load.

All figures are whole numbers: what is demanded rounds up, what is offered rounds down, what is to be minimised rounds down, so
that the solver's bound stays a bound.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ortools.sat.python import cp_model

from splitinference.core.cost.check import loads
from splitinference.core.cost.objective import GIB
from splitinference.core.cost.site import sites
from splitinference.core.problem import Goal, Problem
from splitinference.core.solve.columns import Column, Pool

_SCALE = 10**8


@dataclass(frozen=True)
class Choice:
    """The chosen columns, problem by problem (None: no choice is valid), and a bound for choices from these pools."""

    columns: tuple[tuple[Column, ...], ...] | None
    bound: float
    refuted: bool


class _Model:
    """One CP-SAT model over the pools of one or more problems that share their nodes; each problem's value counts by its weight."""

    def __init__(self, problems: list[Problem], pools: list[Pool], weights: Sequence[float]) -> None:
        self.model = cp_model.CpModel()
        self.problems, self.pools, self.weights = problems, pools, weights
        self.take = [[self.model.new_bool_var(f"{r}:{i}") for i in range(len(p.columns))] for r, p in enumerate(pools)]
        self.value: Any = 0
        for r in range(len(problems)):
            self._one_problem(r)
        self._memory()
        if len(problems) > 1:
            self._compute()
        self.model.minimize(self.value)

    def _pairs(self, r: int) -> list[tuple[Any, Column]]:
        return list(zip(self.take[r], self.pools[r].columns, strict=True))

    def _one_problem(self, r: int) -> None:
        problem, pairs = self.problems[r], self._pairs(r)
        bounds = problem.constraints
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
        used: dict[str, Any] = {}
        if bounds.max_nodes is not None or problem.objective.goal is Goal.COST:
            for name, users in by_node.items():
                used[name] = self.model.new_bool_var(f"{r}:used:{name}")
                self.model.add_max_equality(used[name], users)
        if bounds.max_nodes is not None:
            self.model.add(sum(used.values()) <= bounds.max_nodes)
        self.value = self.value + self._goal(r, used)
        self._utilization(r)

    def _goal(self, r: int, used: dict[str, Any]) -> Any:
        problem, pairs, weight = self.problems[r], self._pairs(r), self.weights[r]
        count = problem.constraints.pipelines
        move = weight * (problem.objective.move_weight + (1.0 if problem.objective.goal is Goal.MOVE else 0.0))
        total = sum(x * _down(move * column.prediction.moved_bytes / GIB) for x, column in pairs) if move else 0
        match problem.objective.goal:
            case Goal.LATENCY:
                values = [weight * (c.prediction.time_to_first_token_ms + c.prediction.time_per_output_token_ms) for _, c in pairs]
                slowest = self._at_least(r, [[(x, v)] for (x, _), v in zip(pairs, values, strict=True)])
                return total + slowest
            case Goal.BOTTLENECK:
                loads: dict[object, list[tuple[Any, float]]] = defaultdict(list)
                for x, column in pairs:
                    for place, ms in (*column.laid.load.place_ms.items(), *column.laid.load.link_ms.items()):
                        loads[place].append((x, weight * ms))
                return total + self._at_least(r, list(loads.values()))
            case Goal.ENERGY:
                return total + sum(x * _down(weight * c.prediction.energy_joules_per_token / count) for x, c in pairs)
            case Goal.COST:
                price = {node.name: node.cost_per_hour for node in problem.snapshot.nodes}
                return total + sum(used[name] * _down(weight * price[name]) for name in sorted(used))
            case _:
                return total

    def _at_least(self, r: int, loads: list[list[tuple[Any, float]]]) -> Any:
        most = sum(max((_down(v) for _, v in load), default=0) * len(load) for load in loads) + 1
        slowest = self.model.new_int_var(0, min(most, 2**50), f"{r}:slowest")
        for load in loads:
            self.model.add(slowest >= sum(x * _down(v) for x, v in load))
        return slowest

    def _utilization(self, r: int) -> None:
        """Peak utilization after placement: u + (1 - u) * min(1, rate * busy); a ceiling below 1 never reaches the cap."""
        problem = self.problems[r]
        weight, ceiling = self.weights[r] * problem.objective.utilization_weight, problem.constraints.utilization_ceiling
        if not weight and ceiling is None:
            return
        rate = problem.workload.requests_per_s / problem.constraints.pipelines / 1e3
        others = {node.name: node.utilization or 0.0 for node in problem.snapshot.nodes}
        loads: dict[str, list[tuple[Any, float]]] = defaultdict(list)
        for x, column in self._pairs(r):
            for name, busy in column.laid.load.busy_ms.items():
                loads[name].append((x, rate * busy))
        peak = self.model.new_int_var(0, _SCALE, f"{r}:peak")
        for name, load in sorted(loads.items()):
            free = 1.0 - others[name]
            for x, _ in load:
                self.model.add(peak >= _down(others[name])).only_enforce_if(x)
            if ceiling is not None and ceiling < 1:
                room = math.floor((ceiling * (1 + 1e-9) - others[name]) * _SCALE)
                for x, share in load:
                    if math.floor(free * share * _SCALE) > room:
                        self.model.add(x == 0)
                self.model.add(sum(x * math.floor(free * share * _SCALE) for x, share in load) <= max(room, 0))
            if weight:
                ours = self.model.new_int_var(0, _SCALE, f"{r}:ours:{name}")
                raw = sum(x * _down(share) for x, share in load)
                self.model.add_min_equality(ours, [raw, _SCALE])
                for x, _ in load:
                    self.model.add(_SCALE * peak >= _down(others[name]) * _SCALE + _down(free) * ours).only_enforce_if(x)
        if weight:
            scaled = self.model.new_int_var(0, math.ceil(weight * _SCALE) + 1, f"{r}:peak value")
            # Nine digits of the weight: times the peak that is within 64 bits.
            parts = 10 ** max(0, 8 - math.floor(math.log10(weight)))
            self.model.add(parts * scaled >= math.floor(weight * parts) * peak - parts)
            self.value = self.value + scaled

    def _memory(self) -> None:
        demand: dict[tuple[str, str], list[tuple[Any, int]]] = defaultdict(list)
        for r in range(len(self.problems)):
            for x, column in self._pairs(r):
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
            for x, column in self._pairs(r):
                for name, share in loads(column.laid, problem, problem.constraints.pipelines).items():
                    if share > 0:
                        shares[name].append((x, math.ceil(share * _SCALE)))
                        users[name].add(r)
        for name, wanted in sorted(shares.items()):
            if len(users[name]) > 1:
                self.model.add(sum(x * share for x, share in wanted) <= _SCALE)


def _down(value: float) -> int:
    return math.floor(value * _SCALE)


def choose(problems: list[Problem], pools: list[Pool], seconds: float, weights: Sequence[float] = ()) -> Choice:
    """The best choice of columns: for every problem as many as it wants pipelines, within what the nodes can hold together.

    What is minimised is the sum of the problems' values, each times its weight (1 where none are given).
    """
    if any(len(p.columns) < problem.constraints.pipelines for p, problem in zip(pools, problems, strict=True)):
        return Choice(None, math.inf, refuted=True)
    built = _Model(problems, pools, weights or [1.0] * len(problems))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 1
    solver.parameters.max_time_in_seconds = max(0.1, seconds)
    status = solver.solve(built.model)
    if status == cp_model.INFEASIBLE:
        return Choice(None, math.inf, refuted=True)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return Choice(None, -math.inf, refuted=False)
    chosen = tuple(
        tuple(column for x, column in zip(take, p.columns, strict=True) if solver.value(x))
        for take, p in zip(built.take, pools, strict=True)
    )
    return Choice(chosen, solver.best_objective_bound / _SCALE, refuted=False)
