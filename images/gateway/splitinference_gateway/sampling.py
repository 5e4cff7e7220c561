"""How a token is chosen, as a client asks for it."""

from dataclasses import dataclass

from splitinference_protocol import sampling as told


@dataclass(frozen=True)
class Sampling(told.Sampling):
    """What the last segment is told of each step, and more.

    `logits` asks for those instead of a token. `banned` tokens are not chosen as long as fewer than `min_tokens` are there.
    """

    temperature: float = 1.0
    logits: bool = False
    min_tokens: int = 0
