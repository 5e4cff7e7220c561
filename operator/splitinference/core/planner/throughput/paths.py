"""Throughput where each path has limits: the SLO, and how many segments it may have.

A flow through runs forgets which path a request takes. With limits on paths, the columns are paths: whole chains of runs that keep the
limits. A linear programme spreads requests over them, as far as stages and links can pass them. Paths are priced in as needed, by a
search over labels (dual price, sums so far, segments so far) along the boundaries. A label is dropped where another one is no worse in
all of them.
For small problems CP-SAT chooses runs and paths from all that there are, and the answer is exact.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ortools.linear_solver.python import model_builder
from ortools.sat.python import cp_model

from splitinference.core.planner.chain.task import SLACK, task_of
from splitinference.core.planner.columns import cp_sat
from splitinference.core.planner.throughput.flows import Flows, Held
from splitinference.core.planner.throughput.master import FlowChoice, limit_nodes

Path = tuple[Held, ...]
ALL_PATHS = 3_000
"""Up to so many paths the model over all of them is solved to the end."""
MOST_LABELS = 48
"""Labels kept at a run: the cheapest, and always the quickest."""
MOST_ROUNDS = 60
NEW_PATHS = 24
"""Paths that one round adds at most."""
_BITS = 24


@dataclass(frozen=True)
class Spread:
    """Paths and how many steps per ms go over each."""

    paths: tuple[tuple[Path, float], ...]

    @property
    def value(self) -> float:
        """Steps per ms over all paths."""
        return math.fsum(flow for _, flow in self.paths)


@dataclass(frozen=True)
class _Label:
    cost: float
    sums: tuple[float, ...]
    count: int
    path: tuple[int, ...]

    def covers(self, other: "_Label") -> bool:
        return self.cost <= other.cost and self.count <= other.count and all(a <= b for a, b in zip(self.sums, other.sums, strict=True))


class Paths:
    """The paths through some runs, each place at most one, that keep the problem's limits."""

    def __init__(self, flows: Flows, runs: Sequence[Held]) -> None:
        self.flows = flows
        self.runs = sorted(run for run in set(runs) if flows.rate(run) > 0)
        self._task = task_of(flows.tables)
        self._limits = tuple(r.limit * (1 + SLACK) for r in self._task.resources)
        self._most = flows.tables.problem.constraints.max_segments or len(self.runs)
        self._starting: dict[int, list[int]] = defaultdict(list)
        for number, (_, start, _) in enumerate(self.runs):
            self._starting[start].append(number)
        self._node = [flows.places[place][1].node.name for place, _, _ in self.runs]

    def room(self, source: int, target: int) -> float:
        """Steps per ms from one run to the next; -1 is the gateway."""
        there = int(self.flows.kind[self.runs[target][0]])
        if source < 0:
            return float(self.flows.ingress[there])
        return float(self.flows.links(self.runs[source][2])[self.flows.kind[self.runs[source][0]], there])

    def entries(self) -> list[int]:
        """Runs that requests may enter from the gateway."""
        return [n for n in self._starting[0] if self.room(-1, n) > 0]

    def onward(self, number: int) -> Iterator[int]:
        """Runs that a request may go on with."""
        for other in self._starting[self.runs[number][2]]:
            if self.runs[other][0] != self.runs[number][0] and self.room(number, other) > 0:
                yield other

    def _sums(self, source: int, target: int) -> tuple[float, ...]:
        """What each limited sum grows by: the hop to a run, and the run."""
        place, start, end = self.runs[target]
        kind = int(self.flows.kind[place])
        before = [
            float(arrays.entering()[kind] if source < 0 else arrays.hops(start)[self.flows.kind[self.runs[source][0]], kind])
            for arrays in self._task.sums
        ]
        return tuple(hop + arrays.segment(start, end, kind) for hop, arrays in zip(before, self._task.sums, strict=True))

    def grown(self, label: _Label, target: int, cost: float) -> _Label | None:
        """A path with one run more; None where it breaks a limit or comes to a node again."""
        if label.count >= self._most or any(self._node[n] == self._node[target] for n in label.path):
            return None
        added = self._sums(label.path[-1] if label.path else -1, target)
        sums = tuple(a + b for a, b in zip(label.sums, added, strict=True))
        if any(total > limit for total, limit in zip(sums, self._limits, strict=True)):
            return None
        return _Label(label.cost + cost, sums, label.count + 1, (*label.path, target))

    def every(self, most: int) -> list[tuple[int, ...]] | None:
        """All paths; None if there are more than `most`."""
        found: list[tuple[int, ...]] = []
        open_ends = [grown for n in self.entries() if (grown := self.grown(self.nothing, n, 0.0))]
        while open_ends:
            label = open_ends.pop()
            if self.runs[label.path[-1]][2] == self.flows.tables.layers:
                found.append(label.path)
            else:
                open_ends += [grown for n in self.onward(label.path[-1]) if (grown := self.grown(label, n, 0.0))]
            if len(found) + len(open_ends) > most:
                return None
        return sorted(found)

    @property
    def nothing(self) -> _Label:
        """The path before its first run."""
        return _Label(0.0, (0.0,) * len(self._limits), 0, ())

    def cheapest(self, of_run: Sequence[float], of_way: dict[tuple[int, int], float]) -> list[_Label]:
        """Paths of least price, the cheapest first: some, where labels had to be dropped."""
        labels: dict[int, list[_Label]] = defaultdict(list)
        ended: list[_Label] = []

        def extend(label: _Label, ways: Iterator[int] | list[int]) -> None:
            last = label.path[-1] if label.path else -1
            for n in ways:
                grown = self.grown(label, n, of_run[n] + of_way.get((last, n), 0.0))
                if grown is not None and not any(kept.covers(grown) for kept in labels[n]):
                    labels[n] = [kept for kept in labels[n] if not grown.covers(kept)] + [grown]

        extend(self.nothing, self.entries())
        for number in sorted(range(len(self.runs)), key=lambda n: self.runs[n][1:]):
            kept = sorted(labels[number], key=lambda label: (label.cost, label.path))
            if len(kept) > MOST_LABELS:
                quickest = min(kept, key=lambda label: max(label.sums, default=0.0))
                kept = [*kept[: MOST_LABELS - 1], quickest]
            for label in kept:
                if self.runs[number][2] == self.flows.tables.layers:
                    ended.append(label)
                else:
                    extend(label, list(self.onward(number)))
        return sorted(ended, key=lambda label: (label.cost, label.path))


def spread(flows: Flows, held: Sequence[Held], expired: Callable[[], bool]) -> Spread:
    """The most that paths within the limits carry through runs that are held, each place one. Empty where no path keeps the limits."""
    paths = Paths(flows, held)
    if not paths.runs:
        return Spread(())
    columns: list[tuple[int, ...]] = []
    flow: list[float] = []
    of_run, of_way = [0.0] * len(paths.runs), dict[tuple[int, int], float]()
    for number in range(MOST_ROUNDS):
        cheap = [label.path for label in paths.cheapest(of_run, of_way) if label.cost < 1.0 - 1e-7][:NEW_PATHS]
        new = [path for path in dict.fromkeys(cheap) if path not in columns]
        if not new or (number and expired()):
            break
        columns += new
        flow, of_run, of_way = _programme(paths, columns)
    used = [(tuple(paths.runs[n] for n in path), width) for path, width in zip(columns, flow, strict=False) if width > 1e-9 * sum(flow)]
    return Spread(tuple(used))


def _programme(paths: Paths, columns: list[tuple[int, ...]]) -> tuple[list[float], list[float], dict[tuple[int, int], float]]:
    """The flow over each path, and the prices of runs and of ways from run to run (what a path loses by using them, 1 is its gain)."""
    unit = max(paths.flows.rate(run) for run in paths.runs)
    model = model_builder.Model()
    flow = [model.new_num_var(0.0, math.inf, "") for _ in columns]
    users, ways = defaultdict(list), defaultdict(list)
    for variable, path in zip(flow, columns, strict=True):
        for source, target in zip((-1, *path), path, strict=False):
            users[target].append(variable)
            ways[source, target].append(variable)
    run_rows = {n: model.add(model_builder.LinearExpr.sum(some) <= paths.flows.rate(paths.runs[n]) / unit) for n, some in users.items()}
    way_rows = {
        way: model.add(model_builder.LinearExpr.sum(some) <= paths.room(*way) / unit)
        for way, some in ways.items()
        if paths.room(*way) < paths.flows.rate(paths.runs[way[1]])
    }
    model.maximize(model_builder.LinearExpr.sum(flow))
    solver = model_builder.Solver("glop")
    if solver.solve(model) != model_builder.SolveStatus.OPTIMAL:
        return [0.0] * len(columns), [1.0] * len(paths.runs), {}
    of_run = [max(0.0, solver.dual_value(run_rows[n])) if n in run_rows else 0.0 for n in range(len(paths.runs))]
    of_way = {way: max(0.0, solver.dual_value(row)) for way, row in way_rows.items()}
    return [max(0.0, solver.value(variable)) * unit for variable in flow], of_run, of_way


def choose_paths(flows: Flows, runs: Sequence[Held], seconds: float, effort: float, hint: Sequence[Held] = ()) -> FlowChoice | None:
    """CP-SAT's choice of a run for each place, so that paths within the limits carry most; None where there are too many paths.

    With all runs of a problem, `exact` says whether the answer is the best there is, or that there is none.
    """
    paths = Paths(flows, runs)
    every = paths.every(ALL_PATHS)
    if every is None:
        return None
    if not every:
        return FlowChoice(None, 0.0, exact=True)
    model = cp_sat.Model()
    rates = [flows.rate(run) for run in paths.runs]
    unit = 2.0 ** (_BITS - math.frexp(max(rates))[1])
    most = [max(1, math.ceil(rate * unit)) for rate in rates]
    take = [model.new_bool_var("") for _ in paths.runs]
    users, ways, of_place = defaultdict(list), defaultdict(list), defaultdict(list)
    flow = []
    for path in every:
        flow.append(model.new_int_var(0, min(most[n] for n in path), ""))
        for source, target in zip((-1, *path), path, strict=False):
            users[target].append(flow[-1])
            ways[source, target].append(flow[-1])
    for number, (place, _, _) in enumerate(paths.runs):
        of_place[place].append(take[number])
        model.add(sum(users[number]) <= most[number] * take[number])
    for way, some in ways.items():
        if paths.room(*way) < rates[way[1]]:
            model.add(sum(some) <= math.ceil(paths.room(*way) * unit))
    for some in of_place.values():
        model.add_at_most_one(some)
    limit_nodes(model, flows, paths.runs, take)
    chosen = set(hint)
    for run, x in zip(paths.runs, take, strict=True) if hint else ():
        model.add_hint(x, run in chosen)
    model.maximize(sum(flow))
    solver = cp_sat.solver(seconds)
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return FlowChoice(None, math.inf, exact=False)
    used = {n for path, variable in zip(every, flow, strict=True) if solver.value(variable) for n in path}
    return FlowChoice(tuple(paths.runs[n] for n in sorted(used)), solver.best_objective_bound / unit, exact=status == cp_model.OPTIMAL)
