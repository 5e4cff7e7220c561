"""How a token is chosen, as the gateway tells it the last segment."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitinference_gateway.guides import Guide


@dataclass(frozen=True)
class Sampling:
    """`logprobs` is how many alternatives to report. `logits`: give those instead of a token.

    `top_k` 0 and the defaults of what follows change nothing. `banned` tokens are not chosen as long as fewer than `min_tokens` are there.
    `prompt` and `generated` are the tokens so far where a penalty needs them (see `history`). `guide` says which tokens may come,
    and `allowed` is what it says for the next one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int = 0
    logits: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    banned: tuple[int, ...] = ()
    min_tokens: int = 0
    prompt: str = ""
    generated: str = ""
    allowed: str = ""
    guide: "Guide | None" = field(default=None, repr=False, compare=False)

    def as_json(self) -> dict[str, object]:
        """The protocol's form, without what changes nothing."""
        optional = {
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty if self.repetition_penalty != 1.0 else 0,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "bias": [list(pair) for pair in self.bias],
            "banned": list(self.banned),
            "prompt": self.prompt,
            "generated": self.generated,
            "allowed": self.allowed,
        }
        told = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed, "logprobs": self.logprobs}
        return told | {name: value for name, value in optional.items() if value}
