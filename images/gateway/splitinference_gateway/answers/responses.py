"""POST /v1/responses: pieces to OpenAI's response objects and the events of their streams. Nothing is stored."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitinference_gateway.answers.generation import LENGTH, Piece, Sampled
from splitinference_gateway.answers.replies import Head
from splitinference_gateway.client_requests.tools import Call, Form, ToolText
from splitinference_gateway.errors import ApiError
from splitinference_gateway.tokens.tokenizer import ModelTokenizer

_Event = Mapping[str, object]


def _named(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


@dataclass
class _Answer:
    """What has come so far. The text's item begins with its first piece."""

    message: str = ""  # its id
    text: str = ""
    logprobs: list[dict[str, object]] = field(default_factory=list)
    items: list[dict[str, Any]] = field(default_factory=list)
    finish: str | None = None


@dataclass(frozen=True)
class ResponsesFormat:
    """OpenAI's responses. `repeated`: what the answer says again of the request; `logprobs`: the client asked for them."""

    head: Head
    tokenizer: ModelTokenizer
    prompt_tokens: int
    repeated: Mapping[str, Any]
    logprobs: bool
    tools: Form | None = None
    done: bytes = b""  # the last event says that it is the last
    _answer: _Answer = field(default_factory=_Answer)
    _sent: list[int] = field(default_factory=lambda: [0])
    _reader: list[ToolText] = field(default_factory=list)

    def opening(self) -> Sequence[_Event]:
        """The response, empty."""
        whole = self._response("in_progress", None)
        return [self._event("response.created", response=whole), self._event("response.in_progress", response=whole)]

    def event(self, piece: Piece) -> Sequence[_Event]:
        """The events of one piece; at the end those that close items."""
        text, calls = self._read(piece)
        logprobs = self._logprobs(piece.tokens)
        events: list[_Event] = []
        if text or logprobs:
            events += self._begun()
            self._answer.text += text
            self._answer.logprobs += logprobs
            events.append(self._event("response.output_text.delta", **self._place, delta=text, logprobs=logprobs))
        if calls or piece.finish:
            if piece.finish and not calls and not self._answer.items:
                events += self._begun()  # an answer without any text is one still
            events += self._closed("incomplete" if piece.finish == LENGTH else "completed")
        for call in calls:
            events += self._called(call)
        self._answer.finish = piece.finish
        return events

    def usage_event(self, generated: int) -> _Event:
        """The last event: the whole response with its usage."""
        whole = self._response(self._status, generated)
        return self._event(f"response.{self._status}", response=whole)

    def failed(self, error: ApiError) -> _Event:
        """The event of an error in the middle of a stream."""
        return self._event("error", code=error.code, message=error.message, param=error.param)

    def whole(self, pieces: Sequence[Piece], generated: int) -> Mapping[str, object]:
        """The body of an answer in one piece."""
        for piece in pieces:
            self.event(piece)
        return self._response(self._status, generated)

    def _read(self, piece: Piece) -> tuple[str, list[Call]]:
        if self.tools is None:
            return piece.text, []
        if not self._reader:
            self._reader.append(ToolText(self.tools))
        text, calls = self._reader[0].add(piece.text)
        if piece.finish:
            more, last = self._reader[0].flush()
            text, calls = text + more, calls + last
        return text, calls

    @property
    def _status(self) -> str:
        return "incomplete" if self._answer.finish == LENGTH else "completed"

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": self._answer.message, "output_index": len(self._answer.items), "content_index": 0}

    def _begun(self) -> list[_Event]:
        """The message's item, where it is not there yet."""
        if self._answer.message:
            return []
        self._answer.message = _named("msg")
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item = self._item("in_progress", [])
        return [
            self._event("response.output_item.added", output_index=len(self._answer.items), item=item),
            self._event("response.content_part.added", **self._place, part=part),
        ]

    def _closed(self, status: str) -> list[_Event]:
        """The message is whole."""
        answer = self._answer
        if not answer.message:
            return []
        part = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": list(answer.logprobs)}
        item, place = self._item(status, [part]), self._place
        answer.items.append(item)
        answer.message, answer.text, answer.logprobs = "", "", []
        return [
            self._event("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"]),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=place["output_index"], item=item),
        ]

    def _item(self, status: str, content: Sequence[Mapping[str, object]]) -> dict[str, Any]:
        return {"id": self._answer.message, "type": "message", "status": status, "role": "assistant", "content": list(content)}

    def _called(self, call: Call) -> list[_Event]:
        index, told = len(self._answer.items), call.as_json()
        item = {"id": _named("fc"), "type": "function_call", "call_id": told["id"], "name": call.name, "arguments": call.arguments}
        self._answer.items.append({**item, "status": "completed"})
        place = {"item_id": item["id"], "output_index": index}
        added = {**item, "arguments": "", "status": "in_progress"}
        return [
            self._event("response.output_item.added", output_index=index, item=added),
            self._event("response.function_call_arguments.delta", **place, delta=call.arguments),
            self._event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments),
            self._event("response.output_item.done", output_index=index, item=self._answer.items[-1]),
        ]

    def _event(self, kind: str, **fields: object) -> _Event:
        number = self._sent[0]
        self._sent[0] += 1
        return {"type": kind, "sequence_number": number, **fields}

    def _response(self, status: str, generated: int | None) -> dict[str, object]:
        used = None
        if generated is not None:
            used = {
                "input_tokens": self.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": generated,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.prompt_tokens + generated,
            }
        return {
            "id": f"resp_{self.head.number}",
            "object": "response",
            "created_at": self.head.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self.head.model,
            "output": list(self._answer.items),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "truncation": "disabled",
            "background": False,
            "usage": used,
            **self.repeated,
        }

    def _logprobs(self, tokens: Sequence[Sampled]) -> list[dict[str, object]]:
        if not self.logprobs:
            return []
        return [{**self._token(t.token, t.logprob), "top_logprobs": [self._token(i, p) for i, p in t.top]} for t in tokens]

    def _token(self, token: int, logprob: float | None) -> dict[str, object]:
        raw = self.tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}
