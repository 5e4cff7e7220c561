"""Several problems on the same nodes: what they must have in common, and what the plans of some leave to the others."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from splitinference.core.cost.checks.violations import TOLERANCE, loads
from splitinference.core.cost.evaluate import evaluate
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem


def check_together(problems: Sequence[Problem], *, jointly: bool) -> None:
    """Raises ValueError for problems that cannot be planned together: nodes of one name that differ; jointly also throughput and `then`."""
    if not problems:
        raise ValueError("no problem is given")
    known: dict[str, Node] = {}
    for node in (node for problem in problems for node in problem.snapshot.nodes):
        if known.setdefault(node.name, node) != node:
            raise ValueError(f"problems that are planned together need the same nodes: {node.name} differs between them")
    if jointly and any(p.objective.goal is Goal.THROUGHPUT for p in problems):
        raise ValueError("throughput is planned in turn, not jointly: it is a flow, and the joint choice is one among chains")
    if jointly and any(p.objective.then for p in problems):
        raise ValueError("further goals (then) are planned in turn, not jointly: the joint choice has one objective")


def adds_up(problems: Sequence[Problem]) -> bool:
    """Whether the sum of the problems' values means something: one goal, and one that is minimised."""
    goals = {problem.objective.goal for problem in problems}
    return len(goals) == 1 and Goal.THROUGHPUT not in goals


def at_pace(problem: Problem, tokens_per_s: float) -> Problem:
    """A throughput problem with the rate of requests that its tokens per second are, for what its plan takes of the nodes."""
    rate = tokens_per_s / problem.workload.output_tokens
    return problem.model_copy(update={"workload": problem.workload.model_copy(update={"requests_per_s": rate})})


@dataclass(frozen=True)
class Taking:
    """What a plan takes of its nodes: bytes of each place, and the share of each node's free compute."""

    memory: Mapping[tuple[str, str], int]
    shares: Mapping[str, float]


def taking(plan: Plan, owner: Problem) -> Taking:
    """What a plan takes, by the problem that it is for."""
    laid = evaluate(plan, owner)
    return Taking(laid.load.memory, loads(laid, owner))


def crowded(plans: Sequence[Taking]) -> set[str]:
    """Nodes of which several plans together take more compute than there is, as `double_booked` has it."""
    shares: dict[str, list[float]] = {}
    for one in plans:
        for name, share in one.shares.items():
            shares.setdefault(name, []).append(share)
    return {name for name, found in shares.items() if len(found) > 1 and sum(found) > 1 + TOLERANCE}


def left_by(problem: Problem, plans: Sequence[Plan], owners: Sequence[Problem]) -> Problem:
    """The problem on what other problems' plans leave: their memory is gone, and their requests are use by others."""
    return left_after(problem, [taking(plan, owner) for plan, owner in zip(plans, owners, strict=True)])


def left_after(problem: Problem, takings: Iterable[Taking]) -> Problem:
    """As `left_by`, for what is known of the plans already."""
    taken: dict[tuple[str, str], int] = {}
    idle: dict[str, float] = {}
    for one in takings:
        for place, needed in one.memory.items():
            taken[place] = taken.get(place, 0) + needed
        for name, share in one.shares.items():
            idle[name] = max(0.0, idle.get(name, 1.0) - share)
    touched = {name for name, _ in taken} | set(idle)

    def rest(node: Node) -> Node:
        if node.name not in touched:
            return node
        processors = tuple(
            p.model_copy(update={"memory_free_bytes": max(0, p.memory_free_bytes - taken.get((node.name, p.name), 0))})
            for p in node.processors
        )
        free = max(0, node.memory_free_bytes - taken.get((node.name, ""), 0))
        left = idle.get(node.name, 1.0)
        used = node.utilization if left == 1.0 else 1.0 - (1.0 - (node.utilization or 0.0)) * left
        return node.model_copy(update={"memory_free_bytes": free, "processors": processors, "utilization": used})

    return _with_nodes(problem, tuple(rest(node) for node in problem.snapshot.nodes))


def without_nodes(problem: Problem, names: set[str]) -> Problem:
    """The problem with some nodes out of its reach."""
    return _with_nodes(problem, tuple(node for node in problem.snapshot.nodes if node.name not in names))


def _with_nodes(problem: Problem, nodes: tuple[Node, ...]) -> Problem:
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
