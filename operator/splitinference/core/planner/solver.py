"""Which algorithm answers which problem; and the judge's word on every answer before it is believed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.encoding import encoded, searched, without
from splitinference.core.cost.objective import value_of
from splitinference.core.planner.chain.task import SLACK
from splitinference.core.planner.columns.columns import plan_with
from splitinference.core.planner.columns.heuristics import greedy, heuristic_chains, memory_proportional
from splitinference.core.planner.columns.master import choose
from splitinference.core.planner.columns.pricing import chain_pool
from splitinference.core.planner.diagnose import reasons
from splitinference.core.planner.judge import CLOSED, Laid, WrongAnswerError, judged
from splitinference.core.planner.progress import Progress, Report
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Objective, Problem
from splitinference.core.values.profile import LinkEncoding
from splitinference.core.values.result import DEFAULT_LIMITS, BindingConstraint, Infeasible, Limits, Outcome, Solved, TimedOut

PROBE_SECONDS = 3.0
"""Time for the question whether a relaxed problem has a plan, when reasons are looked for."""
CHEAPER = (Goal.LATENCY, Goal.BOTTLENECK)
"""Goals that are mostly proven in a moment; their plans are compared with an answer that is not proven."""
MANY_NODES = 256
"""From so many nodes on a plan by quick rules comes first: the search may take all the time."""
_NO_REASON = BindingConstraint(
    "all", "no plan exists; the time was over before it was known why", "allow more seconds to find the smallest change"
)


class DeadlineError(BaseException):
    """The process that solves interrupts itself: whatever runs then ends here, and the best so far is the answer."""


def solve(
    problem: Problem, limits: Limits = DEFAULT_LIMITS, hint: Plan | None = None, report: Report | None = None, *, why: bool = True
) -> Outcome:
    """The best plan for `problem`, within `limits.seconds`; of equally good ones the `hint`, if that is valid still.

    `report` is told each better plan and bound on the way. Where memory ends or DeadlineError is raised, the answer is the best so far.
    `why`: whether reasons are looked for where there is no plan; that takes many solves.
    """
    if problem.link_encoding is LinkEncoding.AUTO:
        found = solve(searched(problem), limits, without(hint) if hint is not None else None, report, why=why)
        return _encoded(found, problem)
    began = limits.now()
    deadline = began + limits.seconds

    def expired() -> bool:
        return limits.now() > deadline

    progress = Progress(problem, report)
    refuted = False
    try:
        answer = _answer(problem, hint, expired, deadline - began, progress)
        if not answer.refuted and not _proven(answer, problem):
            _compare(problem, expired, progress)
        answer = _bettered(answer, progress, problem)
        refuted = answer.refuted
        if refuted:
            return Infeasible((_NO_REASON,)) if not why else Infeasible(reasons(problem, _Finder(deadline, limits.now), expired))
    except (DeadlineError, MemoryError) as ended:
        if refuted:
            return Infeasible((_NO_REASON,))
        if progress.best is None and isinstance(ended, MemoryError):
            raise
        answer = _Answer(progress.best, progress.best_bound, laid=progress.laid)
        deadline = -math.inf
    if answer.plan is None:
        return TimedOut(None, answer.bound)
    outcome = judged(answer.plan, problem, answer.bound, limits.now() - began, late=expired(), laid=answer.laid)
    return replace(outcome, columns=answer.columns) if isinstance(outcome, Solved) else outcome


def _encoded(found: Outcome, problem: Problem) -> Outcome:
    """The outcome with an encoding for each link of its plan; on all links where the plan keeps the limits in no other way."""
    plan = found.plan if isinstance(found, Solved) else found.best if isinstance(found, TimedOut) else None
    if plan is None or isinstance(found, Infeasible):
        return found
    chosen = encoded(plan, problem)
    if violations(chosen, problem):
        chosen = encoded(plan, problem, everywhere=True)
    seconds = found.seconds if isinstance(found, Solved) else 0.0
    outcome = judged(chosen, problem, found.bound, seconds, late=isinstance(found, TimedOut))
    return replace(outcome, columns=found.columns) if isinstance(outcome, Solved) and isinstance(found, Solved) else outcome


@dataclass(frozen=True)
class _Answer:
    """A plan (None: none found), a bound, whether it is proven that there is none, among how many columns it was chosen.

    `laid`: the plan laid over the problem, where the cost model has been asked.
    """

    plan: Plan | None
    bound: float
    refuted: bool = False
    columns: int = 0
    laid: Laid | None = None


def _answer(problem: Problem, hint: Plan | None, expired: Callable[[], bool], seconds: float, progress: Progress) -> _Answer:
    known = _valid(problem, hint)
    if known:
        progress.plan(known)
    if len(problem.snapshot.nodes) >= MANY_NODES:
        for plan in quick_plans(problem):
            progress.plan(plan)
    if problem.objective.goal is Goal.THROUGHPUT:
        from splitinference.core.planner.throughput.throughput import most_throughput

        flow = most_throughput(problem, known, expired, seconds, progress)
        return _Answer(None, math.inf, refuted=True) if flow is None else _Answer(*flow)
    if not needs_choice(problem):
        return _one_chain(problem, known, expired, seconds, hint, progress=progress)
    from splitinference.core.planner.columns.several import plan_together

    found = plan_together([problem], expired, seconds, progress=progress)
    if found.plans is None:
        return _Answer(known, found.bound, refuted=found.refuted and known is None)
    plan = found.plans[0]
    if known and objective_value(known, problem) <= objective_value(plan, problem) * (1 + SLACK):
        plan = known
    return _Answer(plan, found.bound, columns=found.columns)


def _proven(answer: _Answer, problem: Problem) -> bool:
    if answer.plan is None:
        return False
    value = value_of(answer.laid[1], problem) if answer.laid else objective_value(answer.plan, problem)
    return abs(value - answer.bound) <= CLOSED * abs(value)


def _compare(problem: Problem, expired: Callable[[], bool], progress: Progress) -> None:
    """Offer the plans of cheaper goals and of simple rules, as far as there is time: an answer that is not proven may be worse."""
    if problem.objective.goal is Goal.THROUGHPUT or problem.constraints.pipelines > 1:
        return
    for pipeline in heuristic_chains(problem):
        if expired():
            return
        progress.plan(Plan(model_digest=problem.profile.digest, pipelines=(pipeline,)))
    single = problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"max_stage_nodes": 1})})
    for goal in CHEAPER:
        if expired() or goal is problem.objective.goal:
            continue
        asked = single.model_copy(update={"objective": Objective(goal=goal)})
        for found in chain_pool(asked, None, expired, None, Progress(asked)).columns:
            progress.plan(plan_with(problem, (found,)))


def _bettered(answer: _Answer, progress: Progress, problem: Problem) -> _Answer:
    """The answer, or the best plan on the way where that is better: no other algorithm of ours may beat an answer."""
    if answer.refuted:
        return answer
    bound = progress.tighter(answer.bound)
    if answer.plan is None or answer.plan is progress.best:
        return replace(answer, plan=progress.best, bound=bound, laid=progress.laid)
    value = value_of(answer.laid[1], problem) if answer.laid else objective_value(answer.plan, problem)
    if progress.beats(value):
        return _Answer(progress.best, bound, laid=progress.laid)
    return replace(answer, bound=bound)


def _one_chain(
    problem: Problem, known: Plan | None, expired: Callable[[], bool], seconds: float, hint: Plan | None, *, progress: Progress
) -> _Answer:
    """The smallest case of the choice among columns: one chain for one problem."""
    pool = chain_pool(problem, known, expired, hint, progress)
    if not pool.columns:
        return _Answer(None, pool.bound, refuted=pool.refuted)
    choice = choose([problem], [pool], seconds)
    if choice.columns is None and choice.refuted:
        raise WrongAnswerError("the master refuses every chain that was priced")
    # Where the time was over before the choice, it is the best by the main goal.
    taken = choice.columns[0][0] if choice.columns else min(pool.columns, key=lambda one: value_of(one.prediction, problem))
    return _Answer(plan_with(problem, (taken,)), pool.bound, columns=len(pool.columns), laid=(taken.laid, taken.prediction))


class _Finder:
    """Some plan of a problem, found in what is left until the deadline: for the question whether a relaxed problem has one."""

    def __init__(self, deadline: float, now: Callable[[], float]) -> None:
        self._deadline, self._now = deadline, now

    def __call__(self, problem: Problem) -> Plan | None:
        """A plan, or None where there is none or the time is over."""
        left = min(PROBE_SECONDS, self._deadline - self._now())
        if left <= 0:
            return None
        deadline = self._now() + left

        def expired() -> bool:
            return self._now() > deadline

        if problem.objective.goal is Goal.THROUGHPUT:
            problem = problem.model_copy(update={"objective": Objective()})
        plain = problem.model_copy(update={"constraints": problem.constraints.model_copy(update={"partial_runs": False})})
        return _answer(plain, None, expired, left, Progress(plain)).plan


def quick_plans(problem: Problem) -> Iterator[Plan]:
    """Plans by the quickest rules, for one chain alone; which of them are valid, the judge says."""
    if needs_choice(problem) or problem.objective.goal is Goal.THROUGHPUT:
        return
    for rule in (greedy, memory_proportional):
        for pipeline in rule(problem):
            yield Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))


def needs_choice(problem: Problem) -> bool:
    """Whether a problem is about more than one chain of single nodes."""
    return problem.constraints.pipelines > 1 or problem.constraints.max_stage_nodes > 1


def _valid(problem: Problem, hint: Plan | None) -> Plan | None:
    if hint is None or hint.model_digest != problem.profile.digest or violations(hint, problem):
        return None
    return hint
