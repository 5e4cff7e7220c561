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

    @property
    def drafted(self) -> int:
        """How many of them are drafts."""


W = TypeVar("W", bound=Waiting)


@dataclass(frozen=True, slots=True)
class Turn(Generic[W]):
    """What runs now, what keeps waiting, how many decode batches have passed waiting prefill chunks, and whose chunk ran last."""

    batch: tuple[W, ...]
    rest: tuple[W, ...]
    passed: int
    prefilled: str = ""


def next_turn(waiting: Sequence[W], max_batch: int, passed: int, prefilled: str = "") -> Turn[W]:
    """Probes first, each alone; then decode steps together, one per sequence; a prefill chunk alone.

    Decode steps go before prefill chunks, whose users already wait, but at most FAIR_TURNS times in a row. The steps of one sequence run in
    the order in which they came: a long prompt has several chunks here at once. Prompts take turns: the oldest chunk of another sequence
    than the one `prefilled` last goes first.
    """
    probe = next((w for w in waiting if not w.sequence), None)
    if probe is not None:
        return Turn((probe,), tuple(w for w in waiting if w is not probe), passed, prefilled)
    first: dict[str, W] = {}
    for w in waiting:
        first.setdefault(w.sequence, w)
    decodes = [w for w in first.values() if w.tokens == 1 + w.drafted][:max_batch]
    chunks = [w for w in first.values() if w.tokens != 1 + w.drafted]
    if chunks and (not decodes or passed >= FAIR_TURNS):
        chosen: tuple[W, ...] = (next((w for w in chunks if w.sequence != prefilled), chunks[0]),)
        passed, prefilled = 0, chosen[0].sequence
    else:
        chosen = tuple(decodes)
        passed = passed + 1 if chunks else 0
    taken = {id(w) for w in chosen}
    return Turn(chosen, tuple(w for w in waiting if id(w) not in taken), passed, prefilled)
