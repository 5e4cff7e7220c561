"""From a request's body to what is to be generated: JSON, chat template, tokenizer, each within bounds that are checked before it runs.

The order matters: what a request may not have is refused while it is still small. Counts first, then characters, then tokens.
"""

import array
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from splitinference_gateway.client_requests.bodies import read_json
from splitinference_gateway.client_requests.fields import WHAT_IS_LEFT
from splitinference_gateway.client_requests.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    parse,
    parse_plain,
)
from splitinference_gateway.client_requests.responses_request import as_body, as_chat, in_its_own_names, strays
from splitinference_gateway.client_requests.tools import Form, form_of, must_call
from splitinference_gateway.errors import ApiError, context_too_long, invalid
from splitinference_gateway.tokens.chat_template import ChatTemplate, TemplateError
from splitinference_gateway.tokens.guides import Grammar, Guides
from splitinference_gateway.tokens.text import Detokenizer
from splitinference_gateway.tokens.tokenizer import ModelTokenizer

_SEED_BITS = 63
_DEFAULT_TOKENS = 16  # OpenAI's, of text completions
_MOST_ALTERNATIVES = 1 << 19  # log-probabilities of one answer, which is kept in memory until it is sent
_MOST_BANNED = 256
_NEUTRAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
_TEMPLATE_CHARACTERS = 1 << 16  # of a prompt that a template writes around the messages


@dataclass(frozen=True)
class Reading:
    """What a request asks for: `n` choices of each prompt. `most`: how many tokens after each prompt; `continues`: the text goes on."""

    model: str
    stream: bool
    with_usage: bool
    n: int
    sampling: Mapping[str, Any]  # of steps.Sampling, but for the seed
    seed: int | None
    logprobs: int | None  # as the client said it; None: not wanted
    stops: tuple[str, ...]
    ends: tuple[int, ...]  # tokens that end an answer
    prompts: tuple[Sequence[int], ...]
    most: tuple[int, ...]
    continues: bool
    echo: tuple[str, ...] = ()  # the prompts' texts, where answers begin with them
    offsets: tuple[tuple[int, ...], ...] = ()  # where each token's text begins in `echo`, where prompts are scored
    ignored: tuple[str, ...] = ()  # fields that nobody here knows
    grammar: Grammar | None = None  # what the answer must follow
    tools: str = ""  # the form in which calls of tools stand in the answer (see `tools.FORMS`); empty: there are none
    forced: bool = False  # one call of a certain tool is all that may come
    repeated: Mapping[str, Any] = field(default_factory=dict)  # of a response: what its answer says again of the request

    def as_frame(self) -> tuple[dict[str, Any], bytes]:
        """For another process: values, and the tokens of all prompts."""
        grammar = None if self.grammar is None else self.grammar.as_json()
        fields = {**self.__dict__, "prompts": [len(prompt) for prompt in self.prompts], "grammar": grammar}
        return fields, b"".join(array.array("i", prompt).tobytes() for prompt in self.prompts)

    @classmethod
    def of_frame(cls, fields: Mapping[str, Any], tokens: bytes) -> "Reading":
        """The other way. ValueError or TypeError for what is none."""
        every, prompts, start = array.array("i", tokens), [], 0
        for length in fields["prompts"]:
            prompts.append(every[start : start + length])
            start += length
        lists = {name: tuple(fields[name]) for name in ("stops", "ends", "most", "echo", "ignored")}
        lists["offsets"] = tuple(tuple(offsets) for offsets in fields["offsets"])
        sampling = {**fields["sampling"], "banned": tuple(fields["sampling"]["banned"])}
        sampling["bias"] = tuple((token, bias) for token, bias in fields["sampling"]["bias"])
        grammar = None if fields["grammar"] is None else Grammar(**fields["grammar"])
        return cls(**{**fields, **lists, "sampling": sampling, "prompts": tuple(prompts), "grammar": grammar})


def seed_of(seed: int | None, index: int) -> int | None:
    """The seed of one choice: the given one for the first, derived ones for the others, which would else all be equal."""
    if seed is None or index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - _SEED_BITS)


def room(limit: int, prompt: int, wanted: int | None, default: int | None, *, cut: bool = True) -> int:
    """How many tokens may be generated: what is asked for, else the default, at most what the context leaves.

    Raises:
        ApiError: context_length_exceeded, when the prompt leaves none, or (without `cut`) less than is asked for.
    """
    left = limit - prompt
    tokens = min(left, default or left) if wanted is None else wanted
    needed = min(1, tokens) if cut and wanted is not None else tokens
    if left < max(needed, 0 if wanted == 0 else 1):
        raise context_too_long(limit, prompt, max(0 if wanted == 0 else 1, tokens))
    return min(tokens, left)


@dataclass(frozen=True)
class Reader:
    """Reads bodies for one model. `template` is None where the model has none; `phase` is told what is about to run."""

    model: str
    context_tokens: int
    most_sequences: int
    tokenizer: ModelTokenizer
    template: ChatTemplate | None
    longest_token: int
    vocabulary: int = 0  # of the model, where it is larger than the tokenizer's
    defaults: Mapping[str, float] = field(default_factory=dict)  # of sampling, where a request says nothing
    cut: bool = True  # max_tokens beyond the context, rather than refuse it
    refuse_unknown: bool = False
    guides: Guides | None = None  # None: this model's answers cannot be guided
    adapters: Collection[str] = ()  # names of those that may be asked for now
    phase: Callable[[str], None] = lambda phase: None

    def chat(self, body: bytes) -> Reading:
        """POST /v1/chat/completions.

        Raises:
            ApiError: the request is wrong, or does not fit.
        """
        request = parse(ChatRequest, body, refuse_unknown=self.refuse_unknown)
        check_model(request.model, self.model, self.adapters)
        self._check_sequences(request.choices, 1)
        form = self._tool_form(request)
        prompt = self._rendered(request)
        left = room(self.context_tokens, len(prompt), request.most_tokens, None, cut=self.cut)
        alternatives = request.top_logprobs or 0
        grammar = request.grammar
        if form is not None and (required := request.required_tools):
            if grammar is not None:
                message = f"'tool_choice' and '{grammar.param}' exclude each other: an answer follows one of them."
                raise invalid(message, grammar.param, "invalid_value")
            several = request.parallel_tool_calls is not False and request.tool_choice == "required"
            grammar = must_call(form, [function.for_template for function in required], self.tokenizer.specials, several=several)
        read = self._reading(request, (prompt,), (left,), alternatives, alternatives if request.logprobs else None, grammar=grammar)
        forced = not isinstance(request.tool_choice, str | None)
        return read if form is None else replace(read, tools=form.name, forced=forced)

    def response(self, body: bytes) -> Reading:
        """POST /v1/responses: a chat in other words.

        Raises:
            ApiError: the request is wrong, does not fit, or asks for what is stored nowhere.
        """
        content = read_json(body)
        others = strays(content)
        if others and self.refuse_unknown:
            raise invalid(f"Unrecognized request argument supplied: {others[0]}", others[0], "unknown_parameter")
        chat, repeated = as_chat(content)
        try:
            read = self.chat(as_body(chat))
            return replace(read, repeated=repeated, ignored=(*read.ignored, *others))
        except ApiError as error:
            raise in_its_own_names(error) from error

    def _tool_form(self, request: ChatRequest) -> Form | None:
        """How this model writes calls; None where it may make none. ApiError 400 for a model that knows no tools."""
        if not request.usable_tools:
            return None
        form = form_of(self.tokenizer.template)
        if form is None:
            message = "This model's chat template takes no tools, or in a form that is not known here."
            raise invalid(message, "tools", "unsupported_parameter")
        return form

    def _rendered(self, request: ChatRequest) -> list[int]:
        if self.tokenizer.template is None:
            raise invalid("This model has no chat template; use /v1/completions.", "model")
        if self.template is None:
            raise invalid("This model's chat template cannot be used; use /v1/completions.", "model", "chat_template_broken")
        self.check_characters(request.characters, "messages")
        messages = [message.for_template for message in request.messages]
        options = {"add_generation_prompt": request.add_generation_prompt is not False, **(request.chat_template_kwargs or {})}
        tools = [{"type": "function", "function": tool.function.for_template} for tool in request.usable_tools]
        self.phase("template")
        most = self.context_tokens * self.longest_token + _TEMPLATE_CHARACTERS
        try:
            text = self.template.render(messages, most, options, tools)
        except TemplateError as error:
            raise invalid(f"The model's chat template refuses these messages: {error}", "messages", "invalid_value") from error
        self.check_characters(len(text), "messages")
        self.phase("tokenizer")
        return self._encoded(text, special_tokens=False)

    def completion(self, body: bytes) -> Reading:
        """POST /v1/completions.

        Raises:
            ApiError: the request is wrong, or does not fit.
        """
        request = parse(CompletionRequest, body, refuse_unknown=self.refuse_unknown)
        check_model(request.model, self.model, self.adapters)
        given = request.prompts
        if not given:
            raise invalid("Invalid value for 'prompt': at least one prompt is needed.", "prompt", "invalid_value")
        self._check_sequences(request.choices, len(given))
        for prompt in given:
            self.check_characters(len(prompt), "prompt", of_ids=not isinstance(prompt, str))
        self.phase("tokenizer")
        prompts, most = [], []
        for prompt in given:
            tokens = self._encoded(prompt, special_tokens=True) if isinstance(prompt, str) else prompt
            if not tokens:
                raise invalid("Invalid value for 'prompt': a prompt must have at least one token.", "prompt", "invalid_value")
            if (wrong := next((token for token in tokens if not 0 <= token < self.tokenizer.size), None)) is not None:
                message = f"Invalid value for 'prompt': token id {wrong} is not in the model's vocabulary of {self.tokenizer.size}."
                raise invalid(message, "prompt", "invalid_value")
            default = None if request.max_tokens == WHAT_IS_LEFT else _DEFAULT_TOKENS
            most.append(room(self.context_tokens, len(tokens), request.most_tokens, default, cut=self.cut))
            prompts.append(tokens)
        read = self._reading(request, tuple(prompts), tuple(most), request.logprobs or 0, request.logprobs)
        if not request.echo:
            if request.max_tokens == 0:
                raise invalid("Invalid value for 'max_tokens': 0 is only allowed with 'echo'.", "max_tokens", "invalid_value")
            return read
        texts = tuple(prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt) for prompt in given)
        scored = zip(prompts, texts, strict=True) if request.logprobs is not None else ()
        return replace(read, echo=texts, offsets=tuple(self._offsets(tokens, len(text)) for tokens, text in scored))

    def _offsets(self, tokens: Sequence[int], characters: int) -> tuple[int, ...]:
        detokenizer, at, made = Detokenizer(self.tokenizer.decode), 0, []
        for token in tokens:
            made.append(min(at, characters))
            at += len(detokenizer.add(token))
        return tuple(made)

    def tokenize(self, body: bytes) -> dict[str, Any]:
        """POST /tokenize: the answer.

        Raises:
            ApiError: the request is wrong, or the text has more characters than the context can hold.
        """
        content = read_json(body)
        asked = parse_plain(TokenizeRequest, content)
        check_model(asked.model or self.model, self.model, self.adapters)
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("Exactly one of 'prompt' and 'messages' is needed.", "prompt", "missing_required_parameter")
        if asked.prompt is None:
            as_chat = {name: value for name, value in content.items() if name in ChatRequest.model_fields}
            tokens = self._rendered(parse_plain(ChatRequest, {**as_chat, "model": self.model}))
        else:
            self.check_characters(len(asked.prompt), "prompt")
            self.phase("tokenizer")
            tokens = self._encoded(asked.prompt, special_tokens=asked.add_special_tokens is not False)
        told: dict[str, Any] = {"count": len(tokens), "max_model_len": self.context_tokens, "tokens": tokens}
        if asked.return_token_strs:
            told["token_strs"] = [self.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
        return told

    def detokenize(self, body: bytes) -> dict[str, Any]:
        """POST /detokenize: the answer, special tokens included.

        Raises:
            ApiError: the request is wrong, or names a token that is not there.
        """
        asked = parse_plain(DetokenizeRequest, read_json(body))
        check_model(asked.model or self.model, self.model, self.adapters)
        self.check_known(asked.tokens, "tokens")
        self.phase("tokenizer")
        return {"prompt": self.tokenizer.decode(asked.tokens, special_tokens=True)}

    def _reading(
        self,
        request: ChatRequest | CompletionRequest,
        prompts: tuple[list[int], ...],
        most: tuple[int, ...],
        alternatives: int,
        logprobs: int | None,
        *,
        grammar: Grammar | None = None,
    ) -> Reading:
        grammar = grammar or request.grammar
        continues = isinstance(request, CompletionRequest)
        scored = sum(map(len, prompts)) if isinstance(request, CompletionRequest) and request.echo else 0
        if (told := (sum(most) + scored) * request.choices * alternatives) > _MOST_ALTERNATIVES:
            message = (
                f"The request asks for up to {told} log-probabilities; at most {_MOST_ALTERNATIVES}. Ask for fewer tokens or alternatives."
            )
            raise invalid(message, "logprobs", "invalid_value")
        asked, ends = self._sampling(request, alternatives), self._ends(request, grammar)
        self._check_grammar(grammar)
        if asked["min_tokens"]:
            asked["banned"] = sorted(token for token in ends if token < self._known_tokens)[:_MOST_BANNED]
        return Reading(
            model=request.model,
            stream=bool(request.stream),
            with_usage=request.with_usage,
            n=request.choices,
            sampling=asked,
            seed=request.seed,
            logprobs=logprobs,
            stops=request.stops,
            ends=tuple(ends),
            prompts=prompts,
            most=most,
            continues=continues,
            ignored=request.ignored,
            grammar=grammar,
        )

    def _check_grammar(self, grammar: Grammar | None) -> None:
        """Tried here, where time and memory are bounded. ApiError 400."""
        if grammar is None:
            return
        if self.guides is None:
            raise invalid("This model's vocabulary cannot be guided: its files name no end token.", grammar.param, "unsupported_parameter")
        self.phase("grammar")
        self.guides.begin(grammar).allowed()

    @property
    def _known_tokens(self) -> int:
        return max(self.vocabulary, self.tokenizer.size)

    def _sampling(self, request: ChatRequest | CompletionRequest, alternatives: int) -> dict[str, Any]:
        """What the request says, else what the model's files say, else nothing."""
        most = request.most_tokens
        if most is not None and (request.min_tokens or 0) > most:
            raise invalid(f"Invalid value for 'min_tokens': it is more than 'max_tokens', {most}.", "min_tokens", "invalid_value")
        made: dict[str, Any] = {name: _neutral(name, getattr(request, name), self.defaults) for name in _NEUTRAL}
        made["top_k"] = max(0, int(made["top_k"]))
        bias = request.logit_bias or {}
        self.check_known(bias, "logit_bias")
        return {**made, "logprobs": alternatives, "min_tokens": request.min_tokens or 0, "bias": sorted(bias.items()), "banned": []}

    def _ends(self, request: ChatRequest | CompletionRequest, grammar: Grammar | None) -> list[int]:
        """The model's own, those that the request names, and special tokens that it names as stop strings: no text shows them."""
        given = request.stop_token_ids or []
        self.check_known(given, "stop_token_ids")
        specials = [self.tokenizer.specials[stop] for stop in request.stops if stop in self.tokenizer.specials]
        own = () if request.ignore_eos and grammar is None else self.tokenizer.end_tokens
        return sorted({*own, *given, *specials})

    def check_known(self, tokens: Iterable[int], param: str) -> None:
        if (wrong := next((token for token in tokens if not 0 <= token < self._known_tokens), None)) is not None:
            message = f"Invalid value for '{param}': token id {wrong} is not in the model's vocabulary of {self._known_tokens}."
            raise invalid(message, param, "invalid_value")

    def _check_sequences(self, choices: int, prompts: int) -> None:
        if (sequences := choices * prompts) > self.most_sequences:
            raise invalid(f"The request asks for {sequences} sequences; at most {self.most_sequences} fit.", "n", "invalid_value")

    def check_characters(self, characters: int, param: str, *, of_ids: bool = False) -> None:
        """A token stands for at most so many characters: a text with more cannot fit, and is not worth the tokenizer's time."""
        fewest = characters if of_ids else -(-characters // self.longest_token)
        if fewest >= self.context_tokens:
            raise context_too_long(self.context_tokens, fewest, 1, param)

    def _encoded(self, text: str, *, special_tokens: bool) -> list[int]:
        return self.tokenizer.encode(text, special_tokens=special_tokens)


def _neutral(name: str, asked: float | None, defaults: Mapping[str, float]) -> float:
    return _NEUTRAL[name] if (value := defaults.get(name) if asked is None else asked) is None else value


def check_model(asked: str, served: str, adapters: Collection[str] = ()) -> None:
    """Raise ApiError 404 if clients know the model by another name, and it is none of these adapters."""
    if asked != served and asked not in adapters:
        message = f"The model '{asked:.200}' does not exist or you do not have access to it."
        raise ApiError(404, message, param="model", code="model_not_found")
