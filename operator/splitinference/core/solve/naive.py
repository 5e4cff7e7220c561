"""The obvious CP-SAT model, layer by node, as a baseline: right, and slow beyond a few nodes."""

import itertools

from ortools.sat.python import cp_model

from splitinference.core.cost import violations
from splitinference.core.plan import Pipeline, Plan
from splitinference.core.problem import Problem
from splitinference.core.solve.columns import pipeline_of
from splitinference.core.solve.criterion import Arrays
from splitinference.core.solve.relaxed import Step
from splitinference.core.solve.tables import Tables
from splitinference.core.solve.task import task_of

_SCALE = 1_000
_KIB = 1024


def naive_cp_sat(problem: Problem, seconds: float) -> Plan | None:
    """Minimise latency over which layer is on which class's member; None if nothing is found in time."""
    tables = Tables(problem)
    spread = [c for c in range(tables.count) for _ in range(int(tables.multiplicity[c]))]
    layers, count = tables.layers, len(spread)
    if not count:
        return None
    arrays = Arrays(tables, task_of(tables).objective, [tables.allowed_from(a) for a in range(layers + 1)])
    model = cp_model.CpModel()
    on = [[model.new_bool_var(f"{i}:{n}") for n in range(count)] for i in range(layers)]
    begins = [[model.new_bool_var(f"b{i}:{n}") for n in range(count)] for i in range(layers)]
    terms = []
    entering = arrays.entering()
    for i in range(layers):
        model.add_exactly_one(on[i])
        for n, c in enumerate(spread):
            cost = tables.prefill[c, i + 1] - tables.prefill[c, i] + tables.decode[c, i + 1] - tables.decode[c, i]
            terms.append(int(cost * _SCALE) * on[i][n])
            terms.append(int(2 * tables.overhead[c] * _SCALE) * begins[i][n])
            before = on[i - 1][n] if i else 0
            model.add(begins[i][n] >= on[i][n] - before)
            if i == 0:
                terms.append(int(entering[c] * _SCALE) * on[0][n])
        if i:
            hops = arrays.hops(i)
            for m in range(count):
                for n in range(count):
                    if m != n:
                        hop = model.new_bool_var("")
                        model.add_bool_or(hop, on[i - 1][m].negated(), on[i][n].negated())
                        terms.append(int(min(hops[spread[m], spread[n]], 1e9) * _SCALE) * hop)
    for n, c in enumerate(spread):
        model.add(sum(begins[i][n] for i in range(layers)) <= 1)
        bounds = problem.constraints.memory_margin
        runtime = problem.profile.runtime_bytes * (1 + bounds)
        load = sum(-(-int(tables.need[i, i + 1] - runtime) // _KIB) * on[i][n] for i in range(layers))
        model.add(load <= int(tables.free[c] - runtime) // _KIB)
    model.minimize(sum(terms))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    where = [next(n for n in range(count) if solver.value(on[i][n])) for i in range(layers)]
    cuts = [0, *(i for i in range(1, layers) if where[i] != where[i - 1]), layers]
    steps = tuple(Step(a, b, spread[where[a]]) for a, b in itertools.pairwise(cuts))
    pipeline: Pipeline = pipeline_of(tables, steps)
    plan = Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))
    return None if violations(plan, problem) else plan
