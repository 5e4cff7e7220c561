"""How a token is chosen, as a client asks for it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from splitinference_protocol.wire import sampling as told

if TYPE_CHECKING:
    from splitinference_gateway.tokens.guides import Guide


@dataclass(frozen=True)
class Sampling(told.Sampling):
    """What the last segment is told of each step, and more.

    `logits` asks for those instead of a token. `banned` tokens are not chosen as long as fewer than `min_tokens` are there.
    `guide` says which tokens may come; `allowed` is what it says for the next one.
    """

    temperature: float = 1.0
    logits: bool = False
    min_tokens: int = 0
    guide: "Guide | None" = field(default=None, repr=False, compare=False)
