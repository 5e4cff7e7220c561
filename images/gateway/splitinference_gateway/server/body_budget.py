"""How many bytes of request bodies are in memory at once, over all requests and for one client."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from splitinference_gateway.errors import overloaded


class Held:
    """What one request holds."""

    def __init__(self, bodies: "Bodies", client: str) -> None:
        self._bodies = bodies
        self._client = client
        self.bytes = 0

    def grow(self, size: int) -> None:
        """More of the body is there. ApiError 429 when there is no room for it."""
        self._bodies.take(self._client, size)
        self.bytes += size


class Bodies:
    """A budget of bytes; one client may use a half of it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._of: Counter[str] = Counter()
        self.bytes = 0

    @contextmanager
    def room(self, client: str) -> Iterator[Held]:
        """What the block adds is given back at its end."""
        held = Held(self, client)
        try:
            yield held
        finally:
            self.bytes -= held.bytes
            self._of[client] -= held.bytes
            if self._of[client] <= 0:
                del self._of[client]

    def take(self, client: str, size: int) -> None:
        """Count so many bytes, or raise ApiError 429."""
        if self.bytes + size > self._most or self._of[client] + size > max(self._most // 2, 1):
            raise overloaded("The gateway is reading too many large requests; try again later.", "bodies_full")
        self.bytes += size
        self._of[client] += size
