"""The stateless part of OpenAI's Responses API: a body becomes that of a chat, and what the answer repeats of it is kept."""

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from splitinference_gateway.client_requests.fields import Whole
from splitinference_gateway.client_requests.requests import ChatRequest, parse_plain
from splitinference_gateway.client_requests.structured import STRUCTURED
from splitinference_gateway.errors import ApiError, invalid, unsupported

_MOST_ITEMS = 4096
_ALSO_OF_CHATS = frozenset(
    {
        "model", "stream", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "seed", "stop", "stop_token_ids", "ignore_eos", "min_tokens",
        "parallel_tool_calls", "chat_template_kwargs", "user", "metadata", "service_tier", "prompt_cache_key",
        "prompt_cache_retention", "safety_identifier", "request_id", "priority", "cache_salt",
    }
)  # fmt: skip
_NAMES: Mapping[str, str] = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""A chat's names of fields, and those of a response."""
_KEPT_SENTENCES: Mapping[str, str] = {
    "previous_response_id": "No responses are stored here, so none can be continued: send all earlier items in 'input'.",
    "conversation": "No conversations are stored here: send all earlier items in 'input'.",
    "prompt": "No prompt templates are stored here: send the text in 'instructions' and 'input'.",
}
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "background": (None, False),
    "truncation": (None, "disabled"),
    "max_tool_calls": (None,),
    "include_obfuscation": (None, False),
    "context_management": (None, []),
}
_LOGPROBS = "message.output_text.logprobs"
_INCLUDES = frozenset({_LOGPROBS, "reasoning.encrypted_content"})


class _Format(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None
    description: str | None = None


class _Text(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    format: _Format | None = None
    verbosity: str | None = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    include_obfuscation: bool | None = None


class ResponseRequest(BaseModel):
    """POST /v1/responses, as far as it is not a chat's."""

    model_config = ConfigDict(frozen=True, strict=True)

    model: Annotated[str, Field(max_length=512)]
    input: Annotated[Any, Field()]
    instructions: str | None = None
    max_output_tokens: Whole | None = Field(default=None, ge=1)
    store: bool | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    text: _Text | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    include: Annotated[list[str], Field(max_length=16)] | None = None
    top_logprobs: Whole | None = Field(default=None, ge=0, le=20)
    reasoning: dict[str, Any] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: Annotated[dict[str, Annotated[str, Field(max_length=512)]], Field(max_length=16)] | None = None

    @field_validator("input")
    @classmethod
    def _is_text_or_items(cls, value: Any) -> Any:
        """By hand, so that one sentence says what is wrong."""
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise invalid("Invalid type for 'input': expected a text or a list of items.", "input", "invalid_type")
        if not 1 <= len(value) <= _MOST_ITEMS:
            message = f"Invalid value for 'input': {len(value)} items, and 1 to {_MOST_ITEMS} are accepted."
            raise invalid(message, "input", "invalid_value")
        return value


def strays(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields of chats alone: a response does not know them."""
    mine = ResponseRequest.model_fields.keys() | _ALSO_OF_CHATS
    return tuple(name for name in content if name not in mine and (name in ChatRequest.model_fields or name in STRUCTURED))


def as_chat(content: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of a chat that asks for the same, and what the answer repeats.

    Raises:
        ApiError: 400, it is wrong, or asks for what a gateway that keeps nothing cannot do.
    """
    for name, sentence in _KEPT_SENTENCES.items():
        if content.get(name) is not None:
            raise invalid(f"Unsupported parameter: '{name}'. {sentence}", name, "unsupported_parameter")
    for name, neutral in _NEUTRAL.items():
        if name in content and content[name] not in neutral:
            raise unsupported(name)
    asked = parse_plain(ResponseRequest, content)
    if unknown := [name for name in asked.include or () if name not in _INCLUDES]:
        raise unsupported(f"include.{unknown[0]:.60}")
    mine = ResponseRequest.model_fields.keys() | _NEUTRAL.keys() | _KEPT_SENTENCES.keys() | set(strays(content))
    chat = {name: value for name, value in content.items() if name in _ALSO_OF_CHATS or name not in mine}
    chat["messages"] = _messages(asked)
    if asked.max_output_tokens is not None:
        chat["max_completion_tokens"] = asked.max_output_tokens
    if asked.tools:
        chat["tools"] = [_tool(tool) for tool in asked.tools]
    if asked.tool_choice is not None:
        chat["tool_choice"] = _choice(asked.tool_choice)
    if asked.text is not None and asked.text.format is not None:
        chat["response_format"] = _response_format(asked.text.format)
    if asked.top_logprobs or _LOGPROBS in (asked.include or ()):
        chat |= {"logprobs": True, "top_logprobs": asked.top_logprobs or 0}
    return chat, _repeated(asked, content)


def in_its_own_names(error: ApiError) -> ApiError:
    """A chat's error about the same field of a response."""
    first, dot, rest = (error.param or "").partition(".")
    if first not in _NAMES:
        return error
    message = error.message.replace(f"'{first}", f"'{_NAMES[first]}")
    return ApiError(
        error.status, message, kind=error.kind, param=_NAMES[first] + dot + rest, code=error.code, retry_after=error.retry_after
    )


def _repeated(asked: ResponseRequest, content: Mapping[str, Any]) -> dict[str, Any]:
    written = {"type": "text"} if asked.text is None or asked.text.format is None else content["text"]["format"]
    return {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": content.get("parallel_tool_calls") is not False,
        "temperature": content.get("temperature"),
        "text": {"format": written},
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": content.get("top_p"),
        "user": asked.user,
    }


def _messages(asked: ResponseRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = [{"role": "system", "content": asked.instructions}] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*messages, {"role": "user", "content": asked.input}]
    for number, item in enumerate(asked.input):
        kind = item.get("type", "message")
        read = _ITEMS.get(kind) if isinstance(kind, str) else None
        if read is None:
            known = ", ".join(_ITEMS)
            raise invalid(
                f"Invalid value for 'input.{number}.type': {kind!r:.60} is none of {known}.", f"input.{number}.type", "invalid_value"
            )
        read(item, f"input.{number}", messages)
    if not messages:
        raise invalid("Invalid value for 'input': it says nothing.", "input", "invalid_value")
    return messages


def _message(item: Mapping[str, Any], path: str, messages: list[dict[str, Any]]) -> None:
    messages.append({"role": item.get("role"), "content": _parts(item.get("content"), f"{path}.content")})


def _call(item: Mapping[str, Any], path: str, messages: list[dict[str, Any]]) -> None:
    """Calls that follow each other, or a text of the assistant, are of one turn."""
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise invalid(f"Missing required parameter: '{path}.{name}'.", f"{path}.{name}", "missing_required_parameter")
    call = {"id": item["call_id"], "type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _output(item: Mapping[str, Any], path: str, messages: list[dict[str, Any]]) -> None:
    if not isinstance(item.get("call_id"), str):
        raise invalid(f"Missing required parameter: '{path}.call_id'.", f"{path}.call_id", "missing_required_parameter")
    messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": _parts(item.get("output"), f"{path}.output")})


def _nothing(item: Mapping[str, Any], path: str, messages: list[dict[str, Any]]) -> None:
    """Reasoning of an earlier answer: the model's template leaves it out."""


_ITEMS: Mapping[str, Callable[[Mapping[str, Any], str, list[dict[str, Any]]], None]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _output,
    "reasoning": _nothing,
}


def _parts(content: Any, path: str) -> Any:
    """A chat's content. What is neither text nor parts is left to the chat to refuse."""
    if not isinstance(content, list):
        return content
    parts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal" and isinstance(part.get("refusal"), str):
            parts.append({"type": "text", "text": part["refusal"]})
        elif kind in ("input_text", "output_text", "text") and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            message = f"Invalid value for '{path}.{number}': expected a part of type 'input_text' or 'output_text' with a text."
            raise invalid(message, f"{path}.{number}", "invalid_value")
    return parts


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise invalid(f"Unsupported tool: {tool.get('type')!r:.60}; only functions can be called here.", "tools", "unsupported_parameter")
    function = {name: value for name, value in tool.items() if name in ("name", "description", "parameters", "strict")}
    return {"type": "function", "function": function}


def _choice(choice: Any) -> Any:
    if isinstance(choice, str):
        return choice
    if choice.get("type") != "function":
        raise invalid("Invalid value for 'tool_choice': expected 'none', 'auto', 'required' or a function.", "tool_choice", "invalid_value")
    return {"type": "function", "function": {"name": choice.get("name")}}


def _response_format(form: _Format) -> dict[str, Any]:
    if form.type != "json_schema":
        return {"type": form.type}
    return {"type": "json_schema", "json_schema": {"name": form.name, "schema": form.schema_, "strict": form.strict}}


def as_body(chat: Mapping[str, Any]) -> bytes:
    """For the reader of chats, which checks all that is not checked here."""
    return json.dumps(chat).encode()
