"""The master problem of throughput: CP-SAT chooses a run of layers for each place, and the flow through runs and links.

Columns are runs. A place holds at most one; the flow through it is at most its stage's rate, and over a link at most the link's. What
flows out of a place at a boundary flows into places that go on from there. With all runs as columns the answer is exact.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ortools.sat.python import cp_model

from splitinference.core.planner.columns import cp_sat
from splitinference.core.planner.throughput.flows import Flows, Held

_BITS = 24
"""Bits of the largest rate: capacities round up by less than one part in ten million. With more bits the solver's relaxation gives up."""


@dataclass(frozen=True)
class FlowChoice:
    """The chosen runs (None: none found), and a bound for flows through these columns, in steps per ms; `exact`: the gap is closed."""

    runs: tuple[Held, ...] | None
    bound: float
    exact: bool


def choose_runs(flows: Flows, columns: Collection[Held], hint: Sequence[Held], seconds: float, effort: float) -> FlowChoice:
    """The runs of most flow. `effort`: the solver's own measure of work, so that the answer does not depend on the machine."""
    runs = sorted(run for run in set(columns) if flows.rate(run) > 0)
    if not runs:
        return FlowChoice(None, 0.0, exact=True)
    built = _Model(flows, runs)
    if hint:
        held = set(hint)
        for run, x in zip(runs, built.take, strict=True):
            built.model.add_hint(x, run in held)
    solver = cp_sat.solver(seconds)
    solver.parameters.linearization_level = 2
    solver.parameters.max_deterministic_time = effort
    status = solver.solve(built.model)
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return FlowChoice(None, math.inf, exact=False)
    bound = solver.best_objective_bound / built.unit
    chosen = tuple(run for run, x, flow in zip(runs, built.take, built.through, strict=True) if solver.value(x) and solver.value(flow))
    # Capacities are rounded up, so no flow is larger than the bound; what the chosen runs really pass the judge computes.
    return FlowChoice(chosen, bound, exact=status == cp_model.OPTIMAL)


def limit_nodes(model: cp_model.CpModel, flows: Flows, runs: Sequence[Held], take: Sequence[Any]) -> None:
    """No more nodes hold one of the `runs` than the problem allows; `take`: whether each run is chosen."""
    most = flows.tables.problem.constraints.max_nodes
    if most is None:
        return
    users: dict[str, list[Any]] = defaultdict(list)
    for run, x in zip(runs, take, strict=True):
        users[flows.places[run[0]][1].node.name].append(x)
    used = []
    for name, some in sorted(users.items()):
        used.append(model.new_bool_var(name))
        model.add_max_equality(used[-1], some)
    model.add(sum(used) <= most)


class _Model:
    def __init__(self, flows: Flows, runs: list[Held]) -> None:
        self.flows, self.runs, self.model = flows, runs, cp_sat.Model()
        self.layers, self.partial = flows.tables.layers, flows.partial
        rates = [flows.rate(run) for run in runs]
        self.unit = 2.0 ** (_BITS - math.frexp(max(rates))[1])
        self.most = [max(1, math.ceil(rate * self.unit)) for rate in rates]
        self.take = [self.model.new_bool_var("") for _ in runs]
        self.through = [self.model.new_int_var(0, most, "") for most in self.most]
        self.of_place: dict[int, list[int]] = defaultdict(list)
        for number, (run, x, flow) in enumerate(zip(runs, self.take, self.through, strict=True)):
            self.of_place[run[0]].append(number)
            self.model.add(flow <= self.most[number] * x)
        for numbers in self.of_place.values():
            self.model.add_at_most_one(self.take[n] for n in numbers)
        limit_nodes(self.model, flows, runs, self.take)
        first = self._from_gateway()
        self._links(first)
        for place, inflow in first.items():
            room = math.ceil(min(float(flows.ingress[flows.kind[place]]) * self.unit, 2.0 ** (_BITS + 1)))
            self.model.add(inflow <= room)
        self.model.maximize(sum(first.values()) if first else 0)

    def _from_gateway(self) -> dict[int, Any]:
        """By place: what enters from the gateway, through its runs that start with the first layer."""
        found = {}
        for place, numbers in self.of_place.items():
            some = [n for n in numbers if self.runs[n][1] == 0]
            if some and self.partial:
                found[place] = self.model.new_int_var(0, max(self.most[n] for n in some), "")
                self.model.add(found[place] <= sum(self.through[n] for n in some))
            elif some:
                found[place] = sum(self.through[n] for n in some)
        return found

    def _links(self, first: dict[int, Any]) -> None:
        """What leaves a place at an inner boundary goes over links to places that go on from there."""
        inflow: dict[int, list[Any]] = defaultdict(list)
        at: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for boundary in sorted({run[2] for run in self.runs if run[2] < self.layers}):
            rooms = self.flows.links(boundary)
            outs = {p: [n for n in numbers if self.runs[n][2] == boundary] for p, numbers in self.of_place.items()}
            goes_on = {p: [n for n in numbers if self.flows.follows(boundary, self.runs[n])] for p, numbers in self.of_place.items()}
            for p, ending in outs.items():
                over = []
                for q, going in goes_on.items() if ending else ():
                    if p == q or not going:
                        continue
                    room = math.ceil(float(rooms[self.flows.kind[p], self.flows.kind[q]]) * self.unit)
                    if room > 0:
                        flow = self.model.new_int_var(0, min(room, max(self.most[n] for n in going)), "")
                        over.append(flow)
                        inflow[q].append(flow)
                        at[q, boundary].append(flow)
                if ending:
                    self.model.add(sum(over) == sum(self.through[n] for n in ending))
        if not self.partial:
            for place, numbers in self.of_place.items():
                for boundary in {self.runs[n][1] for n in numbers} - {0}:
                    through = sum(self.through[n] for n in numbers if self.runs[n][1] == boundary)
                    self.model.add(through == sum(at[place, boundary]))
            return
        for place, numbers in self.of_place.items():
            self.model.add(sum(inflow[place]) + first.get(place, 0) == sum(self.through[n] for n in numbers))
        # A flow that enters a run at a boundary needs that run to be the one that is held.
        for (place, boundary), flow in at.items():
            able = [n for n in self.of_place[place] if self.flows.follows(boundary, self.runs[n])]
            self.model.add(sum(flow) <= sum(self.through[n] for n in able))
