"""Drafts: tokens that may come next, looked up in the sequence's own tokens, so that one trip along the chain yields several tokens.

Where the last tokens came before, what followed them then is drafted now (prompt lookup). It costs no model, and pays where an answer
repeats its prompt: editing, extraction, code, quotations. Nothing of other sequences is looked at.

How many tokens are drafted follows from what was measured. With a probability `a` that a drafted token is right, k of them yield

    1 + a + … + a^k        tokens for a step that takes        1 + c·k        as long as one without drafts.

`c` is measured by pipeline. `a` is measured by sequence and by the length of the match, also while nothing is drafted: the first token that
would have been drafted is compared with the one that came. So a story, where nothing repeats, costs a few drafts in the beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from splitinference_gateway.routing.lanes import Costs

LOOKED_AT = 16_384
"""Tokens back to which is looked; bounds memory and time of a long prompt."""
_SHORTEST = 2  # tokens of a match
_LONGEST = 16
_CANDIDATES = 24  # earlier places that are compared
_GAIN = 1.03  # a draft has to promise so much
_KEPT = 0.9  # of earlier observations, with each new one
_PRIOR = 2.0  # observations that a new sequence believes the others' for
_PLAIN_EVERY = 32  # such a step carries no drafts, so that it stays known what a step takes without
_MOST_FAILED = 2  # steps with drafts that failed, until a sequence goes on without


class Lookup:
    """Where pairs of tokens came before in one sequence. Its tokens are only added to."""

    def __init__(self) -> None:
        self._last: dict[tuple[int, int], int] = {}  # a pair → where it came last: the place behind it
        self._before: dict[int, int] = {}  # such a place → the one before of the same pair
        self._seen = 0

    def find(self, tokens: Sequence[int], most: int) -> tuple[list[int], int]:
        """What followed the longest earlier match of the last tokens, `most` of it, and the match's length; nothing where there is none."""
        end = len(tokens)
        for place in range(max(self._seen, end - LOOKED_AT, _SHORTEST), end):  # not the pair at the end: it is what is looked for
            pair = tokens[place - 2], tokens[place - 1]
            if pair in self._last:
                self._before[place] = self._last[pair]
            self._last[pair] = place
        self._seen = end
        if end < _SHORTEST or most < 1:
            return [], 0
        best, longest, at = 0, 0, self._last.get((tokens[-2], tokens[-1]))
        for _ in range(_CANDIDATES):
            if at is None or at < end - LOOKED_AT:
                break
            length = _SHORTEST
            while length < min(_LONGEST, at) and tokens[at - length - 1] == tokens[end - length - 1]:
                length += 1
            if length > longest:
                best, longest = at, length
            at = self._before.get(at)
        made: list[int] = []
        for place in range(best, best + most if longest else best):
            made.append(tokens[place] if place < end else made[place - end])  # a match that reaches the end repeats itself
        return made, longest


@dataclass(slots=True)
class Rate:
    """How often a draft of some kind was right; older observations count less."""

    right: float = 0.5
    wrong: float = 0.5

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.right / (self.right + self.wrong)

    def saw(self, right: int, wrong: int) -> None:
        """So many tokens that were right, and wrong."""
        self.right, self.wrong = _KEPT * self.right + right, _KEPT * self.wrong + wrong


def best_length(right: float, cost: float, most: int) -> int:
    """The number of drafts with the most tokens a second; 0 where none gains enough.

    `right`: the probability that a draft is right, given that those before it were; `cost`: what one adds to a step, as a share of it.
    """
    best, best_rate, tokens = 0, _GAIN, 1.0
    for number in range(1, most + 1):
        tokens += right**number
        rate = tokens / (1.0 + cost * number)
        if rate > best_rate:
            best, best_rate = number, rate
    return best


@dataclass
class Speculation:
    """What the sequences of one gateway share. `most`: drafts of one step; 0: none are made."""

    most: int = 0
    rates: tuple[Rate, ...] = field(default_factory=lambda: (Rate(), Rate(), Rate()))

    def drafter(self) -> "Drafter":
        """For one sequence."""
        return Drafter(self)


class Drafter:
    """Drafts for one sequence, and what became of them."""

    def __init__(self, shared: Speculation) -> None:
        self._shared = shared
        self._lookup = Lookup()
        self._rates = tuple(Rate(_PRIOR * rate.share, _PRIOR * (1 - rate.share)) for rate in shared.rates)
        self._guess: tuple[int, int] | None = None  # what is thought to come next, and the kind of its match
        self._steps = 0
        self._failed = 0

    def drafts(self, tokens: Sequence[int], most: int, costs: Costs) -> list[int]:
        """What to draft after `tokens`, `most` at most, for a step along a pipeline with these costs."""
        self._guess = None
        most = min(most, self._shared.most)
        if most < 1 or self._failed >= _MOST_FAILED:
            return []
        found, length = self._lookup.find(tokens, most)
        if not found:
            return []
        kind = 0 if length < 3 else 1 if length < 6 else 2
        self._guess = found[0], kind
        self._steps += 1
        if costs.plain is None or self._steps % _PLAIN_EVERY == 0:
            return []
        return found[: best_length(self._rates[kind].share, costs.relative, most)]

    def sampled(self, drafted: int, accepted: int, first: int) -> None:
        """The step with so many drafts gave `first`, and so many of the drafts were right."""
        if self._guess is None:
            return
        guess, kind = self._guess
        right = accepted if drafted else int(guess == first)
        wrong = int(accepted < drafted) if drafted else int(guess != first)
        for rate in (self._rates[kind], self._shared.rates[kind]):
            rate.saw(right, wrong)

    def failed(self) -> None:
        """A step with drafts failed: maybe a segment knows nothing of them, or has no room for them."""
        self._failed += 1
