"""Tokens that a step only supposes: the last segment samples after each of them, and keeps what it samples up to the first difference.

A step carries the last token that is known and, behind it, drafted ones. Row i has seen the known token and the first i drafts. The token
that follows it is sampled as if the drafts were not there: by the same function of logits, seed and position. If it is the next draft, the
next row has seen the right tokens, and counts; if not, it is still the right token, and the rows behind it are dropped. So every token is
the one that a step without drafts would have sampled from the same logits (greedy and seeded), or one of the same distribution (unseeded).
"""

from collections.abc import Callable
from dataclasses import replace

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.request import Request
from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment.choices import Choice

Choose = Callable[[int, Sampling, int], Choice]
"""Samples after a row of the step: its number, the sampling, and the position of the token that is chosen."""


def rows(request: Request, tokens: int) -> range:
    """The rows of a step of so many tokens after which a token is sampled: the known one's, and one for each draft."""
    return range(tokens - len(request.drafts) - 1, tokens)


def accepted(request: Request, tokens: int, choose: Choose) -> list[Choice]:
    """What a step of so many tokens gives: one choice, and one more for each draft that was right. `choose` is called row by row."""
    made, sampling, drafts = list[Choice](), request.sampling, request.drafts
    for number, row in enumerate(rows(request, tokens)):
        choice = choose(row, sampling, request.position + row + 1)
        made.append(choice)
        if number == len(drafts) or choice.token != drafts[number]:
            break
        sampling = _after(sampling, choice.token)
    return made


def _after(sampling: Sampling, token: int) -> Sampling:
    """The same, one generated token later: penalties count it."""
    if sampling.repetition_penalty == 1.0 and not (sampling.presence_penalty or sampling.frequency_penalty):
        return sampling
    counts = dict(zip(*leb128.counts(sampling.generated), strict=True))
    return replace(sampling, generated=leb128.pack_counts({**counts, token: counts.get(token, 0) + 1}))
