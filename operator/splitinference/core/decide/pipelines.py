"""Plans of several pipelines: as many as fit, and pipelines that work stay where they are.

Pipelines share no node, so each of them is a plan of its own for the nodes that the others leave. A reason that concerns one pipeline
changes that one. All pipelines are planned anew together only where it is the only way, or where that is better by more than the policy
asks of a move and nobody waits for it: for an optional reason, or another specification with as many pipelines.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.decide.base.compare import gain, move_seconds, net_gain
from splitinference.core.decide.base.decision import Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Policy
from splitinference.core.decide.base.validated_solver import Solver
from splitinference.core.decide.feasibility.reachable_plans import best_reachable
from splitinference.core.decide.feasibility.restrict import may_stay, pinned, same_cuts, without
from splitinference.core.planner.diagnose import memory_words
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Goal, Objective, Problem, Slo

Found = tuple[Plan | Keep, tuple[str, ...]]
"""A plan with notes for the message, or why there is none."""
_PROVEN_GAP = 1e-6
_STAY = "pipelines that work stay as they are; the others are planned for the nodes that are left"


def several(problem: Problem, current: Plan | None) -> bool:
    """Whether a decision is about more than one pipeline: asked for, or there already."""
    return problem.constraints.pipelines > 1 or (current is not None and len(current.pipelines) > 1)


def counting(problem: Problem, pipelines: int) -> Problem:
    """The problem with this many pipelines."""
    if problem.constraints.pipelines == pipelines:
        return problem
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"pipelines": pipelines})})


def parts(plan: Plan) -> tuple[Plan, ...]:
    """Each pipeline as a plan of its own."""
    return tuple(Plan(model_digest=plan.model_digest, pipelines=(Pipeline(segments=p.segments),)) for p in plan.pipelines)


def joined(plans: Iterable[Plan]) -> Plan:
    """The pipelines of these plans as one plan; requests are spread evenly in the prediction."""
    found = [(plan.model_digest, pipeline.segments) for plan in plans for pipeline in plan.pipelines]
    pipelines = tuple(Pipeline(segments=segments, share=1.0 / len(found)) for _, segments in found)
    return Plan(model_digest=found[0][0], pipelines=pipelines)


def aligned(plan: Plan, current: Plan | None) -> Plan:
    """The same plan with the pipelines that both plans have in the places that they have in `current`, so that their numbers stay."""
    if current is None or len(plan.pipelines) == 1:
        return plan
    there = {pipeline.segments for pipeline in plan.pipelines}
    new = [p.segments for p in plan.pipelines if p.segments not in {c.segments for c in current.pipelines}]
    ordered = []
    for pipeline in current.pipelines:
        if pipeline.segments in there:
            ordered.append(pipeline.segments)
        elif new:
            ordered.append(new.pop(0))
    share = {p.segments: p.share for p in plan.pipelines}
    pipelines = tuple(Pipeline(segments=segments, share=share[segments]) for segments in (*ordered, *new))
    return plan if pipelines == plan.pipelines else plan.model_copy(update={"pipelines": pipelines})


def valued(plan: Plan, problem: Problem, best: Plan | None = None) -> Plan | None:
    """The plan with what the cost model says of it, proven as far as the bound of `best` says; None where it breaks a constraint."""
    if violations(plan, problem):
        return None
    value = objective_value(plan, problem)
    bound = best.bound if best is not None else None
    gap = None if bound is None or not value else abs(value - bound) / abs(value)
    known = {"prediction": predict(plan, problem), "value": value, "bound": bound, "gap": gap, "explanation": (_STAY,)}
    return plan.model_copy(update={**known, "optimal": gap is not None and gap <= _PROVEN_GAP})


def beside(problem: Problem, others: Sequence[Plan], pipelines: int = 1) -> Problem | None:
    """The problem of so many pipelines on the nodes, and within the budgets, that the others leave; None where there may be no further
    node."""
    taken = {name for plan in others for segment in plan.segments for name in segment.nodes}
    left, bounds = without(counting(problem, pipelines), taken), problem.constraints
    used = [node for node in problem.snapshot.nodes if node.name in taken]
    amounts = {
        "max_nodes": len(taken),
        "max_cost_per_hour": math.fsum(node.cost_per_hour for node in used),
        "max_watts": math.fsum(node.busy_watts for node in used),
    }
    limited = {name: getattr(bounds, name) - amount for name, amount in amounts.items() if getattr(bounds, name) is not None}
    if any(amount <= 0 for amount in limited.values()):
        return None
    return left.model_copy(update={"constraints": left.constraints.model_copy(update=limited)})


def most_possible(problem: Problem) -> int:
    """No more pipelines than this fit: by the nodes that each needs, and by the memory that the model needs where it is not cut at all."""
    usable = [node for node in problem.snapshot.nodes if unusable(node, problem) is None]
    most = len(usable) if problem.constraints.max_nodes is None else min(len(usable), problem.constraints.max_nodes)
    free = sum(site.memory_bytes for node in usable for site in sites(node))
    return min(most // problem.constraints.min_segments, free // memory_bytes(problem, 0, len(problem.profile.layers)))


def as_many_as_fit(problem: Problem, most: int) -> Problem:
    """The problem with as many pipelines as there can be by nodes and memory, at least one and at most so many."""
    return counting(problem, max(1, min(most, most_possible(problem))))


def without_slo(problem: Problem) -> Problem:
    """The problem for when no plan keeps the SLO. Where the goal is not about time, it is latency then: the cheapest plan of all would be
    further from the SLO than need be."""
    goals_of_time = (Goal.LATENCY, Goal.BOTTLENECK)
    objective = problem.objective if problem.objective.goal in goals_of_time else Objective()
    return problem.model_copy(update={"slo": Slo(), "objective": objective})


@dataclass(frozen=True)
class SeveralPipelines:
    """The mandatory decision where it is about several pipelines. `current`: the plan whose pipelines may stay; `recut`: those that do not
    work may be cut elsewhere at once."""

    inputs: DecisionInputs
    policy: Policy
    solver: Solver
    current: Plan | None
    recut: bool

    def most(self, problem: Problem, least: int = 1) -> Found:
        """A reachable plan with as many pipelines as are requested, else with as many as there can be, from `least` on."""
        found = self._most(problem, least)
        if isinstance(found[0], Keep) and problem.slo != Slo():
            relaxed, notes = self._most(without_slo(problem), least)
            if isinstance(relaxed, Plan):
                return relaxed, (f"no plan meets the SLO: {found[0].message}", *notes)
        return found

    def _most(self, problem: Problem, least: int) -> Found:
        wanted, possible = problem.constraints.pipelines, most_possible(problem)
        message = f"{wanted} pipelines are required, and there can be at most {possible}; {memory_words(problem)}"
        why = Keep(reason=Kept.INFEASIBLE, message=message)
        if wanted <= possible:
            first = self.of(problem, wanted)
            if isinstance(first, Plan):
                return first, ()
            why = first
        best: Plan | None = None
        low, high = least - 1, min(wanted, possible + 1)
        guess = len(self._working(problem))
        while high - low > 1:
            number = guess if low < guess < high else (low + high) // 2
            found = self.of(problem, number)
            if isinstance(found, Plan):
                low, best = number, found
            else:
                high, why = number, found
        if best is None:
            return why, ()
        return best, (f"{wanted} pipelines are requested, {len(best.pipelines)} fit: {why.message}",)

    def of(self, problem: Problem, number: int) -> Plan | Keep:
        """The best reachable plan of exactly so many pipelines."""
        problem = counting(problem, number)
        keeping = self._keeping(problem, number)
        if keeping is not None and not self._compares(number) and self.solver.reachable(keeping):
            return keeping
        joint = self.solver.best(problem, None)
        if isinstance(joint, Plan):
            joint = self._aligned(joint, problem)
        candidates = [plan for plan in self._in_order(joint, keeping, problem) if plan is not None]
        if not candidates:
            return joint if isinstance(joint, Keep) else Keep(reason=Kept.INFEASIBLE)
        if self.inputs.plan is None:
            return candidates[0]
        for plan in candidates:
            if self.solver.reachable(plan):
                return plan
        if (other := best_reachable(candidates[0], problem, self.inputs, self.policy, self.solver)) is not None:
            return self._aligned(other, problem)
        end = self.solver.dry_run(candidates[0])
        why = f": {end.why}" if isinstance(end, Blocked) else ""
        return Keep(reason=Kept.BLOCKED, message=f"no plan of {number} pipelines can be reached from the serving segments{why}")

    def _compares(self, number: int) -> bool:
        """Whether all may be planned anew although there is a plan that keeps what works: where another specification asks for as many
        pipelines as there are. Otherwise nobody waits for the better plan, and an optional move may lead to it. Another number of
        pipelines alone is no such specification: who scales wants what serves to stay."""
        inputs, plan = self.inputs, self.inputs.plan
        changed = inputs.plan_spec_digest != inputs.spec_digest and not inputs.only_scaled
        return changed and plan is not None and number == len(plan.pipelines)

    def _aligned(self, plan: Plan, problem: Problem) -> Plan:
        ordered = aligned(plan, self.inputs.plan)
        return plan if ordered is plan else ordered.model_copy(update={"prediction": predict(ordered, problem)})

    def _in_order(self, joint: Plan | Keep, keeping: Plan | None, problem: Problem) -> tuple[Plan | None, ...]:
        """The plan that keeps what works comes first, unless planning all anew pays for the longer move."""
        if isinstance(joint, Keep) or keeping is None:
            return (keeping, None if isinstance(joint, Keep) else joint)
        longer = move_seconds(joint, problem, self.policy) - move_seconds(keeping, problem, self.policy)
        further = gain(objective_value(keeping, problem), objective_value(joint, problem), problem)
        pays = further - longer / self.policy.payback.total_seconds() > self.policy.min_gain
        return (joint, keeping) if pays else (keeping, joint)

    def _working(self, problem: Problem) -> tuple[Plan, ...]:
        """The pipelines of the current plan that break no constraint, best first. The SLO is no reason to stop one."""
        if self.current is None or self.current.model_digest != problem.profile.digest:
            return ()
        single = counting(problem, 1).model_copy(update={"slo": Slo()})
        works = [plan for plan in parts(self.current) if not violations(plan, single)]
        return tuple(sorted(works, key=lambda plan: objective_value(plan, single)))

    def _keeping(self, problem: Problem, number: int) -> Plan | None:
        """A plan in which the pipelines that work stay, with others beside them or without the worst ones; None where there is none."""
        works = self._working(problem)[:number]
        if not works:
            return None
        chosen = self._one_by_one(problem, works, number)
        if len(chosen) < number:
            left = beside(problem, works, number - len(works)) if number - len(works) > 1 else None
            more = self.solver.best(left, None) if left is not None else None
            if not isinstance(more, Plan):
                return None
            chosen = [*works, more]
        return valued(aligned(joined(chosen), self.inputs.plan), problem)

    def _one_by_one(self, problem: Problem, works: Sequence[Plan], number: int) -> list[Plan]:
        """Those that work, and beside them one more after the other: first in place of those that do not work. Fewer where none fits."""
        chosen, all_parts = list(works), parts(self.current) if self.current is not None else ()
        broken = [plan for plan in all_parts if plan not in self._working(problem)]
        for place, old in enumerate((*broken, *[None] * number)):
            mended = self._one_more(problem, chosen, old, broken[place + 1 :]) if len(chosen) < number else None
            if mended is None and old is None:
                break
            chosen += [mended] if mended is not None else []
        return chosen

    def _one_more(self, problem: Problem, chosen: Sequence[Plan], old: Plan | None, later: Sequence[Plan]) -> Plan | None:
        """One pipeline beside the chosen ones, where possible with the cuts and the working segments of `old`, and without the nodes of the
        working segments of those that come `later`."""
        left = beside(problem, chosen)
        if left is None:
            return None
        if old is not None and not self.recut and (same := same_cuts(left, old)) is not None:
            same = without(same, {segment.node for plan in later for segment in may_stay(plan, same)})
            for staying in dict.fromkeys((may_stay(old, same), ())):
                plan = self.solver.best(pinned(same, staying), None)
                if isinstance(plan, Plan):
                    return plan
        plan = self.solver.best(left, None)
        return plan if isinstance(plan, Plan) else None


def better_of_several(current: Plan, problem: Problem, policy: Policy, solver: Solver, one: Plan | Keep) -> Plan | Keep:
    """For an optional reason: the plan in which only the slowest pipeline moves, or the joint plan where that gains more by `resplit_gain`.
    `one`: the slowest pipeline's best plan on its nodes and those that no pipeline has."""
    options = list(_options(current, problem, solver, one))
    if not options:
        return one if isinstance(one, Keep) else Keep(reason=Kept.INFEASIBLE, message="no plan keeps the other pipelines as they are")
    least, *more = options
    extra = (net_gain(current, plan, problem, policy) - net_gain(current, least, problem, policy) for plan in more)
    return more[0] if any(further > policy.resplit_gain for further in extra) else least


def _options(current: Plan, problem: Problem, solver: Solver, one: Plan | Keep) -> Iterator[Plan]:
    joint = solver.best(problem, current)
    if isinstance(one, Plan):
        slowest, others = slowest_and_others(current, problem)
        plan = valued(aligned(joined([*others, one]), current), problem, joint if isinstance(joint, Plan) else None)
        if plan is not None:
            unchanged = parts(one)[0] == slowest
            yield current.model_copy(update={"prediction": plan.prediction, "value": plan.value}) if unchanged else plan
    if isinstance(joint, Plan):
        ordered = aligned(joint, current)
        yield joint if ordered is joint else ordered.model_copy(update={"prediction": predict(ordered, problem)})


def slowest_and_others(current: Plan, problem: Problem) -> tuple[Plan, tuple[Plan, ...]]:
    """The pipeline with the worst value, the only one whose move alone can better the plan; and the other pipelines."""
    single, each = counting(problem, 1), parts(current)
    slowest = max(each, key=lambda plan: objective_value(plan, single))
    return slowest, tuple(plan for plan in each if plan is not slowest)
