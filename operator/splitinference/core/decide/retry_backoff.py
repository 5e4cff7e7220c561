"""Back-off after attempts that found no plan: longer and longer while nothing changes, short when something does."""

import hashlib
from datetime import datetime, timedelta

from splitinference.core.decide.base.decision import Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.values.problem import Problem
from splitinference.core.values.value import Value

_MOST_DOUBLINGS = 4
"""How often the pause between attempts doubles: with the default from 15 s to four minutes."""

_OF_THE_MOMENT = (Kept.SOLVER_FAILED, Kept.SOLVE_TIMED_OUT)
"""Reasons that may vanish although nothing changes: a busy machine, a killed solver."""


class Attempt(Value):
    """What one attempt depends on, without load and time. `request`: nodes, labels, spec; when it changes, retry at once.
    `room`: free memory and CPU; they waver, so after a change the next attempt comes soon, but not in every pass."""

    request: str
    room: str

    @classmethod
    def of(cls, problem: Problem, inputs: DecisionInputs, reason: Reason) -> "Attempt":
        """The attempt at this problem for this reason."""
        nodes = [f"{n.name}:{n.ready}:{n.excluded}:{sorted(n.labels.items())}:{n.taints}" for n in problem.snapshot.nodes]
        free = [f"{n.name}:{n.memory_free_bytes}:{n.millicores_free}" for n in problem.snapshot.nodes]
        held = [f"{name}:{held}" for name, held in sorted(inputs.held_bytes.items())]
        return cls(request=_hash(problem.profile.digest, inputs.spec_digest, reason, inputs.strategy, *nodes), room=_hash(*free, *held))

    def too_soon(self, memory: Memory, policy: Policy, now: datetime) -> bool:
        """Whether the last attempt at the same problem was too recent."""
        if memory.tried != self.request or memory.tried_at is None:
            return False
        return now - memory.tried_at < self._pause(memory, policy)

    def _pause(self, memory: Memory, policy: Policy) -> timedelta:
        if memory.tried_room != self.room:
            return policy.retry / 3
        return policy.retry * 2.0 ** min(memory.tries - 1, _MOST_DOUBLINGS)

    def failed(self, memory: Memory, reason: Kept, message: str, now: datetime) -> Memory:
        """The memory with this attempt, which found no plan."""
        again = memory.tried == self.request and memory.tried_room == self.room and reason not in _OF_THE_MOMENT
        tried = {"tried": self.request, "tried_room": self.room, "tries": memory.tries + 1 if again else 1, "tried_at": now}
        return memory.model_copy(update=tried | {"tried_reason": reason.value, "tried_message": message})


def _hash(*parts: str) -> str:
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:16]
