"""From a request's body to what is to be generated: JSON, chat template, tokenizer, each within bounds that are checked before it runs.

The order matters: what a request may not have is refused while it is still small. Counts first, then characters, then tokens.
"""

import array
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_gateway.chat_template import ChatTemplate, TemplateError
from splitinference_gateway.errors import ApiError, context_too_long, invalid
from splitinference_gateway.requests import ChatRequest, CompletionRequest, parse
from splitinference_gateway.tokenizer import ModelTokenizer

_SEED_BITS = 63
_DEFAULT_TOKENS = 16  # OpenAI's, of text completions
_MOST_ALTERNATIVES = 1 << 19  # log-probabilities of one answer, which is kept in memory until it is sent
_TEMPLATE_CHARACTERS = 1 << 16  # of a prompt that a template writes around the messages


@dataclass(frozen=True)
class Reading:
    """What a request asks for: `n` choices of each prompt. `most`: how many tokens after each prompt; `continues`: the text goes on."""

    model: str
    stream: bool
    with_usage: bool
    n: int
    temperature: float
    top_p: float
    seed: int | None
    alternatives: int  # log-probabilities of so many other tokens
    logprobs: int | None  # as the client said it; None: not wanted
    stops: tuple[str, ...]
    prompts: tuple[Sequence[int], ...]
    most: tuple[int, ...]
    continues: bool

    def as_frame(self) -> tuple[dict[str, Any], bytes]:
        """For another process: values, and the tokens of all prompts."""
        fields = {**self.__dict__, "prompts": [len(prompt) for prompt in self.prompts]}
        return fields, b"".join(array.array("i", prompt).tobytes() for prompt in self.prompts)

    @classmethod
    def of_frame(cls, fields: Mapping[str, Any], tokens: bytes) -> "Reading":
        """The other way. ValueError or TypeError for what is none."""
        every, prompts, start = array.array("i", tokens), [], 0
        for length in fields["prompts"]:
            prompts.append(every[start : start + length])
            start += length
        return cls(**{**fields, "prompts": tuple(prompts), "stops": tuple(fields["stops"]), "most": tuple(fields["most"])})


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


@dataclass(frozen=True)
class Reader:
    """Reads bodies for one model. `template` is None where the model has none; `phase` is told what is about to run."""

    model: str
    context_tokens: int
    most_sequences: int
    tokenizer: ModelTokenizer
    template: ChatTemplate | None
    longest_token: int
    phase: Callable[[str], None] = lambda phase: None

    def chat(self, body: bytes) -> Reading:
        """POST /v1/chat/completions.

        Raises:
            ApiError: the request is wrong, or does not fit.
        """
        request = parse(ChatRequest, body)
        check_model(request.model, self.model)
        self._check_sequences(request.choices, 1)
        if self.tokenizer.template is None:
            raise invalid("This model has no chat template; use /v1/completions.", "model")
        if self.template is None:
            raise invalid("This model's chat template cannot be used; use /v1/completions.", "model", "chat_template_broken")
        self._check_characters(request.characters, "messages")
        self.phase("template")
        most = self.context_tokens * self.longest_token + _TEMPLATE_CHARACTERS
        try:
            text = self.template.render([message.for_template for message in request.messages], most)
        except TemplateError as error:
            raise invalid(f"The model's chat template refuses these messages: {error}", "messages", "invalid_value") from error
        self._check_characters(len(text), "messages")
        self.phase("tokenizer")
        prompt = self._encoded(text, special_tokens=False)
        left = room(self.context_tokens, len(prompt), request.max_completion_tokens or request.max_tokens, None)
        alternatives = request.top_logprobs or 0
        return self._reading(request, (prompt,), (left,), alternatives, alternatives if request.logprobs else None, continues=False)

    def completion(self, body: bytes) -> Reading:
        """POST /v1/completions.

        Raises:
            ApiError: the request is wrong, or does not fit.
        """
        request = parse(CompletionRequest, body)
        check_model(request.model, self.model)
        given = request.prompts
        if not given:
            raise invalid("Invalid value for 'prompt': at least one prompt is needed.", "prompt", "invalid_value")
        self._check_sequences(request.choices, len(given))
        for prompt in given:
            self._check_characters(len(prompt), "prompt", of_ids=not isinstance(prompt, str))
        self.phase("tokenizer")
        prompts, most = [], []
        for prompt in given:
            tokens = self._encoded(prompt, special_tokens=True) if isinstance(prompt, str) else prompt
            if not tokens:
                raise invalid("Invalid value for 'prompt': a prompt must have at least one token.", "prompt", "invalid_value")
            if (wrong := next((token for token in tokens if not 0 <= token < self.tokenizer.size), None)) is not None:
                message = f"Invalid value for 'prompt': token id {wrong} is not in the model's vocabulary of {self.tokenizer.size}."
                raise invalid(message, "prompt", "invalid_value")
            most.append(room(self.context_tokens, len(tokens), request.max_tokens, _DEFAULT_TOKENS))
            prompts.append(tokens)
        return self._reading(request, tuple(prompts), tuple(most), request.logprobs or 0, request.logprobs, continues=True)

    def _reading(
        self,
        request: ChatRequest | CompletionRequest,
        prompts: tuple[list[int], ...],
        most: tuple[int, ...],
        alternatives: int,
        logprobs: int | None,
        *,
        continues: bool,
    ) -> Reading:
        if (told := sum(most) * request.choices * alternatives) > _MOST_ALTERNATIVES:
            message = (
                f"The request asks for up to {told} log-probabilities; at most {_MOST_ALTERNATIVES}. Ask for fewer tokens or alternatives."
            )
            raise invalid(message, "logprobs", "invalid_value")
        return Reading(
            model=request.model,
            stream=bool(request.stream),
            with_usage=request.with_usage,
            n=request.choices,
            temperature=1.0 if request.temperature is None else request.temperature,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            alternatives=alternatives,
            logprobs=logprobs,
            stops=request.stops,
            prompts=prompts,
            most=most,
            continues=continues,
        )

    def _check_sequences(self, choices: int, prompts: int) -> None:
        if (sequences := choices * prompts) > self.most_sequences:
            raise invalid(f"The request asks for {sequences} sequences; at most {self.most_sequences} fit.", "n", "invalid_value")

    def _check_characters(self, characters: int, param: str, *, of_ids: bool = False) -> None:
        """A token stands for at most so many characters: a text with more cannot fit, and is not worth the tokenizer's time."""
        fewest = characters if of_ids else -(-characters // self.longest_token)
        if fewest >= self.context_tokens:
            raise context_too_long(self.context_tokens, fewest, 1, param)

    def _encoded(self, text: str, *, special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, special_tokens=special_tokens)


def check_model(asked: str, served: str) -> None:
    """Raise ApiError 404 if clients know the model by another name."""
    if asked != served:
        message = f"The model '{asked:.200}' does not exist or you do not have access to it."
        raise ApiError(404, message, param="model", code="model_not_found")
