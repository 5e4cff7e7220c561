"""POST /v1/chat/completions: pieces to OpenAI's chat objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitinference_gateway.generation import Piece, Sampled
from splitinference_gateway.replies import Head, usage
from splitinference_gateway.tokenizer import ModelTokenizer


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
