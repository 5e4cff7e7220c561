"""Disturbances on the real cluster under load: each is answered, by one move at most, no request fails, and clients only wait.

`make test` runs the shortest of them, `make disturbances` those with two busy nodes, killed processes and no Prometheus. `make e2e-long`
runs all, under steady and bursty load, watches for five minutes after each that nothing moves (again), and keeps the figures in
docs/reference/adaptation-results.md. `E2E_QUIET_SECONDS` is another while to watch.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from e2e import results, stack
from e2e.cluster import Cluster
from e2e.cluster.settings import LINK_MBPS, TRUSTED
from e2e.scene import NAME, ROOMY_MIB, Placement, Scene, burning, disturbed, forget, workers_of
from e2e.traffic import BURSTY, STEADY, Load

pytestmark = pytest.mark.cluster

LONG = os.environ.get("E2E_LONG") == "1"
QUIET_SECONDS = float(os.environ.get("E2E_QUIET_SECONDS", "300")) if LONG else 0.0
LOADS = [pytest.param(load, marks=pytest.mark.long) for load in (STEADY, BURSTY)]
both_loads = pytest.mark.parametrize("load", LOADS, ids=str)
LINK_MBIT = 100.0
Play = Callable[..., AbstractContextManager[Scene]]


@pytest.fixture
def play(serving: Cluster) -> Play:
    """A scenario: what it is called, how clients ask, and most moves that it may lead to (None: the test looks for itself). Each has a
    port-forward of its own: one does not outlive a kubelet that is started anew."""

    @contextmanager
    def playing(scenario: str, load: Load, *, moves: int | None = 1) -> Iterator[Scene]:
        with stack.endpoint(serving, NAME) as base_url, disturbed(serving, base_url, load) as scene, told(scene):
            yield scene
        outcome = scene.outcome(scenario)
        serving.progress.say(str(outcome))
        if LONG:
            results.keep(outcome)
        assert [request.error for request in scene.traffic.report().failed] == []
        assert moves is None or outcome.moves <= moves

    return playing


@contextmanager
def told(scene: Scene) -> Iterator[None]:
    """What was decided meanwhile, however it ends: who reads of a failure wants to know why it moved."""
    try:
        yield
    finally:
        for decision in scene.decisions():
            scene.cluster.progress.say(f"{decision['time']} {decision['reason']}: {decision['message']}; {decision.get('outcome')}")


@both_loads
def test_others_take_the_cpu_of_a_node(serving: Cluster, play: Play, load: Load) -> None:
    with play("a: CPU taken by others on one node", load) as scene:
        busy = scene.inner_node()
        with burning(serving, busy):
            scene.leaves(busy)
            scene.stays(QUIET_SECONDS)
    assert scene.moves() == 1


@both_loads
def test_killed_processes_come_back(serving: Cluster, play: Play, load: Load) -> None:
    """Triton in one pod and the Python stub in another, at once: the segments serve again where they were, and the plan stays."""
    with play("e: tritonserver killed in one pod, the Python stub in another", load, moves=0) as scene:
        before = scene.found()
        for stage, program in ((1, "tritonserver"), (2, "triton_python_backend_stub")):
            serving.kill(before["status"]["plan"]["segments"][stage]["name"], program)
        stack.until(lambda: not stack.settled(scene.found()), 60, "the dead processes are noticed")
        scene.settles(lambda placed: placed == stack.placement(before), 120, "the segments serve again")
        scene.stays(QUIET_SECONDS)


@both_loads
def test_without_prometheus_it_serves_and_nothing_moves(serving: Cluster, play: Play, load: Load) -> None:
    with play("h: Prometheus is down, and a node busy", load, moves=0) as scene:
        serving.prometheus(running=False)
        try:
            with burning(serving, scene.inner_node()):
                stack.until(lambda: metrics(serving) == "False", 60, "a condition says that metrics are missing")
                scene.stays(max(20.0, QUIET_SECONDS))
        finally:
            serving.prometheus(running=True)
        stack.until(lambda: metrics(serving) == "True", 60, "the condition says that metrics are there again")


@pytest.mark.parametrize("load", [STEADY, LOADS[1]], ids=str)
def test_a_node_that_dies_is_replaced(serving: Cluster, play: Play, load: Load) -> None:
    """One move at once, because it must be, and no other before the new stages have been measured."""
    with play("d: a node dies, kubelet and pods", load, moves=None) as scene:
        gone = scene.inner_node()
        serving.stop(gone)
        try:
            scene.leaves(gone, seconds=120)
            scene.answers()
            scene.stays(QUIET_SECONDS)
        finally:
            serving.start(gone)
    assert scene.decision()["reason"] in {"NodeLost", "SegmentFailed"}
    assert scene.hasty() == []


@both_loads
def test_a_link_that_gets_thin_is_avoided(serving: Cluster, play: Play, load: Load) -> None:
    with links(serving, LINK_MBIT), play("c: a link slowed to a hundredth", load) as scene:
        slow = scene.inner_node()
        serving.link(slow, LINK_MBIT / 100)
        scene.leaves(slow, seconds=240)
        scene.stays(QUIET_SECONDS)
        serving.link(slow, LINK_MBIT)


@contextmanager
def links(cluster: Cluster, mbit: float) -> Iterator[None]:
    """All links between workers are so wide, and their labels say so; then as they were."""

    def widths(limit: float | None, label: float) -> None:
        for node in cluster.settings.worker_names():
            cluster.link(node, limit)
            cluster.kubectl("label", "node", node, "--overwrite", f"splitinference.dev/link-mbps={label:g}")

    try:
        widths(mbit, mbit)
        yield
    finally:
        widths(None, LINK_MBPS)
        forget(cluster)


@both_loads
def test_noise_around_the_threshold_moves_at_most_once(serving: Cluster, play: Play, load: Load) -> None:
    with play("g: load that oscillates around the threshold", load) as scene:
        busy = scene.inner_node()
        try:
            serving.burn(busy, pulse_seconds=8)
            scene.runs(QUIET_SECONDS)
        finally:
            serving.stop_burning(busy)


@both_loads
def test_a_move_that_was_asked_for_is_a_short_pause(serving: Cluster, play: Play, load: Load) -> None:
    """Nothing disturbs: what clients see is the move alone."""
    try:
        with play("i: a segment moved by hand, nothing disturbed", load) as scene:
            placed = scene.placement()
            start, end, _ = next(segment for segment in placed[1:-1])
            spare = next(node for node in serving.settings.worker_names() if node not in {name for _, _, name in placed})
            given(serving, {"allowedSplitPoints": cuts(placed), "pins": [{"layers": f"{start}:{end}", "node": spare}]})
            scene.settles(lambda now: (start, end, spare) in now, 150, f"layers {start}:{end} are on {spare}")
    finally:
        given(serving, {"allowedSplitPoints": None, "pins": None})
        stack.until(lambda: stack.settled(stack.resource(serving, NAME)), 150, "settled without pins")


def given(cluster: Cluster, partition: Mapping[str, Any]) -> None:
    """Say in the resource where it may be cut, and which layers are to be on which node."""
    cluster.kubectl("patch", "si", NAME, "--type=merge", "-p", json.dumps({"spec": {"partition": partition}}))


@both_loads
def test_trust_withdrawn_takes_the_sensitive_layers_away(serving: Cluster, play: Play, load: Load) -> None:
    """The node of the gateway stays trusted; a spare node is there that is."""
    before = stack.placement(stack.resource(serving, NAME))
    spare = next(node for node in serving.settings.worker_names() if node not in {name for _, _, name in before})
    try:
        with trusted(serving, spare, yes=True), play("f: trust label removed", load) as scene:
            gateway = stack.gateway_node(serving, NAME)
            first, *_, last = (node for _, _, node in scene.placement())
            left = first if last == gateway else last
            with trusted(serving, left, yes=False):
                scene.settles(lambda placed: left not in {placed[0][2], placed[-1][2]}, 120, f"neither first nor last layer on {left}")
                assert scene.decision()["reason"] == "PrivacyChanged"
                scene.stays(QUIET_SECONDS)
    finally:
        stack.until(lambda: stack.settled(stack.resource(serving, NAME)), 120, "settled with the labels as they were")


@pytest.fixture
def large(serving: Cluster) -> Iterator[Cluster]:
    """Workers that hold two segments at once: new cuts need that where the old ones serve meanwhile. Then the resource is made anew."""
    try:
        with workers_of(serving, ROOMY_MIB):
            yield serving
    finally:
        serving.kubectl("apply", "-f", str(stack.SAMPLE))
        stack.wait_ready(serving, NAME)


@pytest.fixture
def roomy(large: Cluster) -> Cluster:
    """The same, with cuts left open."""
    segments(large, 2, 4)
    stack.until(lambda: stack.settled(stack.resource(large, NAME)), 240, "the plan for the new cuts serves")
    return large


def segments(cluster: Cluster, least: int, most: int) -> None:
    wanted = {"spec": {"partition": {"minSegments": least, "maxSegments": most}}}
    cluster.kubectl("patch", "si", NAME, "--type=merge", "-p", json.dumps(wanted))


def test_cuts_that_were_asked_for_are_taken_under_load(large: Cluster, play: Play) -> None:
    with play("b: fewer segments asked for", STEADY) as scene:
        assert len(scene.placement()) > 2
        segments(large, 2, 2)
        scene.settles(lambda placed: len(placed) == 2, 240, "two segments")
    assert any(decision["transition"] == "re-split" for decision in scene.decisions())


@both_loads
def test_two_busy_nodes_lead_to_new_cuts(roomy: Cluster, play: Play, load: Load) -> None:
    with play("b: two nodes busy at once", load) as scene:
        before = scene.placement()
        with burning(roomy, before[0][2], before[-1][2], share=0.8):  # what starts there needs some of it
            scene.settles(lambda placed: cuts(placed) != cuts(before), 240, "new cuts")
            scene.stays(QUIET_SECONDS)
    assert any(decision["transition"] == "re-split" for decision in scene.decisions())


def cuts(placed: Placement) -> list[int]:
    return [start for start, _, _ in placed[1:]]


@contextmanager
def trusted(cluster: Cluster, *nodes: str, yes: bool) -> Iterator[None]:
    """Give nodes the label of trust, or take it from them; then as it was."""

    def label(value: bool) -> None:
        for node in nodes:
            cluster.kubectl("label", "node", node, "--overwrite", f"{TRUSTED}=true" if value else f"{TRUSTED}-")

    try:
        label(yes)
        yield
    finally:
        label(not yes)


def metrics(cluster: Cluster) -> str:
    return str(stack.condition(stack.resource(cluster, NAME), "MetricsAvailable")["status"])
