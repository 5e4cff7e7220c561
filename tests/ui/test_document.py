"""What the page shows of a cluster, who sees what of it, and what is sent when it changes."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.ports import Sample, Samples
from splitinference.core.values.cluster import Link, LinkQuality, Network
from splitinference.ui.page.document import LONGEST, Document, Scope, difference
from splitinference.ui.page.figures import MOST_LINKS, link_items
from splitinference.ui.page.history import MOST_DECISIONS, MOST_POINTS, History
from splitinference.ui.page.resources import Load
from tests.controller.stories import serving, small
from tests.controller.world import NAMESPACE, World, a_body
from tests.ui.pages import document_from

KEY = f"{NAMESPACE}/chat"


def measured(**cores: float) -> Measured:
    return Measured(node_cpu_cores=Samples(by_name={name: Sample(value, 1.0) for name, value in cores.items()}))


def changed_in(document: Document, kind: str, key: str, **more: Any) -> Document:
    items = document.items(kind)
    return replace(document, **{kind: {**items, key: {**items[key], **more}}})


def test_nodes_show_what_others_use_and_what_we_hold():
    world, _ = serving()
    used = dict.fromkeys(world.nodes, 1.5)
    segments = list(world.segments())
    found = Measured(
        node_cpu_cores=Samples(by_name={name: Sample(value, 1.0) for name, value in used.items()}),
        segment_cpu_cores=Samples(by_name={f"{NAMESPACE}/{name}": Sample(0.5, 1.0) for name in segments}),
    )
    document = document_from(world, measured=found)
    holding = [node for node in document.nodes.values() if any(held["component"] == "segment" for held in node["held"])]
    assert len(holding) == 2
    for node in holding:
        assert (node["usedByOthers"], node["usedByUs"]) == (0.5, 0.25)
        assert node["oursMib"] > 0
        assert abs(node["memoryMib"] - node["oursMib"] - node["othersMib"] - node["freeMib"]) <= 2


def test_what_is_not_measured_is_unknown_and_not_zero():
    world, _ = serving()
    document = document_from(world, measured=measured())
    assert {node["usedByOthers"] for node in document.nodes.values()} == {None}
    assert document.resources[KEY]["running"] is None


def test_requests_in_flight_are_those_of_all_gateways():
    world, _ = serving()
    gateways = [name for kind, _, name in world.objects if kind == "Pod" and name.startswith("chat-gateway")]
    document = document_from(world, loads={(NAMESPACE, name): Load(3, 1) for name in gateways})
    item = document.resources[KEY]
    assert gateways
    assert (item["running"], item["waitingRequests"]) == (3 * len(gateways), len(gateways))


def test_during_a_move_the_chain_that_serves_is_found():
    world, operator = serving(small("a", "b", "c", "d"))
    before = [s["node"] for s in world.status()["plan"]["segments"]]
    world.nodes[before[1]]["spec"]["unschedulable"] = True
    moving = None
    for _ in range(12):
        operator.run(1)
        item = document_from(world).resources[KEY]
        if item["transition_from"]:
            moving = item
            break
    assert moving is not None, world.status()
    planned = [s["node"] for p in moving["plan"]["pipelines"] for s in p["segments"]]
    serves = [s["node"] for p in moving["serving"] for s in p["segments"]]
    assert planned != before
    assert serves == before
    assert moving["leaving"]


def test_a_resource_that_was_never_planned_is_shown():
    world = World(small("a"))
    world.add(a_body())
    item = document_from(world).resources[KEY]
    assert item["plan"] is None
    assert item["conditions"] == []


def test_statuses_of_other_versions_do_not_break_the_page():
    for status in (
        {"plan": {"segments": "none"}},
        {"plan": []},
        {"decisions": {"a": 1}},
        {"conditions": [7]},
        {"plan": {"segments": [{}]}},
    ):
        world = World(small("a"))
        world.add({**a_body(), "status": status})
        assert KEY in document_from(world).resources


def test_long_texts_are_cut():
    world, _ = serving()
    world.status()["plan"]["explanation"] = ["x" * 100_000]
    item = document_from(world).resources[KEY]
    assert len(item["plan"]["explanation"][0]) == LONGEST + 1


def test_links_between_nodes_that_serve_come_first_and_the_rest_is_counted():
    quality = LinkQuality(bandwidth_bytes_per_s=1.25e6, rtt_ms=4.0)
    links = tuple(Link(source=f"n{a}", target=f"n{b}", quality=quality) for a in range(60) for b in range(60) if a != b)
    items, count = link_items(Network(links=links), ["n58", "n59"])
    assert (len(items), count) == (MOST_LINKS, 60 * 59)
    assert items["n58→n59"] == {"source": "n58", "target": "n59", "mbps": 10.0, "rttMs": 4.0}


def test_only_what_changed_is_sent():
    world, _ = serving()
    before = document_from(world)
    assert difference(before, before)["notes"] == []
    assert "nodes" not in difference(before, before)
    after = changed_in(before, "nodes", "a", usedByOthers=0.9)
    after = replace(after, resources={}, notes=("a note",))
    sent = difference(before, after)
    assert list(sent["nodes"]["set"]) == ["a"]
    assert sent["nodes"]["gone"] == []
    assert sent["resources"] == {"set": {}, "gone": [KEY]}
    assert "links" not in sent
    assert sent["notes"] == ["a note"]


def test_who_may_see_one_namespace_sees_nothing_of_others():
    world, _ = serving()
    document = document_from(world)
    other = {**document.resources[KEY], "namespace": "secret", "name": "plans", "key": "secret/plans"}
    node = {**document.nodes["a"], "held": [{"namespace": "secret", "resource": "plans", "segment": "s", "component": "segment"}]}
    document = replace(document, resources={**document.resources, "secret/plans": other}, nodes={**document.nodes, "a": node})
    seen = Scope(frozenset({NAMESPACE})).of(document)
    assert "secret" not in repr((seen.resources, seen.nodes))
    assert seen.nodes["a"]["held"] == []
    without_nodes = Scope(None, nodes=False).of(document)
    assert (without_nodes.nodes, without_nodes.links) == ({}, {})
    assert "may not list nodes" in without_nodes.notes[-1]


def test_history_is_bounded_and_forgets_what_is_gone():
    world, _ = serving()
    document, history = document_from(world), History(timedelta(seconds=1))
    for step in range(MOST_POINTS + 100):
        decision = {"time": str(step), "reason": "r", "revision": str(step), "message": "", "transition": "keep", "outcome": {}}
        document = changed_in(document, "resources", KEY, decisions=[decision])
        history.add(replace(document, read=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=step)))
    past = history.of(KEY)
    assert (len(past["points"]), len(past["decisions"])) == (MOST_POINTS, MOST_DECISIONS)
    assert past["decisions"][0]["time"] == str(MOST_POINTS + 99)
    history.add(replace(document, resources={}))
    assert history.of(KEY) == {"points": [], "decisions": []}


def test_the_outcome_of_a_decision_is_taken_over_when_it_is_known():
    world, _ = serving()
    document, history = document_from(world), History()
    history.add(document)
    first, *_ = document.resources[KEY]["decisions"]
    history.add(changed_in(document, "resources", KEY, decisions=[{**first, "outcome": {"paid": True}}]))
    decisions = history.of(KEY)["decisions"]
    assert [d["outcome"] for d in decisions if d["revision"] == first["revision"]] == [{"paid": True}]
