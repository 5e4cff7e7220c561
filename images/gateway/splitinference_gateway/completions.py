"""POST /v1/completions: prompts as text or token ids, pieces to OpenAI's text completion objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitinference_gateway.chat import room, seed_of
from splitinference_gateway.errors import invalid
from splitinference_gateway.generation import Choice, Piece, Sampled
from splitinference_gateway.replies import Head, usage
from splitinference_gateway.requests import CompletionRequest
from splitinference_gateway.steps import Sampling
from splitinference_gateway.tokenizer import ModelTokenizer

_DEFAULT_TOKENS = 16  # OpenAI's


async def choices(request: CompletionRequest, tokenizer: ModelTokenizer, context_tokens: int) -> tuple[Choice, ...]:
    """What to generate: `n` choices for each prompt, prompt by prompt.

    Raises:
        ApiError: a prompt is empty, too long, or has ids that the model does not know.
    """
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    made: list[Choice] = []
    if not request.prompts:
        raise invalid("Invalid value for 'prompt': at least one prompt is needed.", "prompt", "invalid_value")
    for given in request.prompts:
        prompt = tuple(await tokenizer.encode(given, special_tokens=True) if isinstance(given, str) else given)
        if not prompt:
            raise invalid("Invalid value for 'prompt': a prompt must have at least one token.", "prompt", "invalid_value")
        if wrong := [token for token in prompt if not 0 <= token < tokenizer.size]:
            message = f"Invalid value for 'prompt': token id {wrong[0]} is not in the model's vocabulary of {tokenizer.size}."
            raise invalid(message, "prompt", "invalid_value")
        most = room(context_tokens, len(prompt), request.max_tokens, _DEFAULT_TOKENS)
        for i in range(request.choices):
            sampling = Sampling(temperature, top_p, seed_of(request.seed, i), request.logprobs or 0)
            made.append(Choice(len(made), prompt, sampling, most, request.stops, continues=True))
    return tuple(made)


@dataclass(frozen=True)
class CompletionFormat:
    """OpenAI's text completion objects. `logprobs` is None when the client did not ask for them."""

    head: Head
    tokenizer: ModelTokenizer
    prompt_tokens: int
    number: int
    logprobs: int | None

    def opening(self) -> Sequence[Mapping[str, object]]:
        """A text stream has no first event of its own."""
        return []

    def event(self, piece: Piece) -> Sequence[Mapping[str, object]]:
        """The event of one piece."""
        choice = {
            "text": piece.text,
            "index": piece.index,
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish,
        }
        event: dict[str, object] = {**self.head.fields("text_completion"), "choices": [choice]}
        if self.head.usage_follows:
            event["usage"] = None
        return [event]

    def usage_event(self, generated: int) -> Mapping[str, object]:
        """The last event, when the client wants the usage."""
        return {**self.head.fields("text_completion"), "choices": [], "usage": usage(self.prompt_tokens, generated)}

    def whole(self, pieces: Sequence[Piece], generated: int) -> Mapping[str, object]:
        """The body of an answer in one piece."""
        made = []
        for index in range(self.number):
            own = [piece for piece in pieces if piece.index == index]
            made.append(
                {
                    "text": "".join(piece.text for piece in own),
                    "index": index,
                    "logprobs": self._logprobs([token for piece in own for token in piece.tokens]),
                    "finish_reason": own[-1].finish,
                }
            )
        return {**self.head.fields("text_completion"), "choices": made, "usage": usage(self.prompt_tokens, generated)}

    def _logprobs(self, tokens: Sequence[Sampled]) -> Mapping[str, object] | None:
        if self.logprobs is None:
            return None
        return {
            "tokens": [self._text(t.token) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._text(i): p for i, p in t.top} for t in tokens] if self.logprobs else None,
            "text_offset": [t.offset for t in tokens],
        }

    def _text(self, token: int) -> str:
        raw = self.tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
