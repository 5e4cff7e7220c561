"""Which adapters sequences run with, and which they wait for: told to the operator, and to whoever picks a gateway for a request."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class AdapterUse:
    """Sequences by adapter. `changed_at`: Unix seconds of the last change."""

    clock: Callable[[], float] = time.time
    changed_at: float = 0.0
    _running: Counter[tuple[str, str]] = field(default_factory=Counter)
    _waiting: Counter[tuple[str, str]] = field(default_factory=Counter)

    @contextmanager
    def waiting(self, name: str, digest: str) -> Iterator[None]:
        """A sequence waits for admission while the block runs. An empty digest is no adapter."""
        with self._counted(self._waiting, name, digest):
            yield

    @contextmanager
    def running(self, name: str, digest: str) -> Iterator[None]:
        """A sequence runs while the block does."""
        with self._counted(self._running, name, digest):
            yield

    @property
    def names_running(self) -> tuple[str, ...]:
        """Adapters that sequences run with."""
        return tuple(sorted({name for name, _ in self._running}))

    @property
    def names_waiting(self) -> tuple[str, ...]:
        """Adapters that sequences wait for, and none runs with."""
        return tuple(sorted({name for name, _ in self._waiting} - set(self.names_running)))

    @property
    def in_flight(self) -> dict[str, int]:
        """Sequences by digest, those that wait included."""
        counts: Counter[str] = Counter()
        for (_, digest), number in (*self._running.items(), *self._waiting.items()):
            counts[digest] += number
        return dict(counts)

    @contextmanager
    def _counted(self, counter: Counter[tuple[str, str]], name: str, digest: str) -> Iterator[None]:
        if not digest:
            yield
            return
        counter[name, digest] += 1
        self.changed_at = self.clock()
        try:
            yield
        finally:
            counter[name, digest] -= 1
            if not counter[name, digest]:
                del counter[name, digest]
            self.changed_at = self.clock()
