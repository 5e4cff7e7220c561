"""Where layers that others compute are computed a second time, to check them: which runs of a plan need it, and which nodes have room.

One copy is a verifier on a trusted node. With two, a replica computes every step on any node, and a referee on a third one settles what
the two disagree about. No copy is on a node whose segments it checks, and the trust rules of the layers hold for all copies.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.room import Free, SecondCopies

_MIB = 2**20


@dataclass(frozen=True)
class Run:
    """Layers [start, end) of segments side by side on these nodes, none of which is trusted."""

    start: int
    end: int
    nodes: frozenset[str]


@dataclass(frozen=True)
class Short:
    """A copy that no node has room for: how much it needs, on which node there is the most (empty: none may have it), and how much."""

    run: Run
    what: str
    trusted: bool
    needed: int
    node: str = ""
    most: int = 0

    def __str__(self) -> str:
        where = "trusted node" if self.trusted else "node of its own"
        found = f"{self.node} has the most, {max(0, self.most) // _MIB} MiB" if self.node else f"no {where} can be used"
        return f"{self.what} of layers {self.run.start} to {self.run.end} needs {-(-self.needed // _MIB)} MiB on a {where}: {found}"


def runs(plan: Plan, wanted: SecondCopies, problem: Problem) -> Iterator[Run]:
    """The runs of a plan that have to be checked. One that ends the model has no witness behind it, and is none."""
    nodes = {node.name: node for node in problem.snapshot.nodes}
    for pipeline in plan.pipelines:
        grouped = itertools.groupby(pipeline.segments, key=lambda segment: all(wanted.trusts(nodes.get(name)) for name in segment.nodes))
        parts = [(trusted, list(run)) for trusted, run in grouped]
        for trusted, run in parts[:-1]:
            if not trusted:
                yield Run(run[0].start, run[-1].end, frozenset(name for segment in run for name in segment.nodes))


def places(run: Run, wanted: SecondCopies, problem: Problem, free: Free, stays: Collection[str] = ()) -> tuple[str, ...] | Short:
    """A node for each copy of a run, in the order verifier, or replica and referee; their room is taken out of `free`.

    A node of `stays`, where such a copy is already, goes before others. The referee is on a trusted node if one has room.
    """
    needed, cores = memory_bytes(problem, run.start, run.end), wanted.millicores
    taken = set(run.nodes)

    def place(what: str, only_trusted: bool, prefers_trusted: bool) -> str | Short:
        best, most = None, (0, "")
        for node in problem.snapshot.nodes:
            trusted = wanted.trusts(node)
            if node.name in taken or (only_trusted and not trusted) or not _may(node, run, wanted, problem):
                continue
            memory, left = free[node.name]
            most = max(most, (memory, node.name)) if most[1] else (memory, node.name)
            if memory >= needed and left >= cores:
                rank = (node.name in stays, trusted and prefers_trusted, memory, node.name)
                best = rank if best is None else max(best, rank)
        if best is None:
            return Short(run, what, only_trusted, needed, most[1], most[0])
        taken.add(name := best[-1])
        free[name] = free[name][0] - needed, free[name][1] - cores
        return name

    if wanted.replicas == 1:
        verifier = place("the verifier", only_trusted=True, prefers_trusted=True)
        return verifier if isinstance(verifier, Short) else (verifier,)
    referee = place("the referee", only_trusted=False, prefers_trusted=True)
    if isinstance(referee, Short):
        return referee
    replica = place("the replica", only_trusted=False, prefers_trusted=False)
    if isinstance(replica, Short):
        free[referee] = free[referee][0] + needed, free[referee][1] + cores
        return replica
    return replica, referee


def short_of(plan: Plan, problem: Problem, free: Free) -> tuple[Short, ...]:
    """The copies that no node has room for beside the plan, of which `free` is what it leaves. Large runs come first."""
    if (wanted := problem.second_copies) is None:
        return ()
    left = wanted.without(free)
    ordered = sorted(runs(plan, wanted, problem), key=lambda run: (run.start - run.end, run.start))
    return tuple(found for run in ordered if isinstance(found := places(run, wanted, problem, left), Short))


def _may(node: Node, run: Run, wanted: SecondCopies, problem: Problem) -> bool:
    """Whether the node may hold the layers: usable, not avoided, and all their trust rules hold. Pins say where layers serve, not this."""
    if node.name in wanted.avoided or unusable(node, problem) is not None:
        return False
    rules = (rule for rule in problem.constraints.trust if rule.start < run.end and run.start < rule.end)
    return all(node.labels.get(key) == value for rule in rules for key, value in rule.labels.items())
