"""Tokens per second of all nodes together: which run of layers each holds, so that the flow through runs and links is largest.

Small problems are one CP-SAT model over all runs, and exact. For large ones several ways propose runs: stages held by a mix of kinds
of nodes, chains of least bottleneck on what is left, simple rules, each on all nodes and on the groups of nodes that thin links keep
apart. The best by flow is improved by single changes, and CP-SAT chooses among the runs of all of them.
The bound is what all places could do if work were a fluid, with weights of the layers improved by subgradient steps.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np

from splitinference.core.cost.flow import runs_of
from splitinference.core.planner.bottleneck.bottleneck import least_bottleneck
from splitinference.core.planner.chain.chain import Chain, best_chain
from splitinference.core.planner.chain.criterion import sum_of
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import Task, task_of
from splitinference.core.planner.columns.fluid import most_steps_per_ms
from splitinference.core.planner.columns.presolve import needed_nodes
from splitinference.core.planner.columns.share import without_nodes
from splitinference.core.planner.progress import Progress
from splitinference.core.planner.throughput.decomposition import plan_of_runs, segments_along
from splitinference.core.planner.throughput.flows import Flows, Held
from splitinference.core.planner.throughput.master import FlowChoice, choose_runs
from splitinference.core.planner.throughput.mixes import mixed
from splitinference.core.planner.throughput.paths import Spread, choose_paths, spread
from splitinference.core.planner.throughput.rules import RULES
from splitinference.core.planner.throughput.stages import staged
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Problem

ALL_RUNS = 400
"""Up to so many runs the model over all of them is solved to the end."""
MOST_COLUMNS, MOST_PLACES = 1_200, 64
EXACT_EFFORT, CHOICE_EFFORT = 6.0, 3.0
"""CP-SAT's own measure of work, about seconds: with the same effort the same problem gets the same plan."""
NEAR = 0.05
"""Gap at which no further proposals are looked for."""
MOST_CHAINS = 12
MOST_RULED = 128
"""Of more places the simple rules take longer than the programme that is better than they."""
MOST_ZONES = 16
"""Of so many zones each is also planned for itself."""
MOST_TRIED = 60_000
"""Single changes that are tried at most, times the number of places."""
FEW_TRIED = 300
"""As many where each one is a linear programme over paths."""
LEVELS = 4


def most_throughput(
    problem: Problem, known: Plan | None, expired: Callable[[], bool], seconds: float, progress: Progress
) -> tuple[Plan | None, float] | None:
    """The plan of most tokens per second and an upper bound; None if nothing can hold the whole model. `progress` hears of both."""
    tables = Tables(problem)
    if not tables.count:
        return None
    return _Search(Flows(tables), known, expired, seconds, progress).run()


class _Search:
    def __init__(self, flows: Flows, known: Plan | None, expired: Callable[[], bool], seconds: float, progress: Progress) -> None:
        self.flows, self.known, self.expired, self.seconds, self.progress = flows, known, expired, seconds, progress
        self.scale = 1e3 * flows.tables.problem.workload.batch
        self.bound = math.inf
        self.tried: set[tuple[Held, ...]] = set()
        self.by_path = flows.tables.problem.limits_paths
        self._spreads: dict[tuple[Held, ...], Spread] = {}

    def value(self, held: tuple[Held, ...]) -> float:
        """Steps per ms through runs, over paths that keep their limits."""
        return self._spread(held).value if self.by_path else self.flows.value(held)

    def _spread(self, held: tuple[Held, ...]) -> Spread:
        """Each is a series of linear programmes, and is asked for as a value, as columns and as a plan."""
        if held not in self._spreads:
            self._spreads[held] = spread(self.flows, held, self.expired)
        return self._spreads[held]

    def _exact(self) -> FlowChoice | None:
        """CP-SAT's choice among all runs; None where they are many."""
        few = _all_runs(self.flows)
        if few is None:
            return None
        if self.by_path:
            return choose_paths(self.flows, few, self.seconds / 2, EXACT_EFFORT)
        return choose_runs(self.flows, few, (), self.seconds / 2, EXACT_EFFORT)

    def run(self) -> tuple[Plan | None, float] | None:
        choice = self._exact()
        if choice is not None:
            if choice.exact and not choice.runs:
                return None
            self._offer([choice.runs or ()])
            if choice.exact and self.progress.best is not None and not self.flows.tables.problem.snapshot.network.shared:
                return self.progress.best, self.scale * choice.bound
        self.bound = self.scale * most_steps_per_ms(self.flows.tables)
        self.progress.bound(self.bound)
        candidates = [held for held in self._quick() if held and _few_nodes(held, self.flows)]
        self._offer(candidates)
        if self.progress.best is not None and self.expired():
            return self.progress.best, self.bound
        # What `bottleneck` answers and what simple rules give is compared with in any case: no answer is worse.
        # With limits on paths, the quickest chains: a chain of least bottleneck may be long, and its proof takes all the time.
        best = _quickest if self.by_path else _bottleneck
        chains = _chains(self.flows, self.expired, best, 1 if self._near() and not self.by_path else MOST_CHAINS)
        if chains is None and self.progress.best is None:
            return None
        candidates.append(chains or ())
        if len(self.flows.places) <= MOST_RULED and not self.expired():
            candidates += _by_rules(self.flows)
        candidates = [held for held in candidates if held and _few_nodes(held, self.flows)]
        self._offer(candidates)
        if self._near() or self.expired():
            return self.progress.best, self.bound
        candidates += [staged(self.flows, self.expired) or (), *_apart(self.flows, self.expired)]
        if self.known is not None:
            held = ((self.flows.number[s.node.name, s.processor], a, b) for s, a, b in runs_of(self.known, self.flows.tables.problem))
            candidates.append(tuple(held))
        candidates = [held for held in candidates if held and _few_nodes(held, self.flows)]
        self._offer(candidates)
        if not self._near():
            self._offer(self._together(candidates) if self.by_path else _polished(candidates, self.flows, self.expired, self.seconds))
        return self.progress.best, self.bound

    def _together(self, candidates: list[tuple[Held, ...]]) -> list[tuple[Held, ...]]:
        """What CP-SAT makes of the paths of the best candidates, as many of them as it can choose among."""
        ordered = sorted({held for held in candidates if self.value(held) > 0}, key=self.value, reverse=True)
        for count in range(len(ordered), 0, -1):
            columns = {run for held in ordered[:count] for path, _ in self._spread(held).paths for run in path}
            choice = choose_paths(self.flows, sorted(columns), self.seconds / 4, CHOICE_EFFORT, ordered[0])
            if choice is not None and choice.runs:
                ordered.insert(0, choice.runs)
            if choice is not None or self.expired():
                break
        return [_improved(held, self.flows, self.expired, self.value, FEW_TRIED) for held in ordered[:1]]

    def _quick(self) -> Iterator[tuple[Held, ...]]:
        """Proposals that take about a second, however many places there are."""
        yield from mixed(self.flows, self.expired)
        zones: dict[str, list[int]] = {}
        for c, site in enumerate(self.flows.tables.sites):
            zones.setdefault(site.node.zone, []).append(c)
        if 1 < len(zones) <= MOST_ZONES:
            apart = [mixed(self.flows, self.expired, classes) for classes in zones.values()]
            yield tuple(run for proposals in apart if proposals for run in max(proposals, key=self.flows.value))
        if len(self.flows.places) <= MOST_PLACES and not self.expired():
            yield staged(self.flows, self.expired) or ()

    def _near(self) -> bool:
        return self.progress.best is not None and self.progress.value >= (1 - NEAR) * self.bound

    def _offer(self, candidates: Iterable[tuple[Held, ...]]) -> None:
        """The best by flow becomes a plan; where the judge refuses it, the next one."""
        problem = self.flows.tables.problem
        values = {held: self.scale * self.value(held) for held in candidates if held and held not in self.tried}
        for held in sorted(values, key=lambda one: values[one], reverse=True):
            if self.progress.best is not None and values[held] <= self.progress.value * (1 + 1e-9):
                return
            self.tried.add(held)
            plan = self._plan(held)
            if plan is None or not self.progress.plan(plan):
                continue
            # What the judge finds less of than the flow promised is a shared link's: another proposal may be better over it.
            if not problem.snapshot.network.shared:
                return

    def _plan(self, held: tuple[Held, ...]) -> Plan | None:
        problem = self.flows.tables.problem
        if not self.by_path:
            return plan_of_runs([(self.flows.places[p][1], a, b) for p, a, b in held], problem)
        found = self._spread(held)
        if not found.paths:
            return None
        runs = [([(self.flows.places[p][1], a, b) for p, a, b in path], flow / found.value) for path, flow in found.paths]
        pipelines = (Pipeline(segments=segments_along(path), share=min(1.0, share)) for path, share in runs)
        return Plan(model_digest=problem.profile.digest, pipelines=tuple(pipelines))


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


def _bottleneck(task: Task) -> Chain:
    return least_bottleneck(task, math.inf, lambda: False)


def _quickest(task: Task) -> Chain:
    """The chain of least time within the limits."""
    return best_chain(replace(task, objective=sum_of(task.tables, prefill=1.0, decode=1.0), occupancy_weight=0.0), math.inf, lambda: False)


def _chains(flows: Flows, expired: Callable[[], bool], best: Callable[[Task], Chain], most: int) -> tuple[Held, ...] | None:
    """At most so many chains, each the `best` on what the ones before left; None if there is proven to be none."""
    problem, result, used = flows.tables.problem, list[Held](), set[str]()
    for number in range(1 if problem.constraints.max_nodes is not None else most):
        tables = Tables(needed_nodes(without_nodes(problem, used))) if used or len(flows.places) > MOST_PLACES else flows.tables
        if not tables.count:
            break
        found = best(task_of(tables))
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
    proposals = [held for held in (staged(part, expired), _chains(part, expired, _bottleneck, MOST_CHAINS), *_by_rules(part)) if held]
    if not proposals:
        return ()
    best = max(proposals, key=part.value)
    places = [part.places[p][1] for p, _, _ in best]
    return [(flows.number[site.node.name, site.processor], a, b) for site, (_, a, b) in zip(places, best, strict=True)]


def _polished(candidates: list[tuple[Held, ...]], flows: Flows, expired: Callable[[], bool], seconds: float) -> list[tuple[Held, ...]]:
    """The candidates, the best of them improved, and what CP-SAT makes of the runs of all."""
    ordered = sorted(candidates, key=flows.value, reverse=True)
    tries = MOST_TRIED // max(1, len(flows.places))
    ordered = [*(_improved(held, flows, expired, flows.value, tries) for held in ordered[:2]), *ordered]
    columns = {run for held in ordered for run in held}
    if columns and len(flows.places) <= MOST_PLACES and not expired():
        columns |= set(_crossed(columns, flows))
        best = max(ordered, key=flows.value)
        choice = choose_runs(flows, columns, best, seconds / 4, CHOICE_EFFORT)
        if choice.runs:
            ordered.append(_improved(choice.runs, flows, expired, flows.value, tries))
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


def _improved(
    held: tuple[Held, ...], flows: Flows, expired: Callable[[], bool], value_of: Callable[[tuple[Held, ...]], float], tries: int
) -> tuple[Held, ...]:
    """Single changes while the value grows: a place holds another run or none, or a cut shifts for all."""
    now = {place: (a, b) for place, a, b in held}
    value = value_of(held)
    again = True
    while again:
        again = False
        for changed in _changes(now, flows):
            tries -= 1
            if tries < 0 or expired():
                return _held(now)
            other = _held(changed)
            found = value_of(other)
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
