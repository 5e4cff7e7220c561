"""POST /v1/chat/completions: messages to prompt, pieces to OpenAI's chat objects."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitinference_gateway.chat_template import TemplateError
from splitinference_gateway.errors import context_too_long, invalid
from splitinference_gateway.generation import Choice, Piece, Sampled
from splitinference_gateway.replies import Head, usage
from splitinference_gateway.requests import ChatRequest
from splitinference_gateway.steps import Sampling
from splitinference_gateway.tokenizer import ModelTokenizer

_SEED_BITS = 63


def seed_of(seed: int | None, index: int) -> int | None:
    """The seed of one choice: the given one for the first, derived ones for the others, which would else all be equal."""
    if seed is None or index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def room(limit: int, prompt: int, wanted: int | None, default: int | None) -> int:
    """How many tokens may be generated: what is asked for, else the default, else what the context leaves.

    Raises:
        ApiError: context_length_exceeded.
    """
    left = limit - prompt
    tokens = wanted or min(left, default or left)
    if left < max(1, tokens):
        raise context_too_long(limit, prompt, max(1, tokens))
    return tokens


async def choices(request: ChatRequest, tokenizer: ModelTokenizer, context_tokens: int) -> tuple[Choice, ...]:
    """What to generate.

    Raises:
        ApiError: the messages do not fit the template or the context.
    """
    if tokenizer.chat is None:
        raise invalid("This model has no chat template; use /v1/completions.", "model")
    try:
        text = tokenizer.chat.render([message.for_template for message in request.messages])
    except TemplateError as error:
        raise invalid(f"The model's chat template refuses these messages: {error}", "messages", "invalid_value") from error
    prompt = tuple(await tokenizer.encode(text, special_tokens=False))
    most = room(context_tokens, len(prompt), request.max_completion_tokens or request.max_tokens, None)
    temperature = 1.0 if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    return tuple(
        Choice(i, prompt, Sampling(temperature, top_p, seed_of(request.seed, i), request.top_logprobs or 0), most, request.stops)
        for i in range(request.choices)
    )


@dataclass(frozen=True)
class ChatFormat:
    """OpenAI's chat completion objects. `logprobs`: the client asked for them."""

    head: Head
    tokenizer: ModelTokenizer
    prompt_tokens: int
    number: int
    logprobs: bool

    def opening(self) -> Sequence[Mapping[str, object]]:
        """The first event of each choice of a stream."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._event({"index": i, "delta": delta, "logprobs": None, "finish_reason": None}) for i in range(self.number)]

    def event(self, piece: Piece) -> Sequence[Mapping[str, object]]:
        """The events of one piece."""
        events = []
        if piece.text or piece.tokens:
            logprobs = self._logprobs(piece.tokens) if self.logprobs else None
            events.append({"index": piece.index, "delta": {"content": piece.text}, "logprobs": logprobs, "finish_reason": None})
        if piece.finish:
            events.append({"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.finish})
        return [self._event(event) for event in events]

    def usage_event(self, generated: int) -> Mapping[str, object]:
        """The last event, when the client wants the usage."""
        return {**self.head.fields("chat.completion.chunk"), "choices": [], "usage": usage(self.prompt_tokens, generated)}

    def whole(self, pieces: Sequence[Piece], generated: int) -> Mapping[str, object]:
        """The body of an answer in one piece."""
        made = []
        for index in range(self.number):
            own = [piece for piece in pieces if piece.index == index]
            tokens = [token for piece in own for token in piece.tokens]
            message = {"role": "assistant", "content": "".join(piece.text for piece in own), "refusal": None}
            logprobs = self._logprobs(tokens) if self.logprobs else None
            made.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": own[-1].finish})
        return {**self.head.fields("chat.completion"), "choices": made, "usage": usage(self.prompt_tokens, generated)}

    def _event(self, choice: Mapping[str, object]) -> Mapping[str, object]:
        event: dict[str, object] = {**self.head.fields("chat.completion.chunk"), "choices": [choice]}
        if self.head.usage_follows:
            event["usage"] = None
        return event

    def _logprobs(self, tokens: Sequence[Sampled]) -> Mapping[str, object]:
        content = [{**self._token(t.token, t.logprob), "top_logprobs": [self._token(i, p) for i, p in t.top]} for t in tokens]
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> dict[str, object]:
        raw = self.tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
