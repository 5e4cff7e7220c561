"""Which routes there are, what is in flight on each, and when a superseded one is done with.

A cutover is immediate for new sequences. Those under way on a pipeline that the new route has, too, are on the new route at once, and
notice nothing. The others stay on theirs until they end or the drain time is over.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from splitinference_gateway.errors import still_starting
from splitinference_gateway.routing.lanes import Chooser, Lane, Wish
from splitinference_protocol.route import Pipeline, RouteDocument, Sleep, Verification

HOLD_SECONDS = 30.0
"""So long after a route was withdrawn requests wait for the next one; those that come later are told at once to come again."""


@dataclass(eq=False)
class Route:
    """One route in memory. `expires_at` (clock seconds) is set while it drains. A lane that a later route has, too, is that one's."""

    revision: str
    lanes: list[Lane]
    expires_at: float | None = None

    @property
    def pipelines(self) -> tuple[Pipeline, ...]:
        """The hops of each, first to last."""
        return tuple(lane.pipeline for lane in self.lanes)

    @property
    def in_flight(self) -> int:
        """Sequences on its lanes."""
        return sum(lane.in_flight for lane in self.lanes)


@dataclass(eq=False)
class Lease:
    """A sequence's right to use one pipeline; the route lives at least as long. Give it back exactly once."""

    lane: Lane
    most: int
    _routes: "Routes"

    @property
    def route(self) -> Route:
        """The newest route that has the pipeline."""
        return next(route for route in self._routes.known if self.lane in route.lanes)

    @property
    def pipeline(self) -> Pipeline:
        """The hops, first to last."""
        return self.lane.pipeline

    @property
    def expired(self) -> bool:
        """The route was superseded, and its drain time is over: go on elsewhere."""
        expires_at = self.route.expires_at
        return expires_at is not None and self._routes.clock() >= expires_at

    def give_back(self) -> None:
        """The sequence no longer uses the pipeline."""
        self.lane.in_flight -= 1
        self.lane.reserved -= self.most
        self._routes.retire()


@dataclass(eq=False)
class Routes:
    """The current route and the draining ones. `stopped`: the route was withdrawn, and the next is on its way or not allowed; `asleep`: the
    model is unloaded until a request comes; `held`: sequences that wait for it to wake; `adapters`: digests by name."""

    clock: Callable[[], float] = time.monotonic
    chooser: Chooser = field(default_factory=Chooser)
    current: Route | None = None
    stopped: bool = False
    asleep: Sleep | None = None
    held: int = 0
    verification: Verification | None = None
    distrusted: frozenset[str] = frozenset()
    adapters: Mapping[str, str] = field(default_factory=dict)
    _held_until: float = 0.0
    _draining: list[Route] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def apply(self, document: RouteDocument) -> bool:
        """Make this document the current route; true if that changed anything. The same content again changes nothing."""
        now = self.clock()
        if document.pipelines or document.adapters is not None:  # a route that is withdrawn for a moment says nothing of adapters
            self.adapters = {adapter.name: adapter.digest for adapter in document.adapters or ()}
        self.verification = document.verification
        if document.verification is not None:
            self.distrust(document.verification.distrusted)
        if self.current is None and not document.pipelines:
            woken, self.asleep = self.asleep, document.asleep
            self.stopped = self.stopped or self.asleep is not None
            if woken is not None and self.asleep is None:  # withdrawn meanwhile: who is held finds out
                self._wake()
            return woken != self.asleep
        if self.current is not None and _same(self.current, document):
            return False
        if self.current is not None:
            self.current.expires_at = now + document.drain_seconds
            self._draining.append(self.current)
        self.stopped, self.asleep = not document.pipelines, document.asleep
        if self.stopped:
            self._held_until = now + HOLD_SECONDS
        self.current = Route(document.revision, self._lanes(document)) if document.pipelines else None
        self.retire()
        self._wake()
        return True

    def _lanes(self, document: RouteDocument) -> list[Lane]:
        """The document's lanes. Those that a route has already are taken out of it: their sequences go on where they are."""
        lanes = []
        for pipeline in document.pipelines:
            known = ((route, lane) for route in self._draining for lane in route.lanes if lane.pipeline == pipeline)
            if (found := next(known, None)) is not None:
                found[0].lanes.remove(found[1])
            lanes.append(found[1] if found is not None else Lane(pipeline))
        return lanes

    def lease(self, avoid: Collection[str] = (), wish: Wish = Wish()) -> Lease | None:  # noqa: B008 - immutable
        """The pipeline of the current route where the sequence would end first, if possible one without the segments to avoid; None: no
        route, or none whose segments are all trusted."""
        sound = [lane for lane in self.current.lanes if self.is_trusted(lane.pipeline)] if self.current is not None else []
        if not sound:
            return None
        lane = self.chooser.best(sound, wish, avoid)
        lane.in_flight += 1
        lane.reserved += wish.most
        return Lease(lane, wish.most, self)

    def has_other(self, this: Lane, avoid: Collection[str]) -> bool:
        """Whether the current route has another pipeline than this one, trusted and without the segments to avoid."""
        lanes = self.current.lanes if self.current is not None else []
        return any(lane is not this and self._is_sound(lane, avoid) for lane in lanes)

    def _is_sound(self, lane: Lane, avoid: Collection[str]) -> bool:
        return self.is_trusted(lane.pipeline) and not any(hop.segment in avoid for hop in lane.pipeline)

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
        self._draining = [route for route in self._draining if route.in_flight]
        if self.distrusted:
            self.distrusted &= self.segments | self.verifiers

    @property
    def takes(self) -> bool:
        """New sequences may come: there is a route, or there was one a moment ago, and the next is worth waiting for."""
        return self.current is not None or self.asleep is not None or (self.stopped and self.clock() < self._held_until)

    async def awake(self) -> None:
        """Return when the model is not asleep: at once, or when a first pipeline serves.

        Raises:
            ApiError: 503 with Retry-After, where that takes longer than requests are held.
        """
        if self.asleep is None:
            return
        self.held += 1
        began = self.clock()
        try:
            while (sleep := self.asleep) is not None:
                if (left := began + sleep.hold_seconds - self.clock()) <= 0:
                    raise still_starting(sleep.hold_seconds, self.wakes_in)
                await self.changed(left)
        finally:
            self.held -= 1

    @property
    def wakes_in(self) -> int:
        """Whole seconds after which it is worth to ask again: what a start takes where the model is asleep, else 1."""
        return max(1, math.ceil(self.asleep.wakes_in_seconds)) if self.asleep is not None else 1

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
        checks = self.verification.checks if self.verification is not None else ()
        return {hop.segment for check in checks for hop in check.verifiers}

    def in_flight(self) -> dict[str, int]:
        """Sequences by revision."""
        counts: Counter[str] = Counter()
        for route in self.known:
            counts[route.revision] += route.in_flight
        return dict(counts)

    def in_flight_by_segment(self) -> dict[str, int]:
        """Sequences by segment, for the segments of all known routes."""
        counts: Counter[str] = Counter()
        for route in self.known:
            for lane in route.lanes:
                for hop in lane.pipeline:
                    counts[hop.segment] += lane.in_flight
        return dict(counts)

    def sound(self, avoid: Collection[str]) -> int:
        """Pipelines of the current route that are trusted and without the segments to avoid; at least 1, so that somebody tries."""
        return max(1, sum(self._is_sound(lane, avoid) for lane in self.current.lanes)) if self.current is not None else 1

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Those of all known routes."""
        return tuple(lane for route in self.known for lane in route.lanes)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _same(route: Route, document: RouteDocument) -> bool:
    return route.revision == document.revision and route.pipelines == document.pipelines
