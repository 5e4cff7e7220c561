"""Questions to the planner: one at a time, in its own process, within limits of time, memory and waiting."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from splitinference.core.planner import SolverError, SolverProcess
from splitinference.core.values.result import Limits
from splitinference.ui.questions.answer import answer_json
from splitinference.ui.questions.asked import Basis, Question, UnanswerableError, changed

NICENESS = 10
"""A question must not take time from passes on the same machine."""


class BusyError(Exception):
    """Too many questions wait already."""


class Asks(Protocol):
    """Where a question's basis comes from: `basis` is called in another thread and raises UnanswerableError and what reading raises."""

    def basis(self, key: str) -> Basis:
        """What the resource `namespace/name` is planned from now."""


@dataclass(frozen=True)
class Bounds:
    """Of one question: seconds of solving and MiB of the solver's process. `most`: questions that are answered or wait."""

    seconds: float = 10.0
    memory_mib: int = 500
    most: int = 4


class WhatIf:
    """Answers questions. `close` ends the solver's process."""

    def __init__(self, asks: Asks, bounds: Bounds = Bounds(), process: Callable[[], SolverProcess] | None = None) -> None:
        self._asks = asks
        self._bounds = bounds
        self._process = (process or (lambda: SolverProcess(bounds.memory_mib, NICENESS)))()
        self._one = asyncio.Lock()
        self._waiting = 0

    async def ask(self, question: Question) -> dict[str, Any]:
        """The answer as JSON. Raises BusyError, UnanswerableError, and what reading the basis raises."""
        if self._waiting >= self._bounds.most:
            raise BusyError(f"{self._waiting} questions are being answered already. Ask again in {self._bounds.seconds:.0f} s.")
        self._waiting += 1
        try:
            async with self._one:
                return await asyncio.to_thread(self._answer, question)
        finally:
            self._waiting -= 1

    def _answer(self, question: Question) -> dict[str, Any]:
        basis = self._asks.basis(question.resource)
        problem = changed(basis.problem, question)
        hint = basis.plan if basis.plan is not None and not question.remove else None
        try:
            outcome = self._process.solve(problem, Limits(self._bounds.seconds, self._bounds.memory_mib), hint)
        except SolverError as error:
            raise UnanswerableError(f"The planner failed: {error}") from error
        return answer_json(outcome, basis, problem)

    def close(self) -> None:
        """End the solver's process."""
        self._process.close()
