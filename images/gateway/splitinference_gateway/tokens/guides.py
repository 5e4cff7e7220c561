"""Structured output: which tokens may come next, so that an answer follows a JSON schema, a regular expression or a grammar.

llguidance keeps the state of one answer here, in the gateway. Each step carries the allowed tokens to the last segment, which keeps none.
So a replay, a hand-over and another split give the same answer.
"""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import llguidance
from llguidance import gbnf_to_lark

from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.tokens.tokenizer import ModelTokenizer

_MOST_GRAMMAR = 1 << 18  # characters
_MOST_SECONDS = 10.0  # of processor time for the masks of one answer
_LIMITS: Mapping[str, Mapping[str, Any]] = {
    # What a schema or a regular expression becomes has few ambiguities; the states of a large object need room.
    "schema": {"max_items_in_row": 2000, "step_max_items": 20_000, "max_grammar_size": 200_000},
    # A grammar may be ambiguous at will. These limits keep one mask below 0.2 s.
    "grammar": {"max_items_in_row": 250, "step_max_items": 8_000, "max_grammar_size": 50_000},
}
_LEXER: Mapping[str, Any] = {"initial_lexer_fuel": 500_000, "step_lexer_fuel": 100_000, "max_lexer_states": 50_000}


@dataclass(frozen=True)
class Grammar:
    """What an answer must follow, in llguidance's form. `kind` chooses the limits; `param` is the request's field."""

    kind: str
    text: str
    param: str

    def as_json(self) -> dict[str, str]:
        """For another process."""
        return dict(self.__dict__)

    @classmethod
    def of_schema(cls, schema: object, param: str) -> "Grammar":
        """Of a JSON schema: an object, or its text. ApiError 400 for what is neither."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (ValueError, RecursionError) as error:
                raise invalid(f"Invalid value for '{param}': the schema is not JSON.", param, "invalid_value") from error
        if not isinstance(schema, dict | bool):
            raise invalid(f"Invalid type for '{param}': a JSON schema is an object.", param, "invalid_type")
        return cls("schema", llguidance.LLMatcher.grammar_from_json_schema(_bounded(json.dumps(schema), param)), param)

    @classmethod
    def of_regex(cls, pattern: object, param: str) -> "Grammar":
        """Of a regular expression that the whole answer matches. ApiError 400."""
        return cls("schema", llguidance.LLMatcher.grammar_from_regex(_text(pattern, param)), param)

    @classmethod
    def of_choice(cls, choices: object, param: str) -> "Grammar":
        """Of texts, one of which is the answer. ApiError 400."""
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) and choice for choice in choices):
            raise invalid(f"Invalid value for '{param}': expected a list of texts, none empty.", param, "invalid_value")
        lines = "\n    | ".join(_bounded(json.dumps(choice), param) for choice in dict.fromkeys(choices))
        return cls.of_lark(f"start: {lines}", param)

    @classmethod
    def of_lark(cls, text: str, param: str) -> "Grammar":
        """Of a grammar that we wrote ourselves. ApiError 400 where it is too long."""
        return cls("schema", llguidance.LLMatcher.grammar_from_lark(_bounded(text, param)), param)

    @classmethod
    def of_grammar(cls, grammar: object, param: str) -> "Grammar":
        """Of a grammar in Lark's notation, or in GBNF (`root ::= …`). ApiError 400."""
        text = _text(grammar, param)
        if "::=" in text:
            try:
                text = gbnf_to_lark.gbnf_to_lark(text)
            except Exception as error:
                raise _refused(param, str(error)) from error
        return cls("grammar", llguidance.LLMatcher.grammar_from_lark(text), param)


class Guides:
    """Makes guides for one model's vocabulary. About 10 MiB for 50,000 tokens."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        """ValueError for a model without an end token: nothing could end a guided answer."""
        if not tokenizer.end_tokens:
            raise ValueError("the model's files name no end token")
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer)))

    def begin(self, grammar: Grammar) -> "Guide":
        """The guide of one answer. ApiError 400 for a grammar that is wrong, that nothing satisfies, or that takes too much."""
        limits = llguidance.LLParserLimits(**_LIMITS[grammar.kind], **_LEXER, verbose_errors=False)
        return Guide(llguidance.LLMatcher(self._tokenizer, grammar.text, log_level=0, limits=limits), grammar.param)


class Guide:
    """The state of one answer."""

    def __init__(self, matcher: Any, param: str) -> None:
        self._matcher = matcher
        self._param = param
        self._allowed = ""
        self._seconds = 0.0
        self._check()

    def allowed(self) -> str:
        """The tokens that may come next: bits in base64, the lowest bit of the first byte for token 0. Those beyond it may not come.

        ApiError 400 where the grammar takes too much.
        """
        if not self._allowed:
            before = time.thread_time()
            mask = self._matcher.compute_bitmask()
            self._seconds += time.thread_time() - before
            self._check()
            if self._seconds > _MOST_SECONDS:
                raise _refused(self._param, f"it takes more than {_MOST_SECONDS:g} s of processor time", "grammar_too_complex")
            if not any(mask):
                raise _refused(self._param, "no text satisfies it")
            self._allowed = base64.b64encode(mask.rstrip(b"\0")).decode()
        return self._allowed

    def add(self, token: int) -> None:
        """This token was chosen.

        Raises:
            ApiError: 400 where the grammar takes too much; 500 for a token that was not allowed, as the chain did not do as told.
        """
        self._allowed = ""
        if not self._matcher.consume_token(token):
            if _too_complex(self._why):
                self._check()
            raise ApiError(500, "The model chose a token that the grammar does not allow.", kind="server_error", code="internal")

    def copy(self) -> "Guide":
        """Another answer in the same state."""
        return Guide(self._matcher.deep_copy(), self._param)

    @property
    def complete(self) -> bool:
        """Nothing but the end may come."""
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refused(self._param, self._why, "grammar_too_complex" if _too_complex(self._why) else "invalid_value")

    @property
    def _why(self) -> str:
        return str(self._matcher.get_error()).splitlines()[0]


class _Vocabulary:
    """A tokenizer as llguidance's wrapper asks for it."""

    def __init__(self, tokenizer: ModelTokenizer) -> None:
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.specials.values())
        self.eos_token_id = min(tokenizer.end_tokens)
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text, special_tokens=False)


def _too_complex(why: str) -> bool:
    """llguidance has one kind of error; its limits say so in words."""
    return any(word in why.lower() for word in ("too many", "too large", "too complex", "limit", "max is", "fuel"))


def _text(value: object, param: str) -> str:
    if not isinstance(value, str):
        raise invalid(f"Invalid type for '{param}': expected a text, but got {type(value).__name__} instead.", param, "invalid_type")
    return _bounded(value, param)


def _bounded(text: str, param: str) -> str:
    if len(text) > _MOST_GRAMMAR:
        message = f"Invalid value for '{param}': {len(text)} characters are too many, at most {_MOST_GRAMMAR}."
        raise invalid(message, param, "grammar_too_complex")
    return text


def _refused(param: str, why: str, code: str = "invalid_value") -> ApiError:
    return invalid(f"Invalid value for '{param}': {why[:300]}.", param, code)
