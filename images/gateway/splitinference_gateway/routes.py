"""Which routes there are, what is in flight on each, and when a superseded one is done with.

A cutover is immediate for new sequences. Those under way stay on their route until it has drained or its time is over.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from splitinference_protocol.route import Pipeline, RouteDocument, Verification

HOLD_SECONDS = 30.0
"""So long after a route was withdrawn requests wait for the next one; those that come later are told at once to come again."""


@dataclass(eq=False)
class Route:
    """One route in memory. `expires_at` (clock seconds) is set while it drains."""

    revision: str
    pipelines: tuple[Pipeline, ...]
    in_flight: list[int]
    expires_at: float | None = None


@dataclass(eq=False)
class Lease:
    """A sequence's right to use one pipeline; the route lives at least as long. Give it back exactly once."""

    route: Route
    index: int
    _routes: "Routes"

    @property
    def pipeline(self) -> Pipeline:
        """The hops, first to last."""
        return self.route.pipelines[self.index]

    @property
    def expired(self) -> bool:
        """The route was superseded, and its drain time is over: go on elsewhere."""
        return self.route.expires_at is not None and self._routes.clock() >= self.route.expires_at

    def give_back(self) -> None:
        """The sequence no longer uses the pipeline."""
        self.route.in_flight[self.index] -= 1
        self._routes.retire()


@dataclass(eq=False)
class Routes:
    """The current route and the draining ones. `stopped`: the route was withdrawn, and the next is on its way or not allowed."""

    clock: Callable[[], float] = time.monotonic
    current: Route | None = None
    stopped: bool = False
    verification: Verification | None = None
    distrusted: frozenset[str] = frozenset()
    _held_until: float = 0.0
    _draining: list[Route] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, document: RouteDocument) -> bool:
        """Make this document the current route; true if that changed anything. The same content again changes nothing."""
        now = self.clock()
        self.verification = document.verification
        if document.verification is not None:
            self.distrust(document.verification.distrusted)
        if self.current is None and not document.pipelines:
            return False
        if self.current is not None and _same(self.current, document):
            return False
        if self.current is not None:
            self.current.expires_at = now + document.drain_seconds
            self._draining.append(self.current)
        self.stopped = not document.pipelines
        if self.stopped:
            self._held_until = now + HOLD_SECONDS
        self.current = next((route for route in self._draining if _same(route, document)), None)
        if self.current is not None:  # back to a route that still drains: its sequences may stay
            self._draining.remove(self.current)
            self.current.expires_at = None
        elif document.pipelines:
            self.current = Route(document.revision, document.pipelines, [0] * len(document.pipelines))
        self.retire()
        self._wake()
        return True

    def lease(self, avoid: Collection[str] = ()) -> Lease | None:
        """The least loaded pipeline of the current route, if possible one without the segments to avoid; None: no route, or none whose
        segments are all trusted."""
        if self.current is None:
            return None
        route = self.current
        sound = [index for index, pipeline in enumerate(route.pipelines) if self.is_trusted(pipeline)]
        if not sound:
            return None

        def order(index: int) -> tuple[bool, int, int]:
            return any(hop.segment in avoid for hop in route.pipelines[index]), route.in_flight[index], index

        index = min(sound, key=order)
        route.in_flight[index] += 1
        return Lease(route, index, self)

    def distrust(self, segments: Collection[str]) -> None:
        """Send nothing to these any more, as long as a route knows them: their answers were wrong."""
        self.distrusted |= frozenset(segments)

    def is_trusted(self, pipeline: Pipeline) -> bool:
        """Whether none of its segments gave a wrong answer."""
        return not self.distrusted or self.distrusted.isdisjoint(hop.segment for hop in pipeline)

    async def changed(self, seconds: float) -> None:
        """Return when the route changes, at the latest after `seconds`."""
        event = self._changed
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return

    def retire(self) -> None:
        """Forget the draining routes on which nothing is in flight."""
        self._draining = [route for route in self._draining if any(route.in_flight)]
        if self.distrusted:
            self.distrusted &= self.segments

    @property
    def takes(self) -> bool:
        """New sequences may come: there is a route, or there was one a moment ago, and the next is worth waiting for."""
        return self.current is not None or (self.stopped and self.clock() < self._held_until)

    @property
    def known(self) -> tuple[Route, ...]:
        """The current route and those that drain."""
        return ((self.current,) if self.current else ()) + tuple(self._draining)

    @property
    def segments(self) -> set[str]:
        """Names of all segments of all known routes."""
        return {hop.segment for route in self.known for pipeline in route.pipelines for hop in pipeline}

    @property
    def verifiers(self) -> set[str]:
        """Names of those who check segments: they are in no route, and the gateway speaks to them."""
        return {check.verifier.segment for check in self.verification.checks} if self.verification is not None else set()

    def in_flight(self) -> dict[str, int]:
        """Sequences by revision."""
        counts: Counter[str] = Counter()
        for route in self.known:
            counts[route.revision] += sum(route.in_flight)
        return dict(counts)

    def in_flight_by_segment(self) -> dict[str, int]:
        """Sequences by segment, for the segments of all known routes."""
        counts: Counter[str] = Counter()
        for route in self.known:
            for pipeline, number in zip(route.pipelines, route.in_flight, strict=True):
                for hop in pipeline:
                    counts[hop.segment] += number
        return dict(counts)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _same(route: Route, document: RouteDocument) -> bool:
    return route.revision == document.revision and route.pipelines == document.pipelines
