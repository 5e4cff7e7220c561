"""The cluster as its watches have it: of several namespaces put together once for each change."""

from collections.abc import Iterator
from typing import Any

import pytest

from splitinference.adapters.kubernetes import cluster as watched
from splitinference.adapters.kubernetes.cluster import WatchedCluster
from splitinference.adapters.kubernetes.store import Mirror, Source
from tests.adapters.kubernetes.test_mirror import Server, until

SPACES = ("one", "two", "three")


def a_thing(namespace: str, name: str, version: int, **labels: str) -> dict[str, Any]:
    owner = {"apiVersion": "splitinference.dev/v1alpha1", "kind": "SplitInference", "name": "chat", "uid": "u", "controller": True}
    about = {"name": name, "namespace": namespace, "resourceVersion": str(version), "labels": labels, "ownerReferences": [owner]}
    return {"kind": "Service", "metadata": about}


OURS = {"app.kubernetes.io/managed-by": "splitinference", "app.kubernetes.io/instance": "chat"}


@pytest.fixture
def servers() -> dict[tuple[str, str], Server]:
    return {}


@pytest.fixture
def cluster(servers: dict[tuple[str, str], Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedCluster]:
    def mirror(_: WatchedCluster, kind: str, namespace: str, __: object) -> Mirror:
        server = servers[kind, namespace] = Server(a_thing(namespace, f"in-{namespace}", 1, **OURS))
        return Mirror(Source(kind, server.listed, server.watched, dict))

    monkeypatch.setattr(WatchedCluster, "_mirror", mirror)
    made = WatchedCluster(None, 5.0, SPACES, lambda *_: None, lambda _: None)  # type: ignore[arg-type]
    yield made
    made.stop()
    for server in servers.values():
        server.events.put(None)


def test_several_namespaces_are_put_together_once_until_one_of_them_changes(
    cluster: WatchedCluster, servers: dict[tuple[str, str], Server], monkeypatch: pytest.MonkeyPatch
):
    sorted_out: list[int] = []
    by_owner = watched._by_owner
    monkeypatch.setattr(watched, "_by_owner", lambda things: sorted_out.append(len(things)) or by_owner(things))
    first = cluster.split_inferences()
    assert [thing["metadata"]["name"] for thing in first] == ["in-one", "in-two", "in-three"]
    assert cluster.split_inferences() is first
    for namespace in SPACES:
        assert len(cluster.owned("Service", namespace, "chat")) == 1
    assert sorted_out == [3], "once, and not at each question"
    servers["SplitInference", "two"].send("ADDED", a_thing("two", "more", 11))
    until(lambda: len(cluster.split_inferences()) == 4)
    second = cluster.split_inferences()
    assert second.generation != first.generation
    assert cluster.split_inferences() is second
    servers["Service", "three"].send("DELETED", a_thing("three", "in-three", 12))
    until(lambda: cluster.owned("Service", "three", "chat") == ())
    assert len(cluster.owned("Service", "one", "chat")) == 1
    assert len(sorted_out) >= 2


def test_two_changes_in_different_namespaces_are_two_generations(cluster: WatchedCluster, servers: dict[tuple[str, str], Server]):
    """A sum of their numbers would be the same for one change here and for one there."""
    first = cluster.split_inferences()
    servers["SplitInference", "one"].send("ADDED", a_thing("one", "more", 11))
    until(lambda: len(cluster.split_inferences()) == 4)
    one = cluster.split_inferences().generation
    servers["SplitInference", "one"].send("DELETED", a_thing("one", "more", 12))
    servers["SplitInference", "two"].send("ADDED", a_thing("two", "more", 13))
    until(lambda: {t["metadata"]["namespace"] for t in cluster.split_inferences() if t["metadata"]["name"] == "more"} == {"two"})
    assert len({first.generation, one, cluster.split_inferences().generation}) == 3


def test_what_wakes_passes_is_told_of_all_namespaces(cluster: WatchedCluster, servers: dict[tuple[str, str], Server]):
    told: list[tuple[str, str, bool]] = []
    cluster.on_change(lambda kind, thing, gone: told.append((kind, thing["metadata"]["namespace"], gone)))
    until(lambda: {("SplitInference", namespace, False) for namespace in SPACES} <= set(told))
    until(lambda: {("Pod", "", False), ("Node", "", False)} <= set(told))
    servers["SplitInference", "three"].send("DELETED", a_thing("three", "in-three", 11))
    until(lambda: ("SplitInference", "three", True) in told)
    assert not any(kind == "Service" for kind, _, _ in told)
    told.clear()
    servers["Pod", ""].send("ADDED", a_thing("one", "of-others", 12))
    servers["Pod", ""].send("ADDED", a_thing("two", "of-ours", 13, **OURS))
    until(lambda: bool(told))
    assert told == [("Pod", "two", False)], "others' pods come and go by thousands"
