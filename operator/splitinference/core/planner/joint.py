"""Plans for several problems on the same nodes: all at once, or one after the other; never more of a node than there is.

Values of like goals add up. Unlike ones are in unlike units: there each counts as so many times what its problem reaches alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from splitinference.core.cost import objective_value
from splitinference.core.cost.checks.violations import Violation, double_booked
from splitinference.core.planner.chain.task import SLACK
from splitinference.core.planner.columns.several import Reached, plan_together
from splitinference.core.planner.columns.share import Taking, adds_up, at_pace, check_together, crowded, left_after, taking, without_nodes
from splitinference.core.planner.judge import CLOSED, WrongAnswerError, judged
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.profile import LinkEncoding
from splitinference.core.values.result import (
    DEFAULT_LIMITS,
    BindingConstraint,
    Infeasible,
    JointIncumbent,
    JointlySolved,
    JointOutcome,
    Limits,
    Solved,
    TimedOut,
)


@dataclass(frozen=True)
class _Placed:
    """A plan; the problem that says what it takes of the nodes; and the one that says what it is worth."""

    plan: Plan
    taking: Problem
    judged_on: Problem

    def takes(self) -> Taking:
        """What the plan takes of the nodes."""
        return taking(self.plan, self.taking)


Report = Callable[[JointIncumbent], None]
FEW_MODELS = 8
"""Of more problems the choice among chains of all has too many columns: single problems are planned anew beside the others."""
LEAST_CHOICE_SECONDS = 2.0
"""The choice among columns is not begun with less: mostly it is proven in a fraction of that."""
MOST_SWAPPED = 6
"""Others that a problem changes nodes with, tried one after the other."""
LEAST_SECONDS = 0.05
"""Time for one of many problems at least: enough for a plan by quick rules."""


def solve_jointly(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS, report: Report | None = None) -> JointOutcome:
    """The plans whose values have the least sum, as `JointlySolved` adds them up. Raises ValueError for what `check_together` refuses.

    One after the other comes first, and the answer is never worse. `report` is told that one and every better one, and those only.
    """
    check_together(problems, jointly=True)
    return _Jointly(tuple(_plain(problem) for problem in problems), limits, report).solve()


def _plain(problem: Problem) -> Problem:
    """Where chains of several problems are chosen together, links are plain unless a problem asks for eight bits on all of them."""
    chosen = problem.link_encoding is not LinkEncoding.AUTO
    return problem if chosen else problem.model_copy(update={"link_encoding": LinkEncoding.PLAIN})


class _Jointly:
    """One joint solve: plans one after the other, what each problem reaches alone, then what is better for all together."""

    def __init__(self, problems: tuple[Problem, ...], limits: Limits, report: Report | None) -> None:
        self.problems, self.limits, self.report = problems, limits, report
        self.began = limits.now()
        self.deadline = self.began + limits.seconds
        self.like = adds_up(problems)
        self.alone: list[Reached] = []
        self.best: JointlySolved | None = None
        self.bound = -math.inf

    def expired(self) -> bool:
        return self.limits.now() > self.deadline

    def solve(self) -> JointOutcome:
        problems, few = self.problems, len(self.problems) <= FEW_MODELS
        if not self.like:
            # Unlike values only add up in units of what each reaches alone.
            failed = self._reach_alone(0.5)
            if failed is not None:
                return failed
        placed, failed = self._in_turn()
        if self.like and not few:
            self._reach_alone(0.4)
        if not few:
            if placed is None:
                return failed or TimedOut(None, self.bound)
            self._by_neighbours(placed)
            return self.best or TimedOut(None, self.bound)
        given = [self.best.plans] if self.best else []
        left = max(LEAST_CHOICE_SECONDS, self.deadline - self.limits.now())
        found = plan_together(list(problems), self.expired, left, self.alone if not self.like else (), lambda: given)
        if found.plans is not None:
            self.bound = max(self.bound, found.bound)
            self._offer([_Placed(plan, problem, problem) for plan, problem in zip(found.plans, problems, strict=True)])
        if self.best is not None:
            return self._joined(self.best.plans)
        if not found.refuted:
            return TimedOut(None, found.bound)
        words = f"{len(problems)} models do not fit on the {len(problems[0].snapshot.nodes)} nodes together"
        return Infeasible((BindingConstraint("together", words, "plan fewer of them, or offer more nodes"),))

    def _each(self, share: float) -> Limits:
        """Time for one problem, of this share of what is left for all."""
        left = max(0.0, self.deadline - self.limits.now())
        return replace(self.limits, seconds=max(LEAST_SECONDS, share * left / len(self.problems)))

    def _reach_alone(self, share: float) -> Infeasible | TimedOut | None:
        """What each problem reaches alone, equal problems once; or why one has no plan."""
        known: dict[str, Reached] = {}
        result: list[Reached] = []
        for problem in self.problems:
            key = problem.model_dump_json()
            if key not in known:
                answer = solve(problem, self._each(share))
                plan = _plan_of(answer)
                if plan is None or plan.value is None:
                    return answer if not isinstance(answer, Solved) else TimedOut(None, -math.inf)
                known[key] = Reached(plan.value, answer.bound if not isinstance(answer, Infeasible) else plan.value)
            result.append(known[key])
        self.alone = result
        self.bound = sum(one.bound / (1.0 if self.like else one.unit) for one in result)
        if self.best is not None:
            self._tell(self._joined(self.best.plans))
        return None

    def _in_turn(self) -> tuple[list[_Placed] | None, Infeasible | TimedOut | None]:
        """Plans one after the other, in the better order of two where there are few; or why there are none."""
        orders = [range(len(self.problems))]
        if len(self.problems) <= FEW_MODELS:
            orders.append(range(len(self.problems) - 1, -1, -1))
        best: list[_Placed] | None = None
        failed: Infeasible | TimedOut | None = None
        for order in orders:
            found = _one_by_one([self.problems[i] for i in order], self._each(0.5 / len(orders)), why=len(orders) == 1)
            if isinstance(found, list):
                by_number = dict(zip(order, found, strict=True))
                placed = [by_number[i] for i in range(len(self.problems))]
                if self._offer(placed):
                    best = placed
            else:
                failed = failed or found
        return best, failed

    def _by_neighbours(self, placed: list[_Placed]) -> None:
        """Plan a problem that is far from what it reaches alone anew, and after it one that has nodes which it would like."""
        takings = [one.takes() for one in placed]
        values = self._values(self.best.plans if self.best else ())
        wishes: dict[int, Plan | None] = {}
        barren: set[int] = set()
        while not self.expired():
            least = [reached.value if self.like else 1.0 for reached in self.alone]
            lost = [(value - best, i) for i, (value, best) in enumerate(zip(values, least, strict=True))]
            open_ones = [entry for entry in lost if entry[1] not in barren and entry[0] > CLOSED]
            if not open_ones:
                return
            _, first = max(open_ones)
            if first not in wishes:
                wishes[first] = _plan_of(solve(self.problems[first], self._each(0.25)))
            wish = wishes[first]
            wanted = {name for segment in wish.segments for name in segment.nodes} if wish else set[str]()
            others = [i for i, one in enumerate(placed) if i != first and wanted & {n for s in one.plan.segments for n in s.nodes}]
            barren.add(first)
            for second in others[:MOST_SWAPPED]:
                pair = (first, second)
                rest = [one for i, one in enumerate(takings) if i not in pair]
                made = _one_by_one([self.problems[i] for i in pair], self._each(2.0), rest, why=False)
                if not isinstance(made, list) or not self._better(pair, made, values):
                    continue
                changed = [made[pair.index(i)] if i in pair else one for i, one in enumerate(placed)]
                if self._offer(changed):
                    placed = changed
                    for i, one in zip(pair, made, strict=True):
                        takings[i] = one.takes()
                    values = self._values(self.best.plans if self.best else ())
                    barren.clear()
                    break
                if self.expired():
                    return

    def _better(self, pair: tuple[int, int], made: Sequence[_Placed], values: Sequence[float]) -> bool:
        """Whether two new plans are worth less together than what the two problems have."""
        units = [1.0 if self.like else self.alone[i].unit for i in pair]
        new = sum(objective_value(one.plan, one.judged_on) / unit for one, unit in zip(made, units, strict=True))
        return new < sum(values[i] for i in pair) * (1 - SLACK)

    def _values(self, plans: Sequence[Plan]) -> list[float]:
        if self.like:
            return [plan.value or 0.0 for plan in plans]
        return [(plan.value or 0.0) / reached.unit for plan, reached in zip(plans, self.alone, strict=True)]

    def _offer(self, placed: Sequence[_Placed]) -> bool:
        """Plans for all: they count if they are valid together, and better than the best so far."""
        found = self._joined(_judged(placed))
        if self.best is not None and found.value >= self.best.value * (1 - SLACK):
            return False
        self._tell(found)
        return True

    def _tell(self, found: JointlySolved) -> None:
        self.best = found
        if self.report is not None:
            self.report(JointIncumbent(found))

    def _joined(self, plans: tuple[Plan, ...]) -> JointlySolved:
        alone = () if self.like else tuple(one.value for one in self.alone)
        return _joined(self.problems, plans, alone, self.bound, self.limits.now() - self.began)


def solve_in_turn(problems: tuple[Problem, ...], limits: Limits = DEFAULT_LIMITS) -> JointOutcome:
    """One after the other, each on what those before it left; the first that cannot be planned ends it.

    Goals may be unlike, and throughput among them: its tokens per second are what the others leave, and take what they need.
    """
    check_together(problems, jointly=False)
    began = limits.now()
    like = adds_up(problems)
    each = replace(limits, seconds=limits.seconds / (len(problems) if like else 2 * len(problems)))
    found = _one_by_one(problems, each)
    if not isinstance(found, list):
        return found
    plans = _judged(found)
    alone = () if like else tuple(_best_alone(problem, plan, each) for problem, plan in zip(problems, plans, strict=True))
    return _joined(problems, plans, alone, float("-inf"), limits.now() - began)


def _plan_of(answer: object) -> Plan | None:
    return answer.plan if isinstance(answer, Solved) else answer.best if isinstance(answer, TimedOut) else None


def _one_by_one(
    problems: Sequence[Problem], each: Limits, others: Sequence[Taking] = (), *, why: bool = True
) -> list[_Placed] | Infeasible | TimedOut:
    """Each problem on what those before it and `others` leave, at most `each` for one; or why one of them has no plan."""
    done: list[_Placed] = []
    taken = list(others)
    for problem in problems:
        left = left_after(problem, taken)
        full: set[str] = set()
        while True:
            answer = solve(left, each, why=why)
            plan = _plan_of(answer)
            if full and isinstance(answer, Infeasible):
                words = f"{problem.profile.model}: the models before it take the compute of {', '.join(sorted(full))}"
                return Infeasible((BindingConstraint("compute", words, "another order, fewer requests per second, or more nodes"),))
            if plan is None or plan.value is None:
                return answer if not isinstance(answer, Solved) else TimedOut(None, float("-inf"))
            flows = problem.objective.goal is Goal.THROUGHPUT
            placed = _Placed(plan, at_pace(problem, plan.value) if flows else problem, left if flows else problem)
            takes = placed.takes()
            over = crowded([*taken, takes]) & set(takes.shares)
            if not over:
                break
            full |= over
            left = without_nodes(left, over)
        done.append(placed)
        taken.append(takes)
    return done


def _best_alone(problem: Problem, plan: Plan, limits: Limits) -> float:
    """The best value that a problem reaches alone, as far as the time goes: that of its plan now is one."""
    found = _plan_of(solve(problem, limits))
    values = [one.value for one in (plan, found) if one is not None and one.value is not None]
    return max(values) if problem.objective.goal is Goal.THROUGHPUT else min(values)


def _booked_twice(placed: Sequence[_Placed]) -> tuple[Violation, ...]:
    return double_booked([one.plan for one in placed], [one.taking for one in placed])


def _judged(placed: Sequence[_Placed]) -> tuple[Plan, ...]:
    """The plans with predictions and values, after the judge has seen them; raises WrongAnswerError if they are not valid together."""
    booked = _booked_twice(placed)
    if booked:
        raise WrongAnswerError("; ".join(v.message for v in booked))
    done = []
    for one in placed:
        outcome = judged(one.plan, one.judged_on, float("-inf"), 0.0, late=False)
        if isinstance(outcome, Solved):
            done.append(outcome.plan.model_copy(update={"bound": None, "gap": None, "optimal": False}))
    return tuple(done)


def _joined(problems: Sequence[Problem], plans: tuple[Plan, ...], alone: tuple[float, ...], bound: float, seconds: float) -> JointlySolved:
    values = [plan.value or 0.0 for plan in plans]
    if alone:
        goals = [problem.objective.goal for problem in problems]
        values = [_times(value, best, goal) for value, best, goal in zip(values, alone, goals, strict=True)]
    value = sum(values)
    bound = min(bound, value)
    gap = (value - bound) / abs(value) if value else abs(bound)
    return JointlySolved(plans, value, bound, gap, gap <= CLOSED, seconds, alone)


def _times(value: float, alone: float, goal: Goal) -> float:
    """How many times what is reached alone a value is; more is worse, for throughput too."""
    return alone / value if goal is Goal.THROUGHPUT else value / Reached(alone, alone).unit
