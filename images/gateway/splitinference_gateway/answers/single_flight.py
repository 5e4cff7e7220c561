"""One run for identical requests in flight: each reader gets all of it, and it ends early only when the last one left."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Run(Generic[_T]):
    """What one run makes, as it comes. It begins at once, in a task of its own; `done` is told when it has ended, and how it did."""

    def __init__(self, make: Callable[[], AsyncGenerator[_T, None]], done: "Callable[[Run[_T]], None]") -> None:
        self.parts: list[_T] = []
        self.error: BaseException | None = None
        self.ended = False
        self._done = done
        self._readers = 0
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._work(make))

    @property
    def whole(self) -> bool:
        """It came to its end without an error."""
        return self.ended and self.error is None

    def join(self) -> "Reader[_T]":
        """One more reader."""
        self._readers += 1
        return Reader(self)

    def left(self) -> None:
        """A reader is gone. Nobody waits for what the last one leaves."""
        self._readers -= 1
        if not self._readers and not self.ended:
            self._end(asyncio.CancelledError())  # at once, so that nobody joins what ends; a task that has not begun would never say it
            self._task.cancel()

    async def news(self) -> None:
        """Until there is another part, or the end."""
        await self._news.wait()

    async def _work(self, make: Callable[[], AsyncGenerator[_T, None]]) -> None:
        try:
            async with aclosing(make()) as source:
                async for part in source:
                    self.parts.append(part)
                    self._tell()
        except Exception as error:  # noqa: BLE001 - handed to the readers, who raise it
            self._end(error)
        except asyncio.CancelledError as error:
            self._end(error)
            raise
        else:
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self.ended:
            self.ended, self.error = True, error
            self._tell()
            self._done(self)

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Reader(Generic[_T]):
    """One request's part in a run."""

    def __init__(self, run: Run[_T]) -> None:
        self._run = run
        self._gone = False

    async def pieces(self) -> AsyncGenerator[_T, None]:
        """All parts, from the first. What the run failed with is raised here, too."""
        run, at = self._run, 0
        while True:
            while at < len(run.parts):
                yield run.parts[at]
                at += 1
            if run.ended:
                break
            await run.news()
        if isinstance(run.error, asyncio.CancelledError):
            raise RuntimeError("a run that has a reader was cancelled")
        if run.error is not None:
            raise run.error

    def abandon(self) -> None:
        """It reads no more; right also when it never did, and when it is said twice."""
        if not self._gone:
            self._gone = True
            self._run.left()


class Kept(Generic[_T]):
    """An answer that is there already, in the form of one that comes."""

    def __init__(self, parts: list[_T]) -> None:
        self._parts = parts

    async def pieces(self) -> AsyncGenerator[_T, None]:
        """All parts. The event loop gets its turn between them."""
        for number, part in enumerate(self._parts, 1):
            yield part
            if number % 64 == 0:
                await asyncio.sleep(0)

    def abandon(self) -> None:
        """Nothing runs."""
