"""What a watch keeps: the same answer until something changes, own writes at once, and no answer at all once the watch has been lost."""

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from splitinference.adapters.kubernetes.store import Mirror, Source
from splitinference.controller.ports import Manifest, UnavailableError


def a_thing(name: str, version: int, **content: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team", "resourceVersion": str(version)}, **content}


class Server:
    """An API server for one kind: lists what it has, and sends what is put into the stream; None ends the stream."""

    def __init__(self, *things: dict[str, Any], version: int = 10) -> None:
        self.things, self.version = list(things), version
        self.events: queue.Queue[bytes | None] = queue.Queue()
        self.asked_from: list[str] = []
        self.lists = 0
        self.away = False

    def listed(self) -> Iterator[tuple[list[Manifest], str]]:
        """One thing a page."""
        self.lists += 1
        if self.away:
            raise UnavailableError("connection refused")
        for thing in self.things:
            yield [thing], str(self.version)
        yield [], str(self.version)

    def watched(self, version: str) -> "Server":
        if self.away:
            raise UnavailableError("connection refused")
        self.asked_from.append(version)
        return self

    def __iter__(self) -> Iterator[bytes]:
        while (event := self.events.get()) is not None:
            yield event

    def close(self) -> None:
        pass

    def shutdown(self) -> None:
        self.events.put(None)

    def send(self, kind: str, thing: dict[str, Any]) -> None:
        self.events.put(json.dumps({"type": kind, "object": thing}).encode())


@contextmanager
def mirroring(server: Server, lost_seconds: float = 15.0, kept: Callable[[Manifest], Manifest] = dict) -> Iterator[Mirror]:
    mirror = Mirror(Source("Thing", server.listed, server.watched, kept), lost_seconds)
    try:
        yield mirror
    finally:
        mirror.stop()
        server.events.put(None)


def until(holds: Callable[[], bool]) -> None:
    for _ in range(500):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never came to hold")


def names(mirror: Mirror) -> set[str]:
    return {thing["metadata"]["name"] for thing in mirror.all()}


def test_each_change_is_another_generation_and_nothing_else_is():
    server = Server(a_thing("a", 1))
    with mirroring(server) as mirror:
        first = mirror.all()
        assert mirror.all().generation == first.generation
        server.send("MODIFIED", a_thing("a", 11))
        server.send("ADDED", a_thing("b", 12))
        until(lambda: names(mirror) == {"a", "b"})
        second = mirror.all()
        assert second.generation > first.generation
        server.send("DELETED", a_thing("a", 13))
        until(lambda: names(mirror) == {"b"})
        assert mirror.all().generation > second.generation
        assert server.lists == 1


def beats(thing: Manifest) -> dict[str, Any]:
    """Of a thing all but when it was last heard of."""
    return {"metadata": {"name": thing["metadata"]["name"]}, "size": thing.get("size")}


def test_what_is_not_kept_is_no_change_and_nobody_is_told():
    server = Server(a_thing("a", 1, size=1, beat=1))
    told: list[bool] = []
    with mirroring(server, kept=beats) as mirror:
        mirror.tell(lambda _, gone: told.append(gone))
        until(lambda: told == [False])
        first = mirror.all()
        server.send("MODIFIED", a_thing("a", 11, size=1, beat=2))
        server.send("MODIFIED", a_thing("a", 12, size=1, beat=3))
        until(server.events.empty)
        mirror.wrote(a_thing("a", 11, size=7))  # older than what was seen last, though that changed nothing
        assert mirror.all().generation == first.generation
        server.send("MODIFIED", a_thing("a", 13, size=2, beat=4))
        until(lambda: told == [False, False])
        assert mirror.all() == ({"metadata": {"name": "a"}, "size": 2},)
        server.send("DELETED", a_thing("a", 14))
        until(lambda: told == [False, False, True])


def test_of_a_new_list_what_differs_is_told():
    server = Server(a_thing("a", 1), a_thing("c", 2))
    told: list[tuple[str, bool]] = []
    with mirroring(server) as mirror:
        mirror.tell(lambda thing, gone: told.append((thing["metadata"]["name"], gone)))
        until(lambda: told == [("a", False), ("c", False)])
        told.clear()
        generation = mirror.all().generation
        for things, expected in (
            ([a_thing("a", 1), a_thing("c", 2)], []),
            ([a_thing("b", 90), a_thing("c", 2)], [("b", False), ("a", True)]),
        ):
            lists = server.lists
            server.things, server.version = things, 91
            server.send("ERROR", {"code": 410, "message": "too old resource version"})
            until(lambda lists=lists: server.lists > lists and len(server.asked_from) > lists)
            assert told == expected
            assert (mirror.all().generation > generation) is bool(expected)


def test_own_writes_are_seen_at_once_and_older_events_do_not_undo_them():
    server = Server(a_thing("a", 1, step=0))
    with mirroring(server) as mirror:
        mirror.all()
        mirror.wrote(a_thing("a", 20, step=2))
        found = mirror.get("team", "a")
        assert found is not None
        assert found["step"] == 2
        server.send("MODIFIED", a_thing("a", 15, step=1))
        server.send("ADDED", a_thing("b", 21))
        until(lambda: "b" in names(mirror))
        found = mirror.get("team", "a")
        assert found is not None
        assert found["step"] == 2


def test_what_we_deleted_does_not_come_back_with_a_late_event():
    server = Server(a_thing("a", 5))
    with mirroring(server) as mirror:
        mirror.all()
        mirror.deleted("team", "a")
        assert mirror.all() == ()
        server.send("MODIFIED", a_thing("a", 5))
        server.send("ADDED", a_thing("b", 12))
        until(lambda: "b" in names(mirror))
        assert names(mirror) == {"b"}
        server.send("ADDED", a_thing("a", 14))
        until(lambda: names(mirror) == {"a", "b"})


def test_who_is_told_can_read_what_it_is_told():
    """A pass that is woken by a change must not read the state before it."""
    server = Server(a_thing("a", 1, step=0))
    told: list[tuple[str, bool]] = []
    wrong: list[str] = []

    with mirroring(server) as mirror:

        def changed(thing: Manifest, gone: bool) -> None:
            name = thing["metadata"]["name"]
            told.append((name, gone))
            if gone != (mirror.get("team", name) is None):
                wrong.append(name)

        mirror.tell(changed)
        until(lambda: told == [("a", False)])
        server.send("ADDED", a_thing("b", 11))
        server.send("MODIFIED", a_thing("a", 12, step=1))
        server.send("DELETED", a_thing("b", 13))
        until(lambda: len(told) == 4)
        assert told[1:] == [("b", False), ("a", False), ("b", True)]
        mirror.wrote(a_thing("a", 14, step=2))
        assert told[4:] == [("a", False)], "what we wrote ourselves, too"
        server.send("MODIFIED", a_thing("a", 14, step=2))
        mirror.deleted("team", "a")
        assert told[5:] == [("a", True)]
        assert not wrong


def test_a_stream_that_ends_is_followed_from_where_it_was():
    server = Server(a_thing("a", 1))
    with mirroring(server) as mirror:
        mirror.all()
        server.send("BOOKMARK", a_thing("", 42))
        until(server.events.empty)
        server.events.put(None)
        until(lambda: len(server.asked_from) == 2)
        assert server.asked_from == ["10", "42"]
        assert server.lists == 1
        assert names(mirror) == {"a"}


def test_a_version_that_is_too_old_is_listed_anew():
    server = Server(a_thing("a", 1))
    with mirroring(server) as mirror:
        mirror.all()
        server.things = [a_thing("b", 90)]
        server.version = 91
        server.send("ERROR", {"code": 410, "message": "too old resource version"})
        until(lambda: names(mirror) == {"b"})
        assert server.lists == 2


def test_an_event_that_makes_no_sense_is_answered_by_a_new_list_not_by_silence():
    server = Server(a_thing("a", 1))
    with mirroring(server) as mirror:
        mirror.all()
        server.things = [a_thing("b", 90)]
        server.events.put(b"no json\n")
        until(lambda: names(mirror) == {"b"})


def test_a_watch_that_is_lost_for_long_gives_no_answer_and_a_restored_one_does():
    server = Server(a_thing("a", 1))
    with mirroring(server, lost_seconds=0.1) as mirror:
        mirror.all()
        server.away = True
        server.events.put(None)

        def refused() -> bool:
            try:
                mirror.all()
            except UnavailableError as error:
                return "connection refused" in str(error)
            return False

        until(refused)
        server.away = False
        until(lambda: not refused())
        assert names(mirror) == {"a"}


def test_readers_wait_for_the_first_list():
    gate = threading.Event()
    server = Server(a_thing("a", 1))

    def slow() -> Iterator[tuple[list[Manifest], str]]:
        gate.wait(5)
        yield from server.listed()

    mirror = Mirror(Source("Thing", slow, server.watched, dict))
    found: list[int] = []
    reader = threading.Thread(target=lambda: found.append(len(mirror.all())))
    reader.start()
    assert found == []
    gate.set()
    reader.join(5)
    mirror.stop()
    assert found == [1]
