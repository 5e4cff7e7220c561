"""Steps of one sequence that are under way along a pipeline, one behind the other.

A long prompt goes through the stages in chunks. If each chunk waited for the one before to come back, one stage would compute and all
others would wait: the prompt would take the sum of the stages' times. So the next chunk is sent while the one before is under way. With S
stages and C chunks of equal times it takes S + C - 1 of S·C such times: with many chunks, little more than the slowest stage's own.
"""

import asyncio
import time
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_gateway.pipeline.step_answers import Answer

MOST = 8
"""Chunks of one sequence that are under way at once, however many stages there are: others wait behind them."""
_LEAST_TOKENS = 64  # of a chunk: below, reading the weights takes longer than computing
_ROUND = 32
_CHUNKS_PER_STAGE = 3


def most_under_way(stages: int) -> int:
    """Chunks that keep so many stages busy: one in each, and one on the way. One stage alone has nothing to overlap with."""
    return min(MOST, stages + 1) if stages > 1 else 1


def chunk_tokens(tokens: int, stages: int, most: int) -> int:
    """Tokens of one chunk of so many: `most`, or less where the stages would otherwise wait for the first chunk for long."""
    if tokens <= most or stages < 2:
        return most
    wanted = -(-tokens // (_CHUNKS_PER_STAGE * stages))
    return min(most, max(_LEAST_TOKENS, -(-wanted // _ROUND) * _ROUND))


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens of one step, from `position` on. `last`: the sequence's last ones, after which a token may be sampled. `targets` follow on
    them one by one. `drafts` are supposed to; `drop`: how many earlier ones did not, and are still held."""

    position: int
    tokens: Sequence[int]
    last: bool
    targets: Sequence[int] = ()
    drafts: Sequence[int] = ()
    drop: int = 0

    @property
    def end(self) -> int:
        """The position behind its tokens."""
        return self.position + len(self.tokens)

    @property
    def decodes(self) -> bool:
        """One token of a sequence under way."""
        return len(self.tokens) == 1


@dataclass(eq=False)
class Sent:
    """A step that was sent. `seconds`: how long it kept the pipeline. What overlaps with the step before counts once."""

    what: Chunk
    task: "asyncio.Task[Answer]"
    sent_at: float
    seconds: float = 0.0


class Flight:
    """The steps under way, the oldest first. They land in this order."""

    def __init__(self) -> None:
        self._sent: deque[Sent] = deque()
        self._landed_at = 0.0

    def __len__(self) -> int:
        return len(self._sent)

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._sent)

    @property
    def under_way(self) -> bool:
        """There is a step that has not landed."""
        return bool(self._sent)

    @property
    def last(self) -> Chunk:
        """What was sent last. IndexError when nothing is under way."""
        return self._sent[-1].what

    def send(self, what: Chunk, step: Coroutine[Any, Any, Answer]) -> None:
        """Start it."""
        self._sent.append(Sent(what, asyncio.create_task(step), time.monotonic()))

    async def landed(self) -> tuple[Sent, Answer]:
        """The oldest one, and what came of it. Raises what it raised; then it is still under way."""
        sent = self._sent[0]
        came = await sent.task
        self._sent.popleft()
        now = time.monotonic()
        sent.seconds = now - max(sent.sent_at, self._landed_at)
        self._landed_at = now
        return sent, came

    async def clear(self) -> None:
        """After a failure: until all have ended, whatever came of them, so that none is under way when tokens are run again."""
        sent, self._sent = self._sent, deque()
        await asyncio.gather(*(each.task for each in sent), return_exceptions=True)

    def cancel(self) -> None:
        """Nobody waits for them any more."""
        for each in self._sent:
            each.task.cancel()
        self._sent.clear()
