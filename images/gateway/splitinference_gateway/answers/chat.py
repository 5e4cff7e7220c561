"""POST /v1/chat/completions: pieces to OpenAI's chat objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitinference_gateway.answers.generation import STOP, Piece, Sampled
from splitinference_gateway.answers.replies import DONE, Head, usage
from splitinference_gateway.client_requests.tools import Form, ToolText
from splitinference_gateway.errors import ApiError
from splitinference_gateway.tokens.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class ChatFormat:
    """OpenAI's chat completion objects. `logprobs`: the client asked for them. `tools`: how calls stand in the text, if they may.

    `forced`: the client chose the function, so that a call is an ordinary end.
    """

    head: Head
    tokenizer: ModelTokenizer
    prompt_tokens: int
    number: int
    logprobs: bool
    tools: Form | None = None
    forced: bool = False
    done: bytes = DONE
    _texts: dict[int, ToolText] = field(default_factory=dict)

    def opening(self) -> Sequence[Mapping[str, object]]:
        """The first event of each choice of a stream."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return [self._event({"index": i, "delta": delta, "logprobs": None, "finish_reason": None}) for i in range(self.number)]

    def event(self, piece: Piece) -> Sequence[Mapping[str, object]]:
        """The events of one piece."""
        events = []
        text, calls, finish = self._read(piece)
        logprobs = self._logprobs(piece.tokens) if self.logprobs and piece.tokens else None
        if text or logprobs or (piece.tokens and self.tools is None):
            events.append({"index": piece.index, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": None})
        if calls:
            events.append({"index": piece.index, "delta": {"tool_calls": calls}, "logprobs": None, "finish_reason": None})
        if finish:
            events.append({"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": finish})
        return [self._event(event) for event in events]

    def _read(self, piece: Piece) -> tuple[str, list[dict[str, object]], str | None]:
        """The text that is no call, whole calls, and how it ended."""
        if self.tools is None:
            return piece.text, [], piece.finish
        reader = self._texts.setdefault(piece.index, ToolText(self.tools))
        first = reader.calls
        text, calls = reader.add(piece.text)
        if piece.finish:
            more, last = reader.flush()
            text, calls = text + more, calls + last
        finish = "tool_calls" if piece.finish == STOP and reader.calls and not self.forced else piece.finish
        return text, [{"index": first + number, **call.as_json()} for number, call in enumerate(calls)], finish

    def usage_event(self, generated: int) -> Mapping[str, object]:
        """The last event, when the client wants the usage."""
        return {**self.head.fields("chat.completion.chunk"), "choices": [], "usage": usage(self.prompt_tokens, generated)}

    def failed(self, error: ApiError) -> Mapping[str, object]:
        """The event of an error in the middle of a stream."""
        return error.body

    def whole(self, pieces: Sequence[Piece], generated: int) -> Mapping[str, object]:
        """The body of an answer in one piece."""
        made = []
        for index in range(self.number):
            own = [piece for piece in pieces if piece.index == index]
            tokens = [token for piece in own for token in piece.tokens]
            read = [self._read(piece) for piece in own]
            text, calls = "".join(text for text, _, _ in read), [call for _, calls, _ in read for call in calls]
            message: dict[str, object] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
            if calls:
                message["tool_calls"] = [{name: value for name, value in call.items() if name != "index"} for call in calls]
            logprobs = self._logprobs(tokens) if self.logprobs else None
            made.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": read[-1][2]})
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
