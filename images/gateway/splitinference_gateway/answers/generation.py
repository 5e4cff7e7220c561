"""One request's choices, from prompt tokens to pieces of text: admission, the chain, decoding, stop strings, the end."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from splitinference_gateway import tracing
from splitinference_gateway.access.admission import Admission, Ticket
from splitinference_gateway.errors import ApiError
from splitinference_gateway.pipeline.chain import Chain
from splitinference_gateway.pipeline.step_answers import Answer, Scored
from splitinference_gateway.prompt_reading.reading import Reading, seed_of
from splitinference_gateway.tokens.guides import Guides
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_gateway.tokens.text import Detokenizer, StopStrings
from splitinference_gateway.tokens.tokenizer import ModelTokenizer

STOP = "stop"
LENGTH = "length"
_MOST_UNREAD = 16_384  # pieces of one answer: minutes behind


@dataclass(frozen=True)
class Choice:
    """One answer to generate. `continues`: its text goes on from the prompt's (a leading space counts).

    `ends` are tokens that end it; `echo` is a text to begin with. `score` asks how likely the prompt's tokens are; they begin at `offsets`.
    """

    index: int
    prompt: Sequence[int]
    sampling: Sampling
    most_tokens: int
    stops: tuple[str, ...] = ()
    ends: frozenset[int] = frozenset()
    continues: bool = False
    echo: str = ""
    offsets: tuple[int, ...] = ()
    score: bool = False
    adapter: str = ""  # digest of the adapter that answers
    model: str = ""  # as the client named it
    with_specials: bool = False  # special tokens belong to the text: calls of tools may be written with them


def choices(asked: Reading, guides: Guides | None = None, adapter: str = "") -> tuple[Choice, ...]:
    """What to generate: `n` choices for each prompt, prompt by prompt. With a grammar each has a guide of its own. `adapter`: its digest.

    ApiError 400: nothing can follow the grammar, or it takes too much.
    """
    guide = guides.begin(asked.grammar) if guides is not None and asked.grammar is not None else None
    made: list[Choice] = []
    score = bool(asked.echo) and asked.logprobs is not None
    number = len(asked.prompts)
    for prompt, most, echo, offsets in zip(
        asked.prompts, asked.most, asked.echo or [""] * number, asked.offsets or [()] * number, strict=True
    ):
        for i in range(asked.n):
            sampling = Sampling(**asked.sampling, seed=seed_of(asked.seed, i), guide=guide.copy() if guide else None)
            made.append(
                Choice(
                    index=len(made),
                    prompt=prompt,
                    sampling=sampling,
                    most_tokens=most,
                    stops=asked.stops,
                    ends=frozenset(asked.ends),
                    continues=asked.continues,
                    echo=echo,
                    offsets=offsets,
                    score=score,
                    adapter=adapter,
                    model=asked.model,
                    with_specials=bool(asked.tools),
                )
            )
    return tuple(made)


@dataclass(frozen=True)
class Sampled:
    """One token of the answer; `offset` is where its text begins, in characters of the choice's text."""

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(frozen=True)
class Piece:
    """What one or a few tokens added to a choice. `tokens` are those whose text this piece completes."""

    index: int
    text: str
    tokens: tuple[Sampled, ...]
    generated: int
    finish: str | None = None


class _Assembly:
    """Turns one choice's tokens into pieces."""

    def __init__(self, choice: Choice, tokenizer: ModelTokenizer) -> None:
        self._choice = choice
        decode = partial(tokenizer.decode, special_tokens=True) if choice.with_specials else tokenizer.decode
        self._detokenizer = Detokenizer(decode, choice.prompt if choice.continues else ())
        self._stops = StopStrings(choice.stops)
        self._pending: list[Sampled] = []
        self._decoded = len(choice.echo)  # characters decoded, also those that are held back
        self._given = len(choice.echo)  # characters given out
        self._generated = 0

    def echo(self, scores: Sequence[Scored | None]) -> Piece:
        """What comes before the first token; the last piece where nothing is to be generated. With scores the prompt's tokens are told."""
        choice = self._choice
        told = [
            Sampled(token, score.logprob if score else None, score.top_logprobs if score else (), offset)
            for token, score, offset in zip(choice.prompt, scores, choice.offsets, strict=False)
        ]
        return Piece(choice.index, choice.echo, tuple(told), 0, None if choice.most_tokens else LENGTH)

    def add(self, answer: Answer) -> Piece:
        """The piece after this token; empty pieces occur."""
        token = answer.token
        if token is None:
            raise ValueError("a sampled answer has a token")
        self._generated += 1
        if token in self._choice.ends:
            return self._end(STOP)
        self._pending.append(Sampled(token, answer.logprob, answer.top_logprobs, self._decoded))
        text, stopped = self._pass(self._detokenizer.add(token))
        if stopped:
            return self._piece(text, STOP, cut=True)
        guide = self._choice.sampling.guide
        if guide is not None and guide.complete:
            return self._end(STOP, text)
        if self._generated >= self._choice.most_tokens:
            return self._end(LENGTH, text)
        return self._piece(text, None, cut=True)

    def _end(self, finish: str, before: str = "") -> Piece:
        text, stopped = self._pass(self._detokenizer.flush())
        if stopped:
            return self._piece(before + text, STOP, cut=True)
        return self._piece(before + text + self._stops.flush(), finish, cut=False)

    def _pass(self, decoded: str) -> tuple[str, bool]:
        self._decoded += len(decoded)
        if self._generated <= self._choice.sampling.min_tokens:
            return decoded, False
        return self._stops.add(decoded)

    def _piece(self, text: str, finish: str | None, *, cut: bool) -> Piece:
        """`cut`: only tokens of which some text was given out belong to it; the others are pending or dropped."""
        self._given += len(text)
        ready = tuple(s for s in self._pending if not cut or s.offset < self._given)
        self._pending = self._pending[len(ready) :]
        return Piece(self._choice.index, text, ready, self._generated, finish)


@dataclass(frozen=True)
class Generator:
    """Runs the choices of requests."""

    chain: Chain
    tokenizer: ModelTokenizer
    admission: Admission
    request_seconds: float

    def start(self, choices: Sequence[Choice], client: str) -> "Generation":
        """Take places for all choices.

        Raises:
            ApiError: there is no room.
        """
        tickets = self.admission.enter(client, [len(c.prompt) + c.most_tokens for c in choices])
        for choice in choices:
            self.chain.observed.arrived(len(choice.prompt))
        return Generation(self, tuple(choices), tickets)

    async def run(self, choice: Choice, ticket: Ticket, arrived: float) -> AsyncGenerator[Piece, None]:
        """The pieces of one choice, the last one with its finish reason."""
        use = self.chain.adapters
        with use.waiting(choice.model, choice.adapter):
            await ticket.wait()
        with use.running(choice.model, choice.adapter):
            async for piece in self._run(choice, ticket, arrived):
                yield piece

    async def _run(self, choice: Choice, ticket: Ticket, arrived: float) -> AsyncGenerator[Piece, None]:
        metrics, observed = self.chain.metrics, self.chain.observed
        metrics.tokens.labels("prompt").inc(len(choice.prompt))
        completion = metrics.tokens.labels("completion")
        assembly = _Assembly(choice, self.tokenizer)
        before: float | None = None
        if choice.echo and not choice.score:
            yield assembly.echo(())
        if not choice.most_tokens and not choice.score:
            return
        tokens = self.chain.tokens(
            choice.prompt,
            choice.sampling,
            ticket.client,
            score=choice.score,
            sample=choice.most_tokens > 0,
            growth=ticket.tokens,
            adapter=choice.adapter,
        )
        async with aclosing(tokens) as answers:
            async for answer in answers:
                now = time.monotonic()
                if answer.scored:
                    yield assembly.echo(answer.scored)
                if answer.token is None:
                    return
                if before is None:
                    metrics.first_token.labels(answer.revision).observe(now - arrived, tracing.exemplar())
                    observed.first_token(now - arrived)
                elif answer.of:
                    metrics.output_token_times(answer.revision, now - before, answer.of, tracing.exemplar())
                    observed.gap(now - before, answer.of)
                    if answer.resumed:
                        metrics.paused(answer.resumed, now - before)
                before = now
                completion.inc()
                piece = assembly.add(answer)
                if piece.text or piece.tokens or piece.finish:
                    yield piece
                if piece.finish:
                    observed.generated(piece.generated)
                    return


class Generation:
    """One request under way. Generation does not wait for a slow reader, for others need the KV; who is far behind is given up."""

    def __init__(self, generator: Generator, choices: tuple[Choice, ...], tickets: tuple[Ticket, ...]) -> None:
        self._generator = generator
        self._choices = choices
        self._tickets = tickets
        self._arrived = time.monotonic()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces of all choices as they come; closing the iterator ends the sequences.

        Raises:
            ApiError: a choice could not be finished.
        """
        queue: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._feed(choice, ticket, queue)) for choice, ticket in zip(self._choices, self._tickets, strict=True)
        ]
        try:
            open_choices = len(tasks)
            while open_choices:
                match await queue.get():
                    case None:
                        open_choices -= 1
                    case BaseException() as error:
                        raise error
                    case piece:
                        yield piece
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.abandon()

    def abandon(self) -> None:
        """Give the places back; right also when `pieces` was never read."""
        for ticket in self._tickets:
            ticket.close()

    async def _feed(self, choice: Choice, ticket: Ticket, queue: "asyncio.Queue[Piece | BaseException | None]") -> None:
        try:
            async with (
                asyncio.timeout(self._generator.request_seconds),
                aclosing(self._generator.run(choice, ticket, self._arrived)) as pieces,
            ):
                async for piece in pieces:
                    if queue.qsize() >= _MOST_UNREAD:
                        raise ApiError(408, "The client reads the answer too slowly.", code="slow_reader")
                    queue.put_nowait(piece)
            queue.put_nowait(None)
        except TimeoutError:
            message = f"The request was not finished within {self._generator.request_seconds:.0f} s."
            queue.put_nowait(ApiError(504, message, kind="server_error", code="deadline_exceeded"))
        except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
            queue.put_nowait(error)
        finally:
            ticket.close()
