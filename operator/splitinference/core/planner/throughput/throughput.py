"""Tokens per second of all nodes together: which run of layers each holds, so that the flow through runs and links is largest.

Small problems are one CP-SAT model over all runs, and exact. For large ones several ways propose runs: stages held by a mix of kinds
of nodes, chains of least bottleneck on what is left, simple rules, each on all nodes and on the groups of nodes that thin links keep
apart. The best by flow is improved by single changes, and CP-SAT chooses among the runs of all of them.
The bound is what all places could do if work were a fluid, with weights of the layers improved by subgradient steps.
"""

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.flow import Run, flow_over, runs_of
from splitinference.core.planner.bottleneck.bottleneck import least_bottleneck
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import task_of
from splitinference.core.planner.columns.fluid import most_steps_per_ms
from splitinference.core.planner.columns.presolve import needed_nodes
from splitinference.core.planner.columns.share import without_nodes
from splitinference.core.planner.throughput.flows import Flows, Held
from splitinference.core.planner.throughput.master import choose_runs
from splitinference.core.planner.throughput.rules import RULES
from splitinference.core.planner.throughput.stages import staged
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Problem

ALL_RUNS = 400
"""Up to so many runs the model over all of them is solved to the end."""
MOST_COLUMNS, MOST_PLACES = 1_200, 64
EXACT_EFFORT, CHOICE_EFFORT = 6.0, 3.0
"""CP-SAT's own measure of work, about seconds: with the same effort the same problem gets the same plan."""
NEAR = 0.05
"""Gap at which no further proposals are looked for."""
MOST_CHAINS = 12
MOST_TRIED = 60_000
"""Single changes that are tried at most, times the number of places."""
LEVELS = 4


def most_throughput(problem: Problem, known: Plan | None, expired: Callable[[], bool], seconds: float) -> tuple[Plan | None, float] | None:
    """The plan of most tokens per second and an upper bound; None if nothing can hold the whole model."""
    tables = Tables(problem)
    if not tables.count:
        return None
    flows, scale = Flows(tables), 1e3 * problem.workload.batch
    # On many places chains come first: they are quick, and then there is an answer whenever the time is over.
    first = _chains(flows, expired) if len(flows.places) > MOST_PLACES else ()
    if first is None and known is None:
        return None
    best = [] if known is None else [known]
    few = _all_runs(flows)
    if few is not None:
        choice = choose_runs(flows, few, (), seconds / 2, EXACT_EFFORT)
        if choice.exact and not choice.runs:
            return None
        best += _plans(flows, [choice.runs or ()])
        if choice.exact and len(best) > (known is not None):
            return _most(best, problem), scale * choice.bound
    bound = scale * most_steps_per_ms(tables)
    candidates = [held for held in [first or (), *([] if expired() else [staged(flows, expired) or ()])] if held]
    reached = scale * max(map(flows.value, candidates), default=0.0)
    if reached < (1 - NEAR) * bound and not (candidates and expired()):
        chains = first or _chains(flows, expired)
        if chains is None and not candidates and known is None:
            return None
        candidates += [chains or (), *_by_rules(flows), *_apart(flows, expired)]
        if known is not None:
            candidates.append(tuple((flows.number[s.node.name, s.processor], a, b) for s, a, b in runs_of(known, problem)))
        candidates = _polished([held for held in candidates if held and _few_nodes(held, flows)], flows, expired, seconds)
    best += _plans(flows, sorted(candidates, key=flows.value, reverse=True))
    return (_most(best, problem) if best else None), bound


def _most(plans: list[Plan], problem: Problem) -> Plan:
    """The plan of most tokens per second; of equals the first."""
    value = {id(plan): objective_value(plan, problem) for plan in plans}
    best = max(value.values())
    return next(plan for plan in plans if value[id(plan)] >= best * (1 - 1e-9))


def _all_runs(flows: Flows) -> list[Held] | None:
    """Every run of every place; None where they are many."""
    if len(flows.places) * flows.tables.layers > 4 * ALL_RUNS:
        return None
    found: list[Held] = []
    for a in range(flows.tables.layers):
        rates = flows.rates_from(a)
        found.extend((p, a, int(b)) for p, c in enumerate(flows.kind) for b in np.flatnonzero(rates[c]))
    return found if len(found) <= ALL_RUNS else None


def _few_nodes(held: tuple[Held, ...], flows: Flows) -> bool:
    most = flows.tables.problem.constraints.max_nodes
    return most is None or len({flows.places[p][1].node.name for p, _, _ in held}) <= most


def _chains(flows: Flows, expired: Callable[[], bool]) -> tuple[Held, ...] | None:
    """Chains of least bottleneck, one after the other on what is left; None if there is proven to be none."""
    problem, result, used = flows.tables.problem, list[Held](), set[str]()
    most = problem.constraints.max_nodes
    for number in range(MOST_CHAINS):
        if most is not None and number:
            break
        tables = Tables(needed_nodes(without_nodes(problem, used))) if used or len(flows.places) > MOST_PLACES else flows.tables
        if not tables.count:
            break
        found = least_bottleneck(task_of(tables), math.inf, expired if number else lambda: False)
        if found.steps is None:
            if not number and math.isinf(found.bound):
                return None
            break
        left = {step.place: list(tables.members[step.place]) for step in found.steps}
        for step in found.steps:
            _, site = left[step.place].pop(0)
            result.append((flows.number[site.node.name, site.processor], step.start, step.end))
            used.add(site.node.name)
        if expired():
            break
    return tuple(result)


def _by_rules(flows: Flows) -> Iterator[tuple[Held, ...]]:
    """Runs by simple rules. They know memory alone: runs that may not be are left out."""
    for rule in RULES.values():
        held = ((flows.number[site.node.name, site.processor], a, b) for site, a, b in rule(flows.tables.problem))
        yield tuple(run for run in held if flows.rate(run) > 0)


def _apart(flows: Flows, expired: Callable[[], bool]) -> Iterator[tuple[Held, ...]]:
    """Groups of places that links thinner than a level keep apart, each planned for itself, for a few levels."""
    rooms = flows.links(max(1, flows.tables.layers // 2)) if flows.tables.layers > 1 else np.zeros((1, 1))
    both = np.minimum(rooms, rooms.T)
    levels = np.unique(both[both > 0])
    seen = set()
    for level in np.unique(levels[np.linspace(0, len(levels) - 1, LEVELS).astype(int)]) if len(levels) else ():
        groups = _components(both >= level)
        key = tuple(sorted(map(tuple, groups)))
        if len(groups) == 1 or key in seen or len(groups) > len(flows.places) // 2 or expired():
            continue
        seen.add(key)
        result: list[Held] = []
        for group in groups:
            result.extend(_on_part(flows, group, expired))
        yield tuple(result)


def _components(connected: np.ndarray) -> list[list[int]]:
    """Classes that are connected, directly or over others."""
    left, groups = set(range(len(connected))), []
    while left:
        group, front = set(), [left.pop()]
        while front:
            here = front.pop()
            group.add(here)
            near = [n for n in left if connected[here, n]]
            left.difference_update(near)
            front.extend(near)
        groups.append(sorted(group))
    return groups


def _on_part(flows: Flows, classes: list[int], expired: Callable[[], bool]) -> Iterable[Held]:
    """The best runs on some classes of places alone; none where they cannot hold the model."""
    names = {site.node.name for c in classes for _, site in flows.tables.members[c]}
    others = {node.name for node in flows.tables.problem.snapshot.nodes} - names
    tables = Tables(without_nodes(flows.tables.problem, others))
    if not tables.count:
        return ()
    part = Flows(tables)
    proposals = [held for held in (staged(part, expired), _chains(part, expired), *_by_rules(part)) if held]
    if not proposals:
        return ()
    best = max(proposals, key=part.value)
    places = [part.places[p][1] for p, _, _ in best]
    return [(flows.number[site.node.name, site.processor], a, b) for site, (_, a, b) in zip(places, best, strict=True)]


def _polished(candidates: list[tuple[Held, ...]], flows: Flows, expired: Callable[[], bool], seconds: float) -> list[tuple[Held, ...]]:
    """The candidates, the best of them improved, and what CP-SAT makes of the runs of all."""
    ordered = sorted(candidates, key=flows.value, reverse=True)
    ordered = [*(_improved(held, flows, expired) for held in ordered[:2]), *ordered]
    columns = {run for held in ordered for run in held}
    if columns and len(flows.places) <= MOST_PLACES and not expired():
        columns |= set(_crossed(columns, flows))
        best = max(ordered, key=flows.value)
        choice = choose_runs(flows, columns, best, seconds / 4, CHOICE_EFFORT)
        if choice.runs:
            ordered.append(_improved(choice.runs, flows, expired))
    return ordered


def _crossed(columns: Iterable[Held], flows: Flows) -> Iterator[Held]:
    """Further runs between boundaries that occur, for every place; the runs of most use first, up to a number."""
    spans = sorted({run[1:] for run in columns})
    room = MOST_COLUMNS
    for a, b in spans:
        rates = flows.rates_from(a)
        for place, c in enumerate(flows.kind):
            if rates[c, b] > 0 and room > 0:
                room -= 1
                yield place, a, b


def _improved(held: tuple[Held, ...], flows: Flows, expired: Callable[[], bool]) -> tuple[Held, ...]:
    """Single changes while the flow grows: a place holds another run or none, or a cut shifts for all."""
    now = {place: (a, b) for place, a, b in held}
    value, tries = flows.value(held), MOST_TRIED // max(1, len(flows.places))
    again = True
    while again:
        again = False
        for changed in _changes(now, flows):
            tries -= 1
            if tries < 0 or expired():
                return _held(now)
            other = _held(changed)
            found = flows.value(other)
            if found > value * (1 + 1e-9) and _few_nodes(other, flows):
                now, value, again = changed, found, True
                break
    return _held(now)


def _held(now: dict[int, tuple[int, int]]) -> tuple[Held, ...]:
    return tuple((place, a, b) for place, (a, b) in sorted(now.items()))


def _changes(now: dict[int, tuple[int, int]], flows: Flows) -> Iterator[dict[int, tuple[int, int]]]:
    spans = sorted(set(now.values()))
    cuts = sorted({point for span in spans for point in span})
    for cut in cuts[1:-1]:
        for shift in (-2, -1, 1, 2):
            if not 0 < cut + shift < flows.tables.layers:
                continue
            changed = {p: (a + shift if a == cut else a, b + shift if b == cut else b) for p, (a, b) in now.items()}
            if all(a < b and flows.rate((p, a, b)) > 0 for p, (a, b) in changed.items()):
                yield changed
    for place in range(len(flows.places)):
        here = now.get(place)
        for span in spans:
            if span != here and flows.rate((place, *span)) > 0:
                yield {**now, place: span}


def _plans(flows: Flows, candidates: Iterable[tuple[Held, ...]]) -> list[Plan]:
    """The first candidate that the judge accepts as a plan."""
    problem = flows.tables.problem
    for held in candidates:
        plan = _plan([(flows.places[p][1], a, b) for p, a, b in held], problem)
        if plan is not None and not violations(plan, problem):
            return [plan]
    return []


def _plan(runs: list[Run], problem: Problem) -> Plan | None:
    """The runs as pipelines: the flow taken apart into paths, widest first, each with its share. None if nothing flows."""
    total, edges = flow_over(runs, problem)
    left = {(a, b): flow for a, b, flow in edges}
    paths: list[tuple[tuple[int, ...], float]] = []
    for _ in range(len(edges) + 1):
        path, flow = _widest(runs, left, len(problem.profile.layers))
        if not path or flow <= total * 1e-9:
            break
        for edge in zip((-1, *path), path, strict=False):
            left[edge] -= flow
        paths.append((path, flow))
    if not paths:
        return None
    carried = math.fsum(flow for _, flow in paths)
    pipelines = (Pipeline(segments=_segments([runs[n] for n in path]), share=min(1.0, flow / carried)) for path, flow in paths)
    return Plan(model_digest=problem.profile.digest, pipelines=tuple(pipelines))


def _widest(runs: list[Run], left: dict[tuple[int, int], float], layers: int) -> tuple[tuple[int, ...], float]:
    """The path from the gateway to the last layer over which most flow is left."""
    width = {-1: math.inf}
    path: dict[int, tuple[int, ...]] = {-1: ()}
    into: dict[int, list[int]] = {}
    for (a, b), flow in sorted(left.items()):
        if flow > 0:
            into.setdefault(b, []).append(a)
    for here in sorted(into, key=lambda n: (runs[n][2], n)):
        wide = [(min(width[a], left[a, here]), -a) for a in into[here] if width.get(a, 0.0) > 0]
        if wide:
            width[here], before = max(wide)
            path[here] = (*path[-before], here)
    done = [n for n in width if n >= 0 and runs[n][2] == layers]
    if not done:
        return (), 0.0
    best = max(done, key=lambda n: (width[n], -n))
    return path[best], width[best]


def _segments(path: list[Run]) -> tuple[Segment, ...]:
    result, at = [], 0
    for site, start, end in path:
        held = start if start < at else None
        result.append(Segment(start=at, end=end, node=site.node.name, processor=site.processor, held_start=held))
        at = end
    return tuple(result)
