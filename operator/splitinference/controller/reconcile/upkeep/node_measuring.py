"""Measures nodes, one after the other, beside the passes: each look takes one step, and a restart finds out anew where it is."""

import logging
import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Protocol

from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.figures.node_benchmark import (
    MEASURE,
    STORE,
    Records,
    There,
    next_step,
    pending,
    read_store,
    store_object,
    with_figures,
)
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.ports import Benchmarks, Clock, Listing, Manifest, RefusedError, UnavailableError
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.settings import Settings

log = logging.getLogger(__name__)

BUSY_SECONDS, IDLE_SECONDS = 2.0, 30.0
"""Between two looks: while a node is measured or waits to be, and otherwise."""


def nodes_to_wait_for(benchmarks: Benchmarks | None, resource: Resource, seen: Seen, settings: Settings) -> tuple[str, ...]:
    """Nodes that a first plan of this resource should wait for: those that it may use, within the time that it may wait."""
    if benchmarks is None:
        return ()
    try:
        created = datetime.fromisoformat(str(seen.body["metadata"]["creationTimestamp"]))
    except (KeyError, ValueError):
        return ()
    if not timedelta(0) <= seen.now - created < timedelta(seconds=settings.measure_wait_seconds):
        return ()
    selector = resource.spec.placement.node_selector.items()
    return benchmarks.pending([node for node in seen.nodes if selector <= labels_of(node).items()])


class Store(Protocol):
    """The operator's own namespace, read and written directly: others' resources may be all that is watched."""

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object."""

    def apply(self, manifest: Manifest) -> None:
        """Make the object be as this says."""

    def create(self, manifest: Manifest) -> None:
        """Create it; already there is success."""

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete it; not found is success."""

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        """Objects with our labels for this instance, ended pods included."""


class Nodes(Protocol):
    """What is watched."""

    def nodes(self) -> Listing:
        """All nodes."""

    def pods(self) -> Listing:
        """All pods."""


class Measuring:
    """Implements `Benchmarks`. `look` is called by one thread, the others by many."""

    def __init__(self, watched: Nodes, store: Store, clock: Clock, settings: Settings) -> None:
        self._watched, self._store, self._clock, self._settings = watched, store, clock, settings
        self._lock = threading.Lock()
        self._records: Records | None = None
        self._kept = 0
        self._shown: Listing | None = None
        self._nodes: dict[str, Manifest] = {}
        self._said = ""
        self._refused = False

    def look(self) -> float:
        """One step; seconds until the next. Raises nothing that is expected: what fails is tried again."""
        try:
            return self._look()
        except (UnavailableError, RefusedError) as error:
            # Once for the same words: a right that is missing stays missing.
            if str(error) != self._said:
                log.warning("nodes cannot be measured: %s", error)
            self._said, self._refused = str(error), isinstance(error, RefusedError)
            return IDLE_SECONDS

    def _look(self) -> float:
        namespace = self._settings.operator_namespace
        records = self._records
        if records is None:
            records = read_store(self._store.get("ConfigMap", namespace, STORE))
            self._keep(records)
        nodes = self._watched.nodes()
        there = There(nodes, self._watched.pods(), self._store.owned("Pod", namespace, MEASURE))
        step = next_step(there, records, self._clock.now(), self._settings)
        if step.records:
            # Kept before the pod is gone that says it.
            self._store.apply(store_object(step.records, self._settings))
            for uid, record in step.records.items():
                if record != records.get(uid):
                    log.info(
                        "node %s: %s", record.name, f"not measured: {record.why}" if record.failures else f"measured: {dict(record.rates)}"
                    )
            self._keep(step.records)
        for name in step.delete:
            self._store.delete("Pod", namespace, name)
        if step.create is not None:
            self._store.create(step.create)
        self._said, self._refused = "", False
        return BUSY_SECONDS if step.create is not None or there.measuring or self.pending(nodes) else IDLE_SECONDS

    def _keep(self, records: Records) -> None:
        with self._lock:
            self._records, self._kept = records, self._kept + 1

    def shown(self, nodes: Listing) -> Listing:
        """The nodes with what was measured of them. A node's object stays the same while its content does."""
        with self._lock:
            generation = (*nodes.generation, self._kept)
            if self._shown is None or self._shown.generation != generation:
                before = self._nodes
                made = {str(node["metadata"]["name"]): with_figures(node, self._records or {}) for node in nodes}
                self._nodes = {name: before[name] if before.get(name) == node else node for name, node in made.items()}
                self._shown = Listing(self._nodes.values(), generation)
            return self._shown

    def pending(self, nodes: Sequence[Manifest]) -> tuple[str, ...]:
        """Names of nodes that are about to be measured and of which nothing else is known; none where the API server refuses to let us."""
        if self._refused:
            return ()
        with self._lock:
            records = self._records or {}
        return pending(nodes, records, self._settings)

    def run(self, stop: threading.Event) -> None:
        """Look again and again until told to stop."""
        while not stop.is_set():
            try:
                seconds = self.look()
            except Exception:
                log.exception("measuring nodes failed; it will be tried again")
                seconds = IDLE_SECONDS
            stop.wait(seconds)
