"""Which waiting steps run next. Pure: a policy over a list, so that it can be tested without threads or a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

FAIR_TURNS = 4  # decode batches that may pass before a waiting prefill chunk gets its turn


class Waiting(Protocol):
    """What the policy looks at."""

    @property
    def sequence(self) -> str:
        """Name of the sequence; empty for a probe."""

    @property
    def tokens(self) -> int:
        """Tokens of the step."""


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Turn(Generic[W]):
    """What runs now, what keeps waiting, and how many decode batches have passed waiting prefill chunks."""

    batch: tuple[W, ...]
    rest: tuple[W, ...]
    passed: int


def next_turn(waiting: Sequence[W], max_batch: int, passed: int) -> Turn[W]:
    """Probes first, each alone; then decode steps together, one per sequence; a prefill chunk, the oldest, alone.

    Decode steps go before prefill chunks, whose users already wait, but at most FAIR_TURNS times in a row.
    """
    probe = next((w for w in waiting if not w.sequence), None)
    if probe is not None:
        return Turn((probe,), tuple(w for w in waiting if w is not probe), passed)
    prefill = next((w for w in waiting if w.tokens > 1), None)
    decodes: dict[str, W] = {}
    for w in waiting:
        if w.tokens == 1 and len(decodes) < max_batch:
            decodes.setdefault(w.sequence, w)
    if prefill is not None and (not decodes or passed >= FAIR_TURNS):
        chosen: tuple[W, ...] = (prefill,)
        passed = 0
    else:
        chosen = tuple(decodes.values())
        passed = passed + 1 if prefill is not None else 0
    taken = {id(w) for w in chosen}
    return Turn(chosen, tuple(w for w in waiting if id(w) not in taken), passed)
