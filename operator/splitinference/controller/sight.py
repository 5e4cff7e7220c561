"""What passes of all resources share, so that a hundred resources do not look a hundred times: metrics of a moment ago, and the picture of
nodes and links as one sees it who has nothing there.

No pass gets a reading of metrics twice that the same resource has seen: what is to be confirmed is confirmed by something new.
"""

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta

from splitinference.controller.ports import Manifest, Metrics
from splitinference.controller.readings import Measured, read_metrics
from splitinference.controller.snapshot import Picture, picture_of
from splitinference.settings import Settings

FRESH = timedelta(seconds=2)
"""So long one resource's reading of metrics will do for the others: Prometheus has nothing newer sooner than every 5 s."""
Key = tuple[str, str]


class Sight:
    """Used by many threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._reading = threading.Lock()
        self._measured: tuple[datetime, Measured] | None = None
        self._used: set[Key] = set()
        self._drawing = threading.Lock()
        self._picture: Picture | None = None

    def measured(self, key: Key, metrics: Metrics, now: datetime) -> Measured:
        """What metrics say, for the resource `key`."""
        with self._reading:
            kept = self._measured
            if kept is None or now - kept[0] >= FRESH or key in self._used:
                kept = self._measured = now, read_metrics(metrics)
                self._used = set()
            self._used.add(key)
            return kept[1]

    def picture(self, nodes: Sequence[Manifest], pods: Sequence[Manifest], measured: Measured) -> Picture:
        """The picture, drawn anew only when one of the three is another than last time."""
        with self._drawing:
            kept = self._picture
            if kept is None or kept.nodes_read is not nodes or kept.pods_read is not pods or kept.measured is not measured:
                kept = self._picture = picture_of(nodes, pods, measured, self._settings)
            return kept
