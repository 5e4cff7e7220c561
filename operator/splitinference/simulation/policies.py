"""The four policies: all of them the operator's own decision, with another leave to move, another solver, or another steadiness."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from splitinference.core.decide.base.policy import Mode, Policy
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.core.planner.solver import solve
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Objective, Problem, Slo
from splitinference.core.values.result import Limits, Outcome
from splitinference.simulation.edgeshard import edgeshard


class PolicyName(StrEnum):
    """How the simulated operator behaves."""

    STATIC = "static"
    """The first plan is kept (mode Frozen): only what is broken is mended, a node that is lost above all."""
    ADAPTIVE = "adaptive"
    """The operator as it is, with the trace's thresholds."""
    EDGESHARD_STATIC = "edgeshard-static"
    """The plan of EdgeShard's programme, kept; when a node of it is lost, the programme is run once more."""
    GREEDY_REACTIVE = "greedy-reactive"
    """Goes to the best plan of every new observation: no window, no cooldown, no least gain, no budget, no price on moving."""


@dataclass(frozen=True)
class Conduct:
    """A policy for one trace: the thresholds, the solver, and the problem as this policy sees it."""

    name: PolicyName
    policy: Policy
    solve: "Remembered"
    sees: Callable[[Problem], Problem]


def conduct(name: PolicyName, adaptation: Policy) -> Conduct:
    """The policy of this name, for a trace with these thresholds."""
    remembered = Remembered(edgeshard if name is PolicyName.EDGESHARD_STATIC else solve)
    match name:
        case PolicyName.ADAPTIVE:
            return Conduct(name, adaptation, remembered, _all)
        case PolicyName.STATIC:
            return Conduct(name, adaptation.model_copy(update={"mode": Mode.FROZEN}), remembered, _all)
        case PolicyName.EDGESHARD_STATIC:
            return Conduct(name, adaptation.model_copy(update={"mode": Mode.FROZEN}), remembered, _plain)
        case PolicyName.GREEDY_REACTIVE:
            nothing = timedelta(0)
            eager = Policy(
                window=nothing,
                confirmations=1,
                cooldown=nothing,
                stabilization=nothing,
                min_gain=0.0,
                resplit_gain=0.0,
                moves_per_hour=1_000_000,
                review=nothing,
                retry=nothing,
                payback=timedelta(days=100_000),
                obstacle=nothing,
                load_bytes_per_s=adaptation.load_bytes_per_s,
                start_seconds=adaptation.start_seconds,
                start_core_seconds=adaptation.start_core_seconds,
            )
            return Conduct(name, eager, remembered, _all)


def _all(problem: Problem) -> Problem:
    return problem


def _plain(problem: Problem) -> Problem:
    """Without what EdgeShard does not know: it has which devices there are, and their memory; no trust, no SLO, no limits."""
    bounds = problem.constraints
    known = Constraints(node_selector=bounds.node_selector, tolerations=bounds.tolerations, memory_margin=bounds.memory_margin)
    return problem.model_copy(update={"slo": Slo(), "constraints": known, "objective": Objective()})


class Remembered:
    """A solver that answers the same question once: a simulated cluster often asks again before anything has changed."""

    _MOST = 64

    def __init__(self, solver: Solve) -> None:
        self._solver = solver
        self._answers: dict[tuple[str, ...], Outcome] = {}
        self.solved = 0

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        """As the solver."""
        question = (
            problem.profile.digest,
            problem.model_dump_json(exclude={"profile"}),
            hint.revision if hint else "",
            f"{limits.seconds}",
        )
        if question not in self._answers:
            if len(self._answers) >= self._MOST:
                del self._answers[next(iter(self._answers))]
            self._answers[question] = self._solver(problem, limits, hint)
            self.solved += 1
        return self._answers[question]
