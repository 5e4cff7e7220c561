"""Traffic through the OpenAI endpoint while something changes, steady or in bursts: what was sent, failed, and how long a client waited."""

import threading
import time
from dataclasses import dataclass, field

import openai

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours of the rainbow.",
    "Why is the sky blue?",
    "Write one sentence about the sea.",
)


CLIENT_SECONDS = 600.0
"""A client waits so long for what comes next. How long it did wait is a figure; that a slow machine was slow is no lost request."""
_AFTER_ERROR_SECONDS = 5.0
"""And when something went wrong, no longer: a request that hangs may be why, and the error is to be seen soon."""


@dataclass(frozen=True)
class Request:
    """One streamed completion. Times are seconds of a monotonic clock; `tokens_at` has one entry for each chunk with text."""

    question: str
    started: float
    tokens_at: tuple[float, ...]
    text: str
    error: str | None = None

    @property
    def gaps(self) -> tuple[float, ...]:
        """Seconds between one token and the next, without the wait for the first."""
        return tuple(b - a for a, b in zip(self.tokens_at, self.tokens_at[1:], strict=False))


@dataclass(frozen=True)
class Report:
    """What clients saw."""

    requests: tuple[Request, ...]

    @property
    def failed(self) -> tuple[Request, ...]:
        return tuple(r for r in self.requests if r.error is not None)

    @property
    def tokens(self) -> int:
        return sum(len(r.tokens_at) for r in self.requests)

    @property
    def longest_gap(self) -> float:
        """The longest pause between two tokens of one answer, in seconds; 0 when there were none."""
        return max((g for r in self.requests for g in r.gaps), default=0.0)

    @property
    def longest_wait(self) -> float:
        """The longest that any client waited for its next token, the first one included, in seconds; 0 when there were none."""
        firsts = (r.tokens_at[0] - r.started for r in self.requests if r.tokens_at)
        return max((self.longest_gap, *firsts))

    def gap_percentile(self, share: float, start: float = 0.0, end: float = float("inf")) -> float:
        """The gap that `share` (0..1) of all gaps do not exceed, in seconds; of those that were open at some moment of [start, end)."""
        open_then = (
            later - token
            for request in self.requests
            for token, later in zip(request.tokens_at, request.tokens_at[1:], strict=False)
            if token < end and later >= start
        )
        gaps = sorted(open_then)
        return gaps[min(len(gaps) - 1, int(share * len(gaps)))] if gaps else 0.0

    def within(self, start: float, end: float) -> "Report":
        """The requests that were under way at some moment of [start, end)."""
        return Report(tuple(r for r in self.requests if r.started < end and (r.tokens_at[-1] if r.tokens_at else r.started) >= start))


@dataclass(frozen=True)
class Load:
    """How clients ask: so many at once, each one question after the other; with `idle_seconds` all are silent for so long after each
    `busy_seconds`."""

    name: str
    clients: int = 2
    busy_seconds: float = 0.0
    idle_seconds: float = 0.0

    def __str__(self) -> str:
        return self.name

    def silence(self, seconds: float) -> float:
        """How long clients are to wait before the next question, `seconds` after they began."""
        period = self.busy_seconds + self.idle_seconds
        into = seconds % period if self.idle_seconds else 0.0
        return period - into if self.idle_seconds and into >= self.busy_seconds else 0.0


STEADY = Load("steady", clients=2)
BURSTY = Load("bursty", clients=4, busy_seconds=6.0, idle_seconds=8.0)


@dataclass
class Traffic:
    """Clients that ask until stopped. A context manager."""

    base_url: str
    model: str
    load: Load = STEADY
    max_tokens: int = 48
    api_key: str = "none"
    _begun: float = field(default_factory=time.monotonic)
    _stop: threading.Event = field(default_factory=threading.Event)
    _done: list[Request] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Traffic":
        for number in range(self.load.clients):
            thread = threading.Thread(target=self._ask_on, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.stop(CLIENT_SECONDS if error is None else _AFTER_ERROR_SECONDS)

    def stop(self, seconds: float = CLIENT_SECONDS) -> Report:
        """Lets every client finish its answer, for so many seconds at most, and reports."""
        self._stop.set()
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, end - time.monotonic()))
        return self.report()

    def report(self) -> Report:
        """What has been answered so far."""
        return Report(tuple(self._done))

    def _ask_on(self, number: int) -> None:
        with openai.OpenAI(base_url=self.base_url, api_key=self.api_key, max_retries=0, timeout=CLIENT_SECONDS) as client:
            turn = number
            while not self._stop.wait(self.load.silence(time.monotonic() - self._begun)):
                self._done.append(ask(client, self.model, QUESTIONS[turn % len(QUESTIONS)], self.max_tokens))
                turn += 1


def ask(client: openai.OpenAI, model: str, question: str, max_tokens: int) -> Request:
    """One streamed chat completion, greedy; an error of any kind is kept as text, so that it is counted and not lost."""
    started, times, text, finished = time.monotonic(), [], [], False
    try:
        stream = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": question}], max_tokens=max_tokens, temperature=0, stream=True
        )
        for chunk in stream:
            for choice in chunk.choices:
                if choice.delta.content:
                    times.append(time.monotonic())
                    text.append(choice.delta.content)
                finished = finished or choice.finish_reason is not None
    except Exception as error:  # noqa: BLE001 - whatever a client can see is a failed request, and is counted
        return Request(question, started, tuple(times), "".join(text), f"{type(error).__name__}: {error}")
    return Request(question, started, tuple(times), "".join(text), None if finished else "the stream ended without a finish reason")
