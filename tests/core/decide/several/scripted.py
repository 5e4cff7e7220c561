"""Plans of several pipelines, written short, and a solver that answers as it is told."""

from collections.abc import Callable

from splitinference.core.cost import objective_value
from splitinference.core.decide.base.policy import Policy
from splitinference.core.decide.pipelines import (
    joined,
    parts,
)
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Outcome, Solved
from tests.core.planning import a_node, a_plan, a_problem, text_of

LIMITS = Limits(seconds=1)
POLICY = Policy(load_bytes_per_s=2e7)
TWO = "a[0:2] b[2:4] | c[0:2] d[2:4]"


def of(text: str) -> Plan:
    """`a[0:2] b[2:4] | c[0:4]`."""
    return joined([a_plan(part) for part in text.split("|")])


def texts(plan: Plan) -> list[str]:
    return [text_of(part) for part in parts(plan)]


def world(
    names: str = "abcdef", pipelines: int = 2, slow: dict[str, float] | None = None, mib: int = 310, **constraints: object
) -> Problem:
    """Nodes that hold two of four layers each; `slow` has those that do not do 100 GFLOP/s."""
    nodes = (a_node(name, mib=mib, gflops=(slow or {}).get(name, 100.0)) for name in names)
    return a_problem(*nodes, constraints=Constraints(pipelines=pipelines, **constraints))


class Scripted:
    """A solver that answers as it is told: a plan for each question, or None. It keeps the questions and the plans to start from."""

    def __init__(self, answer: Callable[[Problem], str | None]) -> None:
        self.answer, self.asked, self.hints = answer, list[Problem](), list[Plan | None]()

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        self.asked.append(problem)
        self.hints.append(hint)
        text = self.answer(problem)
        if text is None:
            return Infeasible(reasons=(BindingConstraint(name="x", message="nothing fits", relaxation=""),))
        plan = of(text)
        value = objective_value(plan, problem)
        return Solved(plan=plan, bound=value, gap=0.0, optimal=True, seconds=0.0, explanation=("as told",))


def ready(problem: Problem) -> str:
    """The nodes that the question leaves."""
    return "".join(node.name for node in problem.snapshot.nodes if node.ready)
