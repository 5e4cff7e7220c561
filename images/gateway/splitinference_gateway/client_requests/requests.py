"""What clients may ask for: OpenAI's request bodies, checked, and refused in OpenAI's words where they are wrong."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from splitinference_gateway.client_requests.bodies import read_json
from splitinference_gateway.client_requests.fields import (
    MOST_STOP_TOKENS,
    ONLY_NEUTRAL,
    WHAT_IS_LEFT,
    WITHOUT_EFFECT,
    Biases,
    IfNotEmpty,
    Logprobs,
    MostTokens,
    Stops,
    TemplateKwargs,
    TokenId,
    TopP,
    Whole,
    one_by_one,
    texts_or_ids,
)
from splitinference_gateway.client_requests.messages import ChosenTool, Function, Message, Tool
from splitinference_gateway.client_requests.structured import STRUCTURED, structured
from splitinference_gateway.errors import ApiError, invalid, unsupported
from splitinference_gateway.tokens.guides import Grammar

_INT64_MAX = 2**63 - 1
_MOST_MESSAGES = 4096
_MOST_PARTS = 4096  # of all messages together
_MOST_PROMPTS = 2048
_MOST_TOKENS = 1 << 20
_MOST_TOOLS = 128


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(frozen=True, strict=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    model: Annotated[str, Field(max_length=512)]
    stream: bool | None = None
    stream_options: Annotated[StreamOptions | None, IfNotEmpty] = None
    n: Whole | None = Field(default=None, ge=1, le=128)
    stop: Stops = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MOST_STOP_TOKENS)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Whole | None = Field(default=None, ge=0, le=_INT64_MAX)
    temperature: float | None = Field(default=None, ge=0, le=100, allow_inf_nan=False)
    top_p: TopP | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    top_k: Whole | None = Field(default=None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(default=None, ge=0, le=1, allow_inf_nan=False)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2, allow_inf_nan=False)
    logit_bias: Biases = None
    seed: Whole | None = Field(default=None, ge=-_INT64_MAX - 1, le=_INT64_MAX)
    _ignored: tuple[str, ...] = PrivateAttr(default=())
    _grammar: Grammar | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _leaves_out_what_has_no_effect(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, given in value.items():
            if name in WITHOUT_EFFECT or (given is None and name in ONLY_NEUTRAL):
                continue
            if name in ONLY_NEUTRAL and name not in cls.model_fields:
                if given not in ONLY_NEUTRAL[name] and not _asks_for_nothing(name, given, value):
                    raise unsupported(name)
                continue
            kept[name] = given
        if "tools" not in cls.model_fields and kept.pop("tools", None) not in (None, []):
            raise unsupported("tools")
        if "tools" not in cls.model_fields and kept.pop("tool_choice", None) not in (None, "none", "auto"):
            raise unsupported("tool_choice")
        if kept.pop("best_of", None) not in (None, 1, kept.get("n", 1)):
            raise unsupported("best_of")
        return kept

    @model_validator(mode="after")
    def _streams_when_it_has_stream_options(self) -> Self:
        if self.with_usage and not self.stream:
            raise invalid("The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options")
        return self

    @property
    def choices(self) -> int:
        """`n`, 1 when not given."""
        return self.n or 1

    @property
    def stops(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(dict.fromkeys(self.stop))

    @property
    def with_usage(self) -> bool:
        """A stream is to end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def ignored(self) -> tuple[str, ...]:
        """Names of fields that nobody here knows."""
        return self._ignored

    @property
    def grammar(self) -> Grammar | None:
        """What the answer must follow."""
        return self._grammar


def _asks_for_nothing(name: str, given: Any, body: Mapping[str, Any]) -> bool:
    """Values that are neutral besides those of the list."""
    match name:
        case "add_special_tokens":
            return given is ("messages" not in body)
        case "functions":
            return body.get("function_call") == "none"
        case _:
            return False


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_tokens: MostTokens | None = None
    max_completion_tokens: MostTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool | None = None
    chat_template_kwargs: TemplateKwargs = None
    tools: Annotated[list[Tool], Field(max_length=_MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ChosenTool | None = None
    parallel_tool_calls: bool | None = None

    @property
    def most_tokens(self) -> int | None:
        """Of the answer; None: what the context leaves."""
        found = self.max_completion_tokens or self.max_tokens
        return None if found == WHAT_IS_LEFT else found

    @property
    def usable_tools(self) -> tuple[Tool, ...]:
        """Those that the model may call."""
        return () if self.tool_choice == "none" else tuple(self.tools or ())

    @property
    def required_tools(self) -> tuple[Function, ...]:
        """Of these one must be called; empty where none must."""
        functions = tuple(tool.function for tool in self.usable_tools)
        if isinstance(self.tool_choice, ChosenTool):
            name = self.tool_choice.function.name
            return tuple(function for function in functions if function.name == name)
        return functions if self.tool_choice == "required" else ()

    @model_validator(mode="after")
    def _chooses_a_tool_that_is_there(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise invalid(f"Invalid value for 'tools': two functions are named '{twice}'.", "tools", "invalid_value")
        if self.tool_choice == "required" and not names:
            raise invalid("Invalid value for 'tool_choice': 'required' needs 'tools'.", "tool_choice", "invalid_value")
        if isinstance(self.tool_choice, ChosenTool) and self.tool_choice.function.name not in names:
            message = f"Invalid value for 'tool_choice': no tool is named '{self.tool_choice.function.name}'."
            raise invalid(message, "tool_choice", "invalid_value")
        return self

    @field_validator("messages", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        """Before each of them is looked at."""
        if isinstance(value, list):
            if len(value) > _MOST_MESSAGES:
                raise invalid(
                    f"Invalid value for 'messages': {len(value)} are too many, at most {_MOST_MESSAGES}.", "messages", "invalid_value"
                )
            contents = (message.get("content") for message in value if isinstance(message, dict))
            if (parts := sum(len(content) for content in contents if isinstance(content, list))) > _MOST_PARTS:
                raise invalid(
                    f"Invalid value for 'messages': {parts} content parts are too many, at most {_MOST_PARTS}.", "messages", "invalid_value"
                )
        return value

    @property
    def characters(self) -> int:
        """Of all that the messages say."""
        return sum(len(part) for message in self.messages for part in message.texts)

    @model_validator(mode="after")
    def _asks_for_logprobs_when_it_wants_the_top(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")
        return self


class CompletionRequest(_Request):
    """POST /v1/completions. A prompt is a text or token ids, or a list of either."""

    prompt: Annotated[Any, Field()]
    max_tokens: Whole | None = Field(default=None, ge=WHAT_IS_LEFT)
    logprobs: Logprobs = None
    echo: bool | None = None

    @field_validator("prompt")
    @classmethod
    def _is_text_or_ids(cls, value: Any) -> Any:
        return texts_or_ids(value, "prompt", _MOST_PROMPTS)

    @property
    def most_tokens(self) -> int | None:
        """Of the answer; None where it is not said, or is what the context leaves."""
        return None if self.max_tokens == WHAT_IS_LEFT else self.max_tokens

    @property
    def prompts(self) -> tuple[str | list[int], ...]:
        """The prompts, each a text or token ids."""
        return one_by_one(self.prompt)


class TokenizeRequest(BaseModel):
    """POST /tokenize: a text, or messages as for a chat."""

    model_config = ConfigDict(frozen=True, strict=True)

    model: Annotated[str, Field(max_length=512)] | None = None
    prompt: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(frozen=True, strict=True)

    model: Annotated[str, Field(max_length=512)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=_MOST_TOKENS)]


_R = TypeVar("_R", bound=_Request)
_Plain = TypeVar("_Plain", bound=BaseModel)


def parse_plain(kind: type[_Plain], content: Mapping[str, Any]) -> _Plain:
    """Of a body that is read already. ApiError 400 as for `parse`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from error


def parse(kind: type[_R], body: bytes, *, refuse_unknown: bool = False) -> _R:
    """Read a request body. Fields that nobody knows are refused, or left out and named in `ignored`.

    Raises:
        ApiError: 400, saying what is wrong with which parameter.
    """
    content = read_json(body)
    grammar = structured(content)
    content = {name: value for name, value in content.items() if name not in STRUCTURED}
    unknown: tuple[str, ...] = ()
    if not refuse_unknown:
        unknown = tuple(name for name in content if name not in kind.model_fields and name not in _KNOWN)
        content = {name: value for name, value in content.items() if name not in unknown} if unknown else content
    try:
        request = kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from error
    request._ignored = unknown
    request._grammar = grammar
    return request


_KNOWN = WITHOUT_EFFECT | ONLY_NEUTRAL.keys() | {"tools", "tool_choice", "best_of"}


def _refusal(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False)
    problem = min(problems, key=_rank)
    # Where several forms are allowed, each form's error is listed, with the form's name in its path: the path up to it counts.
    path = [str(part) for part in problem["loc"] if isinstance(part, int) or _names_a_field(str(part))]
    param = ".".join(path) or None
    match problem["type"]:
        case "missing":
            return invalid(f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
        case "extra_forbidden":
            return invalid(f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
        case kind if kind.endswith("_type"):
            given = type(problem["input"]).__name__
            return invalid(f"Invalid type for '{param}': {problem['msg']}, but got {given} instead.", param, "invalid_type")
        case _:
            return invalid(f"Invalid value for '{param}': {problem['msg']}.", param, "invalid_value")


def _rank(problem: Any) -> tuple[int, int]:
    """The lowest is the error to report: where several forms were tried, the one that came closest."""
    if problem["type"] == "literal_error" and problem["loc"][-1] == "type":
        return 0, 0
    return (1 if problem["type"] in ("missing", "extra_forbidden") else 2), -len(problem["loc"])


def _names_a_field(part: str) -> bool:
    return part.isidentifier() and part not in ("str", "int")
