"""The shared reading of a resource: what the command line and the page see of it."""

import json
from typing import Any

from splitinference.view import moves, read, read_nodes


def a_segment(name: str, start: int, end: int, node: str, pipeline: int = 0, **more: Any) -> dict[str, Any]:
    return {"name": name, "pipeline": pipeline, "start": start, "end": end, "node": node, "phase": "Proven", "linkMs": 0.5, **more}


PLAN = {
    "revision": "aaaaaaaaaa",
    "segments": [a_segment("chat-0-4", 0, 4, "a", weightMiB=10.0, predictedMs=2.0), a_segment("chat-4-8", 4, 8, "b")],
    "optimal": True,
    "predicted": {"latencyMs": 12.0},
}


def a_resource(**status: Any) -> dict[str, Any]:
    spec = {"adaptation": {"mode": "Advisory"}, "objective": {"goal": "latency"}, "model": {"id": "m"}}
    return {
        "metadata": {"namespace": "team", "name": "chat", "uid": "u", "generation": 3},
        "spec": spec,
        "status": {"plan": PLAN, **status},
    }


def a_pod(name: str, layers: str, node: str, component: str = "segment", **metadata: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "splitinference", "app.kubernetes.io/instance": "chat"}
    labels |= {"app.kubernetes.io/component": component, "splitinference.dev/layers": layers}
    container = {"name": "c", "resources": {"requests": {"memory": "256Mi"}}}
    about = {"namespace": "team", "name": name, "labels": labels, **metadata}
    return {"metadata": about, "spec": {"nodeName": node, "containers": [container]}, "status": {"phase": "Running"}}


def a_route(*pipelines: list[str]) -> dict[str, Any]:
    document = {"revision": "old", "pipelines": [[{"segment": name, "model": "m"} for name in chain] for chain in pipelines]}
    return {"metadata": {"namespace": "team", "name": "chat-route"}, "data": {"route.json": json.dumps(document)}}


def test_segments_and_links_are_in_order_and_the_last_link_goes_back():
    stages = {"chat-0-4": {"computeMs": 3.0, "linkMs": 0.9, "queueMs": 0.1, "batch": 1.5}}
    found = read(a_resource(observed={"revision": "aaaaaaaaaa", "stages": stages, "requests": 4}))
    assert found.plan is not None
    (pipeline,) = found.plan.pipelines
    assert [(s.stage, s.start, s.end, s.node) for s in pipeline.segments] == [(0, 0, 4, "a"), (1, 4, 8, "b")]
    assert [(link.source_node, link.target_node) for link in pipeline.links] == [("a", "b"), ("b", "")]
    assert pipeline.segments[0].observed_ms == 3.0
    assert pipeline.links[0].observed_ms == 0.9
    assert found.traffic is not None
    assert found.traffic.requests == 4


def test_figures_of_another_plan_are_not_shown():
    found = read(a_resource(observed={"revision": "other", "stages": {"chat-0-4": {"computeMs": 3.0}}, "requests": 4}))
    assert found.traffic is None
    assert found.plan is not None
    assert found.plan.segments[0].observed_ms is None


def test_pipelines_are_a_list():
    segments = [a_segment("x", 0, 8, "a", 1), a_segment("y", 0, 4, "b", 0), a_segment("z", 4, 8, "c", 0)]
    found = read(a_resource(plan={**PLAN, "segments": segments}))
    assert found.plan is not None
    assert [(p.number, p.nodes) for p in found.plan.pipelines] == [(0, ("b", "c")), (1, ("a",))]


def test_the_serving_chain_is_shown_while_it_is_another_than_the_plans():
    pods = [a_pod("chat-0-4", "0-4", "a"), a_pod("chat-old", "4-8", "z"), a_pod("other", "0-4", "q", "gateway")]
    found = read(
        a_resource(transition={"from": "old", "to": "aaaaaaaaaa", "steps": ["create chat-4-8"]}), pods, [a_route(["chat-0-4", "chat-old"])]
    )
    (chain,) = found.serving
    assert [(s.name, s.node, s.start, s.end) for s in chain.segments] == [("chat-0-4", "a", 0, 4), ("chat-old", "z", 4, 8)]
    assert [s.name for s in found.leaving] == ["chat-old"]
    assert found.moving
    same = read(a_resource(), pods, [a_route(["chat-0-4", "chat-4-8"])])
    assert same.serving == ()


def test_moves_between_two_plans():
    before = read(a_resource()).plan
    after = read(
        a_resource(plan={**PLAN, "segments": [a_segment("n", 0, 4, "c"), a_segment("o", 4, 6, "b"), a_segment("p", 6, 8, "a")]})
    ).plan
    assert before is not None
    assert after is not None
    found = [(m.kind, m.start, m.end, m.source, m.target) for m in moves(before.pipelines, after.pipelines)]
    assert found == [("move", 0, 4, "a", "c"), ("create", 4, 6, "", "b"), ("delete", 4, 8, "b", ""), ("create", 6, 8, "", "a")]


def test_a_proposal_is_read_as_a_plan():
    proposal = {
        "revision": "bbbbbbbbbb",
        "from": "aaaaaaaaaa",
        "time": "2026-01-01T00:00:00Z",
        "message": "12 % better",
        "segments": [a_segment("n", 0, 8, "c")],
    }
    found = read(a_resource(proposal=proposal)).proposal
    assert found is not None
    assert (found.plan.revision, found.source, found.plan.pipelines[0].nodes) == ("bbbbbbbbbb", "aaaaaaaaaa", ("c",))


def test_what_has_another_type_than_expected_is_left_out():
    odd = {"plan": {"segments": [7, {"name": None, "start": "x", "predictedMs": float("nan")}], "gap": "?", "explanation": "no list"}}
    odd |= {"conditions": {"type": "Ready"}, "decisions": [None], "observed": 3, "transition": [], "calibration": "x", "adaptation": None}
    found = read({"metadata": None, "spec": [], "status": odd}, [{"metadata": {}}, {}], [{"data": {"route.json": "{"}}])
    assert found.plan is not None
    assert found.plan.gap is None
    assert found.plan.segments[0].predicted_ms is None
    assert found.conditions == ()


def test_what_is_printed_cannot_steer_a_terminal():
    found = read(a_resource(decisions=[{"message": "\x1b]0;owned\x07red\x1b[31m", "reason": "R"}]))
    assert "\x1b" not in found.decisions[0].message
    assert "\x07" not in found.decisions[0].message


def test_nodes_say_what_we_hold_and_whether_they_take_more():
    labels = {"kubernetes.io/arch": "arm64", "topology.kubernetes.io/zone": "z1"}
    status = {"allocatable": {"cpu": "3500m", "memory": "1Gi", "nvidia.com/gpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]}
    node = {"metadata": {"name": "b", "labels": labels}, "spec": {"unschedulable": True}, "status": status}
    over = {**a_pod("done", "0-4", "b"), "status": {"phase": "Succeeded"}}
    first, second = read_nodes([node, {"metadata": {"name": "a"}}], [a_pod("chat-0-4", "0-4", "b"), over], {"b": 0.4})
    assert (first.name, first.ready) == ("a", False)
    assert (second.cores, second.memory_mib, second.cordoned, second.ready, second.used_by_others) == (3.5, 1024.0, True, True, 0.4)
    assert second.accelerators == {"nvidia.com/gpu": 2}
    assert [(h.resource, h.layers, h.memory_mib) for h in second.held] == [("chat", "0-4", 256.0)]
