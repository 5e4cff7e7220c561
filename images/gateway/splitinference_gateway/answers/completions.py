"""POST /v1/completions: pieces to OpenAI's text completion objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitinference_gateway.answers.generation import Piece, Sampled
from splitinference_gateway.answers.replies import DONE, Head, usage
from splitinference_gateway.errors import ApiError
from splitinference_gateway.tokens.tokenizer import ModelTokenizer


@dataclass(frozen=True)
class CompletionFormat:
    """OpenAI's text completion objects. `logprobs` is None when the client did not ask for them."""

    head: Head
    tokenizer: ModelTokenizer
    prompt_tokens: int
    number: int
    logprobs: int | None
    done: bytes = DONE

    def opening(self) -> Sequence[Mapping[str, object]]:
        """A text stream has no first event of its own."""
        return []

    def event(self, piece: Piece) -> Sequence[Mapping[str, object]]:
        """The event of one piece."""
        choice = {
            "text": piece.text,
            "index": piece.index,
            "logprobs": self._logprobs(piece.tokens),
            "finish_reason": piece.finish,
        }
        event: dict[str, object] = {**self.head.fields("text_completion"), "choices": [choice]}
        if self.head.usage_follows:
            event["usage"] = None
        return [event]

    def usage_event(self, generated: int) -> Mapping[str, object]:
        """The last event, when the client wants the usage."""
        return {**self.head.fields("text_completion"), "choices": [], "usage": usage(self.prompt_tokens, generated)}

    def failed(self, error: ApiError) -> Mapping[str, object]:
        """The event of an error in the middle of a stream."""
        return error.body

    def whole(self, pieces: Sequence[Piece], generated: int) -> Mapping[str, object]:
        """The body of an answer in one piece."""
        made = []
        for index in range(self.number):
            own = [piece for piece in pieces if piece.index == index]
            made.append(
                {
                    "text": "".join(piece.text for piece in own),
                    "index": index,
                    "logprobs": self._logprobs([token for piece in own for token in piece.tokens]),
                    "finish_reason": own[-1].finish,
                }
            )
        return {**self.head.fields("text_completion"), "choices": made, "usage": usage(self.prompt_tokens, generated)}

    def _logprobs(self, tokens: Sequence[Sampled]) -> Mapping[str, object] | None:
        if self.logprobs is None:
            return None
        return {
            "tokens": [self._text(t.token) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [None if t.logprob is None else self._top(t) for t in tokens] if self.logprobs else None,
            "text_offset": [t.offset for t in tokens],
        }

    def _top(self, token: Sampled) -> Mapping[str, float]:
        return {self._text(i): p for i, p in token.top}

    def _text(self, token: int) -> str:
        raw = self.tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
