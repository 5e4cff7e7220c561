"""The newest state for all browsers: read at intervals in a thread, kept once, and never queued.

Who is slow gets the newest state when he is ready for it, and misses what was between: no buffer grows.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.ui.origins.sources import Source
from splitinference.ui.page.document import EMPTY, Document, Scope, difference
from splitinference.ui.page.history import History

log = logging.getLogger(__name__)

MOST_SHARE = 0.2
"""Reading takes at most this share of the time: where it takes long, it is done more rarely."""


@dataclass(frozen=True)
class State:
    """The last document that could be read, and why there is no newer one. `version` is another for each other state; `at`: the clock at
    which the document was read (None: not yet)."""

    version: int = 0
    document: Document = EMPTY
    problem: str = "The cluster has not been read yet."
    at: float | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the document was read."""
        return None if self.at is None else time.monotonic() - self.at


@dataclass(frozen=True)
class Sent:
    """What a browser has."""

    version: int = -1
    document: Document = field(default=EMPTY)


class Feed:
    """Runs while `run` does."""

    def __init__(self, source: Source, seconds: float, history: History | None = None) -> None:
        """`seconds`: between two reads, at least."""
        self._source = source
        self._seconds = seconds
        self._history = history or History()
        self._state = State()
        self._changed = asyncio.Condition()

    @property
    def state(self) -> State:
        """The newest."""
        return self._state

    async def run(self) -> None:
        """Read until cancelled. Whatever fails is shown, and tried again."""
        while True:
            began = time.monotonic()
            await self.look()
            took = time.monotonic() - began
            await asyncio.sleep(max(self._seconds - took, took * (1 / MOST_SHARE - 1), 0.05))

    async def look(self) -> None:
        """Read once."""
        before = self._state
        try:
            document = await asyncio.to_thread(self._source.read)
        except (UnavailableError, RefusedError) as error:
            await self._show(State(before.version + 1, before.document, str(error)[:2000], before.at))
        except Exception:
            log.exception("the page could not be drawn")
            words = "The page could not read the state because of an error of its own. Its log has the details."
            await self._show(State(before.version + 1, before.document, words, before.at))
        else:
            self._history.add(document)
            await self._show(State(before.version + 1, document, "", time.monotonic()))

    async def _show(self, state: State) -> None:
        async with self._changed:
            self._state = state
            self._changed.notify_all()

    async def newer(self, version: int, seconds: float) -> State:
        """The state once it is newer than `version`; after so many seconds the one that is there."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self._state.version > version)
        except TimeoutError:
            pass
        return self._state

    def history(self, key: str) -> dict[str, Any]:
        """Points and decisions of a resource."""
        return self._history.of(key)


def message(sent: Sent, state: State, scope: Scope) -> tuple[dict[str, Any], Sent]:
    """What a browser that has `sent` needs to have this state, and what it has then."""
    seen = scope.of(state.document)
    age = state.age
    words = {"problem": state.problem, "age": None if age is None else round(age, 1), "full": sent.version < 0}
    return {**difference(sent.document, seen), **words}, Sent(state.version, seen)
