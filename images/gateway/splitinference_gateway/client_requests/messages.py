"""Messages of a chat, and the tools that it offers: checked, and as chat templates expect them."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from splitinference_gateway.client_requests.fields import IfNotEmpty
from splitinference_gateway.errors import invalid


class TextPart(BaseModel):
    """One piece of a message; text is all that this model reads."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["text"]
    text: str


def _as_text_parts(value: Any) -> Any:
    """Parts that are texts under other names: of responses, of refusals, and bare ones."""
    if not isinstance(value, list):
        return value
    return [_as_text_part(part) for part in value]


def _as_text_part(part: Any) -> Any:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    match part:
        case {"type": "input_text" | "output_text", "text": str() as text} | {"type": "refusal", "refusal": str() as text}:
            return {"type": "text", "text": text}
    return part


class Message(BaseModel):
    """One chat message."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | list[TextPart] | None, BeforeValidator(_as_text_parts)] = None

    @property
    def texts(self) -> tuple[str, ...]:
        """The content's pieces."""
        return (self.content,) if isinstance(self.content, str) else tuple(part.text for part in self.content or ())

    @property
    def for_template(self) -> dict[str, object]:
        """As chat templates expect it: content is one text, and the developer's word is the system's.

        What is null or empty is left out, for templates ask whether a name is there. ApiError 400 for calls whose arguments are no JSON.
        """
        role = "system" if self.role == "developer" else self.role
        more = {name: value for name, value in (self.model_extra or {}).items() if value not in (None, [])}
        if "tool_calls" in more:
            more["tool_calls"] = _calls(more["tool_calls"])
        return {**more, "role": role, "content": "".join(self.texts)}


def _calls(calls: Any) -> Any:
    """Arguments come as a text that holds JSON; templates write them as JSON themselves."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise invalid("Invalid type for 'messages.tool_calls': expected a list of objects.", "messages", "invalid_type")
    made = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError) as error:
                raise invalid("Invalid value for 'messages.tool_calls': arguments are not JSON.", "messages", "invalid_value") from error
            made.append({**call, "function": {**function, "arguments": arguments}})
        else:
            made.append(call)
    return made


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, IfNotEmpty] = None
    strict: bool | None = None

    @property
    def for_template(self) -> dict[str, object]:
        """Without what is not given."""
        return self.model_dump(exclude_none=True, exclude={"strict"})


class Tool(BaseModel):
    """One of `tools`."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["function"]
    function: Function


class _Named(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    name: Annotated[str, Field(max_length=64)]


class ChosenTool(BaseModel):
    """`tool_choice` with a name."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: Literal["function"]
    function: _Named
