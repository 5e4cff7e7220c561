"""What passes of all resources share, so that a hundred resources do not look a hundred times: metrics of a moment ago, and the picture of
nodes and links as one sees it who has nothing there.

No pass gets a reading of metrics twice that the same resource has seen: what is to be confirmed is confirmed by something new.
"""

import threading
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from splitinference.controller.cluster_state.figures.node_metrics import Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory, Speaker, speakers_of
from splitinference.controller.cluster_state.node_capacity import Read, Standing, standing_of
from splitinference.controller.cluster_state.snapshot import Held, Picture, held_by, picture_of
from splitinference.controller.ports import Clock, Generation, Listing, Metrics
from splitinference.settings import Settings

FRESH = timedelta(seconds=2)
"""So long one resource's reading of metrics will do for the others: Prometheus has nothing newer sooner than every 5 s."""
STALE = timedelta(seconds=5)
"""And so long while the next one is made: as long as the usual pause between two passes."""
_MOST_GONE = 2000
"""Segments that are gone and still remembered."""
Key = tuple[str, str]
There = tuple[Listing, Listing]
"""Nodes and pods."""


class Sight:
    """Used by many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reading = threading.Lock()
        self._state = threading.Lock()
        self._measured: tuple[datetime, Measured] | None = None
        self._used: set[Key] = set()
        self._speakers: dict[tuple[str, str], tuple[Speaker, datetime]] = {}
        self._drawing = threading.Lock()
        self._pictures: tuple[Picture, ...] = ()
        self._held: tuple[tuple[Generation, Read], Held] | None = None
        self._readings = 0
        self._gone: dict[Key, tuple[Speaker, datetime]] = {}

    def measured(self, key: Key, there: There, metrics: Metrics, clock: Clock) -> Measured:
        """What metrics say of the nodes, for the resource `key`. A reading that is no longer fresh but new to it will do, and the next is
        made beside the pass, with the picture: no pass of many waits for Prometheus. Who has seen it all waits for something new."""
        now = clock.now()
        if (kept := self._kept(key, now, FRESH)) is not None:
            return kept
        if (kept := self._kept(key, now, STALE)) is not None:
            if self._reading.acquire(blocking=False):
                threading.Thread(target=self._read_ahead, args=(there, metrics, clock), name="metrics", daemon=True).start()
            return kept
        self._reading.acquire()
        if (kept := self._kept(key, clock.now(), FRESH)) is not None:
            self._reading.release()
            return kept  # somebody has read it meanwhile
        return self._read(key, there, metrics, clock)

    def _read_ahead(self, there: There, metrics: Metrics, clock: Clock) -> None:
        """Read and draw, and only then show it: passes go on with the reading and the picture of before. Gives back `_reading`."""
        try:
            nodes, pods = there
            found = self._metrics(there, metrics, clock)
            with self._drawing:
                standing = self._standing(nodes, pods)
            drawn = picture_of(standing, found, self._settings)
            with self._drawing:
                self._pictures = (drawn, *self._pictures[:1])
            self._show(found, (), clock)
        finally:
            self._reading.release()

    def _read(self, by: Key, there: There, metrics: Metrics, clock: Clock) -> Measured:
        """Read for this resource, and give back `_reading`, which the caller holds."""
        try:
            found = self._metrics(there, metrics, clock)
            self._show(found, (by,), clock)
            return found
        finally:
            self._reading.release()

    def remember(self, gone: Mapping[Key, tuple[Speaker, datetime]]) -> None:
        """Segments that are gone, and since when, as a status keeps them: what they measured of links is believed as before a restart."""
        with self._state:
            self._gone.update(gone)

    def _metrics(self, there: There, metrics: Metrics, clock: Clock) -> Measured:
        """One more reading; by whom holds `_reading`."""
        self._readings += 1
        found = read_metrics(metrics, self._directory(there, clock.now()), self._settings)
        return found.model_copy(update={"reading": self._readings})

    def _directory(self, there: There, now: datetime) -> Directory:
        """Whose figures are whose; by whom holds `_reading`. Segments that are gone are remembered while what they measured of
        links is of use."""
        nodes, pods = there
        speakers = {(found.namespace, found.name): (found, now) for found in speakers_of(pods, self._settings.operator_namespace)}
        keep = timedelta(seconds=self._settings.link_max_age_seconds)
        with self._state:
            self._gone = {key: (found, seen) for key, (found, seen) in self._gone.items() if abs(now - seen) < keep}
            known = {**self._gone, **self._speakers}
        before = {key: (found, seen) for key, (found, seen) in known.items() if now - seen < keep and key not in speakers}
        self._speakers = {**dict(list(before.items())[-_MOST_GONE:]), **speakers}
        past = {key: found for key, (found, _) in before.items()}
        return Directory(nodes, pods, self._settings.operator_namespace, past)

    def _show(self, found: Measured, used: Iterable[Key], clock: Clock) -> None:
        with self._state:
            # Counted from when it is there: reading may take long itself.
            self._measured, self._used = (clock.now(), found), {*used}

    def _kept(self, key: Key, now: datetime, age: timedelta) -> Measured | None:
        with self._state:
            if self._measured is None or now - self._measured[0] >= age or key in self._used:
                return None
            self._used.add(key)
            return self._measured[1]

    def picture(self, nodes: Listing, pods: Listing, measured: Measured) -> Picture:
        """The picture, drawn anew only when one of the three is of another generation. The one before is kept for passes that have its
        metrics."""
        with self._drawing:
            standing = self._standing(nodes, pods)
            for kept in self._pictures:
                if kept.standing.read == standing.read and kept.measured.reading == measured.reading:
                    return kept
            drawn = picture_of(standing, measured, self._settings)
            self._pictures = (drawn, *self._pictures[:1])
            return drawn

    def _standing(self, nodes: Listing, pods: Listing) -> Standing:
        """What stands there; the caller holds `_drawing`."""
        before = self._pictures[0].standing if self._pictures else None
        read = nodes.generation, pods.generation
        return before if before is not None and before.read == read else standing_of(nodes, pods, self._settings, before, read)

    def held(self, resources: Listing, standing: Standing) -> Held:
        """What plans hold that is not on its node yet, added up anew only when resources or pods are others than last time."""
        with self._drawing:
            read = resources.generation, standing.read
            if self._held is None or self._held[0] != read:
                self._held = read, held_by(resources, standing.there)
            return self._held[1]
