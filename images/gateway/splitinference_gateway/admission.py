"""Who may run now: a bounded number of sequences, and a bounded queue behind it that is fair between clients.

Clients take turns; within one client it is first come, first served. So a client with many requests delays its own.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from splitinference_gateway.errors import ApiError, invalid, overloaded


class Ticket:
    """One sequence's place: waiting, running, or done. `close` is always right, and may be called twice."""

    def __init__(self, admission: "Admission", client: str) -> None:
        self._admission = admission
        self.client = client
        self.granted = asyncio.Event()
        self._closed = False

    async def wait(self) -> None:
        """Return when the sequence may run."""
        await self.granted.wait()

    def close(self) -> None:
        """The sequence ended, or no longer wants to run."""
        if not self._closed:
            self._closed = True
            self._admission.leave(self)


class Admission:
    """Hands out tickets."""

    def __init__(self, running_limit: int, queue_limit: int, changed: Callable[[int, int], None] = lambda running, waiting: None) -> None:
        self._running_limit = running_limit
        self._queue_limit = queue_limit
        self._changed = changed
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self.running = 0

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return sum(len(tickets) for tickets in self._waiting.values())

    def enter(self, client: str, sequences: int) -> tuple[Ticket, ...]:
        """Places for all sequences of one request, or none.

        Raises:
            ApiError: 400 when so many never fit, 429 when there is no room now.
        """
        if sequences > self._running_limit + self._queue_limit:
            raise invalid(f"The request asks for {sequences} sequences; at most {self._running_limit + self._queue_limit} fit.", "n")
        if sequences > max(0, self._running_limit - self.running) + self._queue_limit - self.waiting:
            raise _full(self.running, self.waiting)
        tickets = tuple(Ticket(self, client) for _ in range(sequences))
        if tickets:
            self._waiting.setdefault(client, deque()).extend(tickets)
        self._grant()
        return tickets

    def leave(self, ticket: Ticket) -> None:
        """A ticket is closed: its place goes to the next."""
        if ticket.granted.is_set():
            self.running -= 1
        else:
            queue = self._waiting[ticket.client]
            queue.remove(ticket)
            if not queue:
                del self._waiting[ticket.client]
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.running < self._running_limit:
            client, queue = next(iter(self._waiting.items()))
            ticket = queue.popleft()
            if queue:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
            self.running += 1
            ticket.granted.set()
        self._changed(self.running, self.waiting)


def _full(running: int, waiting: int) -> ApiError:
    return overloaded(f"The model is busy: {running} sequences run and {waiting} wait. Please try again later.", "queue_full")
