"""Who may run now: sequences whose KV fits the budget, a bounded number of them, and a bounded queue behind that is fair between clients.

A sequence counts with the tokens that it may grow to, so that none that runs is ever short of KV. Clients take turns; within one client it
is first come, first served. So a client with many requests delays its own. Who does not fit yet waits in front: nobody overtakes him, or
a long sequence would never get its turn among short ones.

Nor can a client take the whole queue: it may wait with as many sequences as it leaves places free (dynamic thresholds, as switches share
their buffers; Choudhury and Hahne, 1998). One client gets half of the queue, and a new one always finds room until many have come.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from splitinference_gateway.errors import ApiError, invalid, overloaded

_FIRST_TOKENS = 128


@dataclass(frozen=True)
class KvBudget:
    """Tokens of KV: what all that run may grow to together, and the longest context."""

    tokens: int
    longest: int

    def cost(self, tokens: int) -> int:
        """What a sequence of so many tokens may occupy: segments give out buffers that double from 128 on, up to the longest context."""
        return 0 if tokens == 0 else min(self.tokens, self.longest, max(_FIRST_TOKENS, 1 << (tokens - 1).bit_length()))


class Ticket:
    """One sequence's place: waiting, running, or done. `close` is always right, and may be called twice."""

    def __init__(self, admission: "Admission", client: str, tokens: int) -> None:
        self._admission = admission
        self.client = client
        self.tokens = tokens
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
    """Hands out tickets. Without a budget only the number of sequences counts; `running_per_client`: of one client, if less than all.

    Limit and budget are those of one pipeline: `pipelines` says how many there are now.
    """

    def __init__(
        self,
        running_limit: int,
        queue_limit: int,
        changed: Callable[[int, int], None] = lambda running, waiting: None,
        *,
        budget: KvBudget | None = None,
        running_per_client: int | None = None,
        pipelines: Callable[[], int] = lambda: 1,
    ) -> None:
        self._each = running_limit
        self._pipelines = pipelines
        self._queue_limit = queue_limit
        self._budget = budget
        self._changed = changed
        self._client_limit = running_per_client
        self._running_of: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self.running = 0
        self.reserved_tokens = 0

    @property
    def _running_limit(self) -> int:
        return self._each * max(1, self._pipelines())

    @property
    def _running_per_client(self) -> int:
        return self._running_limit if self._client_limit is None else self._client_limit

    @property
    def _tokens(self) -> int:
        """Tokens of KV in all pipelines; 0 without a budget."""
        return self._budget.tokens * max(1, self._pipelines()) if self._budget is not None else 0

    @property
    def reserved(self) -> float:
        """Share of the KV budget that running sequences may grow to; 0 without a budget. More than 1 after a pipeline went away."""
        return self.reserved_tokens / self._tokens if self._budget is not None else 0.0

    @property
    def most(self) -> int:
        """Sequences that one request may have, however many pipelines there are."""
        return self._each + (self._queue_limit + 1) // 2

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return sum(len(tickets) for tickets in self._waiting.values())

    def enter(self, client: str, growth: Sequence[int]) -> tuple[Ticket, ...]:
        """Places for all sequences of one request, or none. `growth`: tokens that each may grow to; 0 for what holds no KV.

        Raises:
            ApiError: 400 when so many never fit, 429 when there is no room now.
        """
        sequences = len(growth)
        if sequences > self.most:
            raise invalid(f"The request asks for {sequences} sequences; at most {self.most} fit.", "n")
        costs = [self._budget.cost(tokens) if self._budget else 0 for tokens in growth]
        waits = sequences - self._runs_at_once(client, costs)
        if waits > 0:
            if not self.running and not self._waiting and waits > (self._queue_limit + 1) // 2:
                raise invalid(f"The request asks for {sequences} sequences; their KV never fits, not even in an idle gateway.", "n")
            free = self._queue_limit - self.waiting - waits
            if free < 0:
                raise self._full()
            if (own := len(self._waiting.get(client, ())) + waits) > max(1, free + 1):
                raise self._enough(own - waits)
        tickets = tuple(Ticket(self, client, cost) for cost in costs)
        if tickets:
            self._waiting.setdefault(client, deque()).extend(tickets)
        self.grant()
        return tickets

    def _runs_at_once(self, client: str, costs: Sequence[int]) -> int:
        """How many of these would not have to wait: none where others wait already."""
        if self._waiting:
            return 0
        room, tokens = self._running_limit - self.running, self.reserved_tokens
        room = min(room, self._running_per_client - self._running_of[client])
        for index, cost in enumerate(costs):
            tokens += cost
            if index >= room or (self._budget is not None and tokens > self._tokens):
                return index
        return len(costs)

    def leave(self, ticket: Ticket) -> None:
        """A ticket is closed: its place goes to the next."""
        if ticket.granted.is_set():
            self.running -= 1
            self._running_of[ticket.client] -= 1
            if not self._running_of[ticket.client]:
                del self._running_of[ticket.client]
            self.reserved_tokens -= ticket.tokens
        else:
            queue = self._waiting[ticket.client]
            queue.remove(ticket)
            if not queue:
                del self._waiting[ticket.client]
        self.grant()

    def grant(self) -> None:
        """Let run whoever waits and has room now."""
        while self._waiting and self.running < self._running_limit:
            client = next((name for name in self._waiting if self._running_of[name] < self._running_per_client), None)
            if client is None:
                break
            queue = self._waiting[client]
            if self._budget is not None and self.reserved_tokens + queue[0].tokens > self._tokens:
                break
            ticket = queue.popleft()
            if queue:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]
            self.running += 1
            self._running_of[client] += 1
            self.reserved_tokens += ticket.tokens
            ticket.granted.set()
        self._changed(self.running, self.waiting)

    def _enough(self, own: int) -> ApiError:
        message = f"{own} sequences of yours wait already, and the rest of the queue is kept for other clients. Try again later."
        return overloaded(message, "client_queue_full")

    def _full(self) -> ApiError:
        held = f" with up to {self.reserved_tokens} of {self._tokens} tokens of KV" if self._budget else ""
        return overloaded(f"The model is busy: {self.running} sequences run{held} and {self.waiting} wait. Try again later.", "queue_full")
