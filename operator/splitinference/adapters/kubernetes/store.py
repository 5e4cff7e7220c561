"""One kind of objects as the API server has it: listed once, then kept by a watch in a thread of its own.

What is read has a generation number that grows with every change, so that what was computed from it can be kept too. Who asked to be told
of changes is told after they can be read. Own writes are put in with the answer to the write, so nobody waits for the watch to see them. A
mirror whose watch has been broken for long says so instead of answering: old objects are not the cluster.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import urllib3

from splitinference.adapters.failures import in_words
from splitinference.controller.ports import Listing, Manifest, UnavailableError

log = logging.getLogger(__name__)

LOST_SECONDS = 15.0
"""A watch that has been broken for so long is no picture of the cluster any more."""
FIRST_SECONDS = 30.0
"""The first list may take so long."""
PAUSE_SECONDS = 1.0
Key = tuple[str, str]
"""Namespace (empty where there is none) and name."""


Changed = Callable[[Manifest, bool], None]
"""Called with an object, and whether it is gone."""


class Stream(Protocol):
    """An open watch: lines of JSON, until it is closed from either side."""

    def __iter__(self) -> Iterator[bytes]:
        """The next event."""

    def close(self) -> None:
        """Give it back, by whom has read it."""

    def shutdown(self) -> None:
        """End it while another thread reads it."""


@dataclass(frozen=True)
class Source:
    """Where the objects come from. `listed` gives all, page by page, each with the version to watch from; `watched` an open stream from a
    version on; `kept` what of an object is worth its memory: where that is as before, nothing has changed."""

    kind: str
    listed: Callable[[], Iterable[tuple[list[Manifest], str]]]
    watched: Callable[[str], Stream]
    kept: Callable[[Manifest], Manifest]


class Mirror:
    """Objects of one kind, read by many threads."""

    def __init__(self, source: Source, lost_seconds: float = LOST_SECONDS) -> None:
        self._source = source
        self._lost_seconds = lost_seconds
        self._lock = threading.Lock()
        self._objects: dict[Key, Manifest] = {}
        self._versions: dict[Key, int] = {}
        self._gone: dict[Key, int] = {}
        self._horizon = 0
        self._generation = 0
        self._listing: Listing | None = None
        self._first = threading.Event()
        self._lost_since: float | None = time.monotonic()
        self._why = "it was not read yet"
        self._stopped = False
        self._stream: Stream | None = None
        self._thread: threading.Thread | None = None
        self._told: Changed | None = None

    # --- reading ---------------------------------------------------------------------------------------------------------------------

    def all(self) -> Listing:
        """All objects, with one generation number. Raises UnavailableError where that is not known."""
        self._wait()
        with self._lock:
            if self._listing is None:
                self._listing = Listing(self._objects.values(), (self._generation,))
            return self._listing

    def get(self, namespace: str, name: str) -> Manifest | None:
        """One object. Raises UnavailableError where that is not known."""
        self._wait()
        with self._lock:
            return self._objects.get((namespace, name))

    def _wait(self) -> None:
        self._start()
        if not self._first.wait(FIRST_SECONDS):
            raise UnavailableError(f"{self._source.kind} objects cannot be read: {self._why}")
        since = self._lost_since
        if since is not None and time.monotonic() - since > self._lost_seconds:
            raise UnavailableError(f"{self._source.kind} objects cannot be watched for {time.monotonic() - since:.0f} s: {self._why}")

    def tell(self, changed: Changed) -> None:
        """Begin to watch, and call `changed` with each object that is there, and later with each one that changed: in the thread that
        brought it, and after it can be read."""
        self._told = changed
        self._start()

    def _changed(self, things: Iterable[tuple[Manifest, bool]]) -> None:
        if self._told is not None:
            for thing, gone in things:
                self._told(thing, gone)

    # --- own writes ------------------------------------------------------------------------------------------------------------------

    def wrote(self, answer: Mapping[str, Any]) -> None:
        """What the API server answered to a write of ours: the object as it is now."""
        if "metadata" in answer and "resourceVersion" in answer["metadata"]:
            self._put(answer)

    def deleted(self, namespace: str, name: str) -> None:
        """We deleted it, and it is gone at once."""
        self._drop((namespace, name), None)

    # --- the watch -------------------------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the watch."""
        self._stopped = True
        if (stream := self._stream) is not None:
            with suppress(OSError, ValueError, urllib3.exceptions.HTTPError):
                stream.shutdown()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=f"watch of {self._source.kind}", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        version = ""
        while not self._stopped:
            began = time.monotonic()
            try:
                if not version:
                    version = self._list()
                version = self._follow(version)
            except Exception as error:  # noqa: BLE001 - whatever it is: a watch that ends for good would leave old objects standing
                self._lose(in_words(error))
                version = version if isinstance(error, UnavailableError | urllib3.exceptions.HTTPError | OSError) else ""
            if time.monotonic() - began < PAUSE_SECONDS:
                time.sleep(PAUSE_SECONDS)

    def _list(self) -> str:
        found: dict[Key, Manifest] = {}
        versions: dict[Key, int] = {}
        version = ""
        for page, version in self._source.listed():  # noqa: B007 - the last page's is the list's
            for thing in page:
                key = _key(thing)
                found[key], versions[key] = self._source.kept(thing), _version(thing)
        with self._lock:
            before = self._objects
            # What we wrote after the list was made is newer than the list.
            for key, written in self._versions.items():
                if written > _as_number(version):
                    found[key], versions[key] = before[key], written
            self._objects, self._versions = found, versions
            self._horizon = _as_number(version)
            self._gone.clear()
            if found != before:
                self._is_another()
        self._regain()
        self._changed([(thing, False) for key, thing in found.items() if before.get(key) != thing])
        self._changed([(thing, True) for key, thing in before.items() if key not in found])
        return version

    def _follow(self, version: str) -> str:
        """Until the server ends the stream; the version to go on from, empty where everything must be listed anew."""
        stream = self._stream = self._source.watched(version)
        self._regain()
        try:
            for line in stream:
                event = json.loads(line)
                thing = event["object"]
                if event["type"] == "ERROR":
                    log.debug("the watch of %s restarts: %s", self._source.kind, thing.get("message"))
                    return ""
                version = str(thing["metadata"]["resourceVersion"])
                if event["type"] == "DELETED":
                    self._drop(_key(thing), _as_number(version))
                elif event["type"] != "BOOKMARK":
                    self._put(thing)
                self._horizon = _as_number(version)
                if self._stopped:
                    break
        finally:
            self._stream = None
            stream.close()
        return version

    def _put(self, thing: Mapping[str, Any]) -> None:
        key, version, kept = _key(thing), _version(thing), self._source.kept(dict(thing))
        with self._lock:
            before = self._versions.get(key)
            if (before is not None and before >= version) or self._gone.get(key, -1) >= version:
                return
            if before is None and 0 < version <= self._horizon:
                return  # up to there all is known, so it is gone
            self._gone.pop(key, None)
            self._versions[key] = version
            if self._objects.get(key) == kept:
                return
            self._objects[key] = kept
            self._is_another()
        self._changed([(kept, False)])

    def _drop(self, key: Key, version: int | None) -> None:
        with self._lock:
            before = self._versions.get(key)
            if before is None or (version is not None and before > version):
                if version is not None:
                    self._gone.pop(key, None)
                return
            dropped = self._objects.pop(key)
            del self._versions[key]
            self._is_another()
            if version is None:
                # Events of before our deletion may still come.
                self._gone[key] = before
            else:
                self._gone.pop(key, None)
        self._changed([(dropped, True)])

    def _is_another(self) -> None:
        """The content changed; the caller holds the lock."""
        self._generation += 1
        self._listing = None

    def _lose(self, why: str) -> None:
        self._why = why
        if self._lost_since is None:
            self._lost_since = time.monotonic()
            log.warning("the watch of %s failed: %s", self._source.kind, why)

    def _regain(self) -> None:
        self._lost_since = None
        self._first.set()


def _key(thing: Mapping[str, Any]) -> Key:
    metadata = thing["metadata"]
    return str(metadata.get("namespace", "")), str(metadata["name"])


def _version(thing: Mapping[str, Any]) -> int:
    return _as_number(thing["metadata"].get("resourceVersion", ""))


def _as_number(version: object) -> int:
    """Versions of one kind can be ordered as numbers (KEP-5504 says so; servers before it kept to it); another form counts as oldest."""
    text = str(version)
    return int(text) if text.isdecimal() else 0
