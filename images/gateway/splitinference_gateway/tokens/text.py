"""From token ids to text, piece by piece: characters that span tokens, and stop strings that span pieces."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

_CONTEXT_TOKENS = 6  # enough for decoders that look at their neighbours, for instance at a leading space
_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER_TOKENS = 8  # a replacement character that stays for longer is what the model wrote


class Detokenizer:
    """Incremental decoding. Pieces joined are the text that the whole sequence adds after its prompt."""

    def __init__(self, decode: Decode, prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(prompt[-_CONTEXT_TOKENS:])
        self._shown = len(self._ids)  # ids before this one are in the text already given out
        self._start = 0  # decoding starts here, a few ids before `_shown`

    def add(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._ids.append(token)
        return self._take(final=False)

    def flush(self) -> str:
        """What is left at the end: incomplete characters as they are."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        if self._shown == len(self._ids):
            return ""
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        waited = len(self._ids) - self._shown >= _LONGEST_CHARACTER_TOKENS
        if not final and not waited and (after.endswith(_REPLACEMENT) or len(after) <= len(before)):
            return ""
        piece = after[len(before) :]
        if piece:
            self._start = self._shown  # where a piece ends a character ends: a safe place to start decoding
        self._shown = len(self._ids)
        return piece


class StopStrings:
    """Looks for stop strings in text that comes in pieces, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def add(self, piece: str) -> tuple[str, bool]:
        """Text that is safe to give out, and whether a stop string was reached (it and what follows is dropped)."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        hold = max((overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """What was held back and did not become a stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[len(text) - n :])), 0)
