"""What clients may ask for: OpenAI's request bodies, checked, and refused in OpenAI's words where they are wrong."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from splitinference_gateway.bodies import read_json
from splitinference_gateway.errors import ApiError, invalid

_INT64_MAX = 2**63 - 1
# Known to OpenAI, without effect on the text here; accepted so that clients which send them always work.
_WITHOUT_EFFECT = frozenset(
    {
        "user", "store", "metadata", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "prediction", "reasoning_effort", "verbosity", "extra_body",
    }
)  # fmt: skip
# Known to OpenAI, not done here: only the value that asks for nothing is accepted.
_ONLY_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
}

_MOST_MESSAGES = 4096
_MOST_PARTS = 4096  # of all messages together
_MOST_PROMPTS = 2048

Stop = Annotated[str, Field(min_length=1, max_length=512)]


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(frozen=True, strict=True)

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    neutral: ClassVar[Mapping[str, tuple[object, ...]]] = _ONLY_NEUTRAL

    model: Annotated[str, Field(max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-_INT64_MAX - 1, le=_INT64_MAX)

    @model_validator(mode="before")
    @classmethod
    def _leaves_out_what_has_no_effect(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kept = {}
        for name, given in value.items():
            if name in _WITHOUT_EFFECT:
                continue
            if name in cls.neutral and name not in cls.model_fields:
                if given is not None and given not in cls.neutral[name]:
                    raise invalid(f"Unsupported parameter: '{name}' is not supported with this model.", name, "unsupported_parameter")
                continue
            kept[name] = given
        return kept

    @model_validator(mode="after")
    def _streams_when_it_has_stream_options(self) -> Self:
        if self.stream_options is not None and not self.stream:
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
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def with_usage(self) -> bool:
        """A stream is to end with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage


class TextPart(BaseModel):
    """One piece of a message; text is all that this model reads."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The content's pieces."""
        return (self.content,) if isinstance(self.content, str) else tuple(part.text for part in self.content or ())

    @property
    def for_template(self) -> dict[str, object]:
        """As chat templates expect it: content is one text, and the developer's word is the system's."""
        role = "system" if self.role == "developer" else self.role
        return {**(self.model_extra or {}), "role": role, "content": "".join(self.texts)}


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

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
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.", "top_logprobs")
        return self


class CompletionRequest(_Request):
    """POST /v1/completions. A prompt is a text or token ids, or a list of either."""

    prompt: Annotated[Any, Field()]
    logprobs: int | None = Field(default=None, ge=0, le=5)

    @field_validator("prompt")
    @classmethod
    def _is_text_or_ids(cls, value: Any) -> Any:
        """By hand: trying each form of each entry would list an error for each."""
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            raise _no_prompt(f"a text, token ids, or a list of either, but got {type(value).__name__} instead")
        kinds = {type(entry) for entry in value}
        if kinds <= {int}:
            return value
        if len(value) > _MOST_PROMPTS:
            raise invalid(
                f"Invalid value for 'prompt': {len(value)} prompts are too many, at most {_MOST_PROMPTS}.", "prompt", "invalid_value"
            )
        if kinds <= {str}:
            return value
        if kinds <= {list}:
            if any(type(token) is not int for entry in value for token in entry):
                raise _no_prompt("whole numbers as token ids")
            return value
        raise _no_prompt("a text, token ids, or a list of either, all of one kind")

    @property
    def prompts(self) -> tuple[str | list[int], ...]:
        """The prompts, each a text or token ids."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if not self.prompt:
            return ()
        return (self.prompt,) if isinstance(self.prompt[0], int) else tuple(self.prompt)


def _no_prompt(expected: str) -> ApiError:
    return invalid(f"Invalid type for 'prompt': expected {expected}.", "prompt", "invalid_type")


_R = TypeVar("_R", bound=_Request)


def parse(kind: type[_R], body: bytes) -> _R:
    """Read a request body.

    Raises:
        ApiError: 400, saying what is wrong with which parameter.
    """
    content = read_json(body)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise _refusal(error) from error


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
