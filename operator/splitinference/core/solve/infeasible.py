"""Why no plan exists: which constraint stands in the way, by how much, and the smallest relaxation that would let one exist."""

from splitinference.core.problem import Problem
from splitinference.core.solve.outcome import BindingConstraint
from splitinference.core.solve.tables import Tables


def reasons(problem: Problem, tables: Tables) -> tuple[BindingConstraint, ...]:
    """The constraints that stand in the way of any plan."""
    if not problem.snapshot.nodes:
        return (BindingConstraint("nodes", "the snapshot has no node", "offer at least one node"),)
    if not tables.count:
        words = "; ".join(f"{name}: {reason}" for name, reason in sorted(tables.unusable.items())[:8])
        return (BindingConstraint("nodes", f"none of {len(problem.snapshot.nodes)} nodes may be used: {words}", "admit one of them"),)
    return (BindingConstraint("constraints", "no plan keeps all of them", "relax one"),)
