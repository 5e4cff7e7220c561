"""Whom a search tells of what it finds on the way, so that whoever waits has the best so far at any time."""

from typing import Protocol

from splitinference.core.planner.chain.bounds.relaxed import Step


class Tell(Protocol):
    """Whom a search over classes of places tells what it finds."""

    def chain(self, steps: tuple[Step, ...]) -> None:
        """A chain that is better than all before."""

    def bound(self, value: float) -> None:
        """No chain is better than `value`, in the objective's unit."""


class Silent:
    """For searches within searches: their chains and bounds are about another question."""

    def chain(self, steps: tuple[Step, ...]) -> None:
        """Nobody is told."""

    def bound(self, value: float) -> None:
        """Nobody is told."""


SILENT = Silent()
