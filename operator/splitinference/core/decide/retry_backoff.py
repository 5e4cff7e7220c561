"""Tries that gave no plan: when the next one is worth a solver's time. Later and later while nothing changes, soon where something does."""

import hashlib
from datetime import datetime, timedelta

from splitinference.core.decide.base.decision import Kept
from splitinference.core.decide.base.policy import Facts, Memory, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.values.problem import Problem
from splitinference.core.values.value import Value

_MOST_DOUBLINGS = 4
"""The pause between tries of an unchanged problem is doubled so often: with the default from 15 s to four minutes."""

_OF_THE_MOMENT = (Kept.SOLVER_FAILED, Kept.SOLVE_TIMED_OUT)
"""Reasons that may be gone the next time though nothing has changed: a busy machine, a solver that was killed."""


class Try(Value):
    """What one try depends on, loads and times left out. `asked`: nodes that come or go, or another wish, make it worth a try at once;
    `room`: memory and CPU that there is, which waver, so another try comes soon but not at every pass."""

    asked: str
    room: str

    @classmethod
    def of(cls, problem: Problem, facts: Facts, reason: Reason) -> "Try":
        """The try of this problem for this reason."""
        nodes = [f"{n.name}:{n.ready}:{n.excluded}:{sorted(n.labels.items())}:{n.taints}" for n in problem.snapshot.nodes]
        free = [f"{n.name}:{n.memory_free_bytes}:{n.millicores_free}" for n in problem.snapshot.nodes]
        held = [f"{name}:{held}" for name, held in sorted(facts.held_bytes.items())]
        return cls(asked=_hash(problem.profile.digest, facts.asked, reason, facts.strategy, *nodes), room=_hash(*free, *held))

    def too_soon(self, memory: Memory, policy: Policy, now: datetime) -> bool:
        """Whether the last try of the same was too short a while ago."""
        if memory.tried != self.asked or memory.tried_at is None:
            return False
        return now - memory.tried_at < self._pause(memory, policy)

    def _pause(self, memory: Memory, policy: Policy) -> timedelta:
        if memory.tried_room != self.room:
            return policy.retry / 3
        return policy.retry * 2.0 ** min(memory.tries - 1, _MOST_DOUBLINGS)

    def failed(self, memory: Memory, reason: Kept, message: str, now: datetime) -> Memory:
        """The memory with this try, which gave no plan."""
        again = memory.tried == self.asked and memory.tried_room == self.room and reason not in _OF_THE_MOMENT
        tried = {"tried": self.asked, "tried_room": self.room, "tries": memory.tries + 1 if again else 1, "tried_at": now}
        return memory.model_copy(update=tried | {"tried_reason": reason.value, "tried_message": message})


def _hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
