"""Walks between plans of several pipelines: one comes, one goes, one moves, and the others serve throughout."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.transition.state import Phase
from splitinference.core.transition.steps import Blocked, Done, Steps, Strategy, next_steps
from tests.core.transition.pretend_cluster import Cluster, a_target, serving
from tests.core.transition.test_steps import names, walk
from tests.core.transition.test_whole_transitions import Watcher, finish
from tests.examples import examples

NODES = "abcdef"
ROOMY = dict.fromkeys(NODES, 1000)
LAYERS = 8


@st.composite
def plans(draw: st.DrawFn) -> str:
    """One to three pipelines of 8 layers, on nodes of their own."""
    count = draw(st.integers(1, 3))
    free = list(draw(st.permutations(NODES)))
    pipelines = []
    for _ in range(count):
        cuts = sorted(draw(st.sets(st.integers(1, LAYERS - 1), max_size=1)))
        edges = [0, *cuts, LAYERS]
        pipelines.append(" ".join(f"{free.pop()}[{start}:{end}]" for start, end in itertools.pairwise(edges)))
    return " | ".join(pipelines)


def test_a_pipeline_that_is_ready_serves_while_others_start():
    cluster = Cluster(dict(ROOMY))
    target = a_target("a[0:4] b[4:8] | c[0:4] d[4:8]")
    for action in next_steps(target, cluster.observed()).actions:
        cluster.apply(action)
    for name in ("m-0-4-c", "m-4-8-d"):
        cluster.set(name, Phase.PROVEN)
    assert names(next_steps(target, cluster.observed())) == ["cutover m-0-4-c m-4-8-d between"]


def test_a_pipeline_is_added_beside_the_one_that_serves():
    steps = walk(serving("a[0:4] b[4:8]", ROOMY), "a[0:4] b[4:8] | c[0:8]")
    assert steps == ["create m-0-8-c", "cutover m-0-4-a m-4-8-b m-0-8-c"]


def test_a_pipeline_is_taken_out_of_the_route_before_its_segments_go():
    steps = walk(serving("a[0:4] b[4:8] | c[0:8]", ROOMY), "a[0:4] b[4:8]")
    assert steps == ["cutover m-0-4-a m-4-8-b", "delete m-0-8-c"]


def test_one_pipeline_moves_while_the_other_serves():
    steps = walk(serving("a[0:4] b[4:8] | c[0:8]", ROOMY), "a[0:4] b[4:8] | d[0:8]")
    assert steps == ["create m-0-8-d", "cutover m-0-4-a m-4-8-b m-0-8-d", "delete m-0-8-c"]


def test_a_lost_segment_takes_its_pipeline_alone_out_of_the_route():
    cluster = serving("a[0:4] b[4:8] | c[0:4] d[4:8]", ROOMY)
    cluster.set("m-4-8-d", None)
    target = a_target("a[0:4] b[4:8] | c[0:4] e[4:8]")
    assert names(next_steps(target, cluster.observed())) == ["cutover m-0-4-a m-4-8-b between"]


@pytest.mark.parametrize("strategy", Strategy)
def test_a_pipeline_whose_new_segment_needs_the_room_of_its_old_one_stands_aside(strategy):
    cluster = serving("a[0:8] | b[0:4] c[4:8]", {"a": 80, "b": 80, "c": 80})
    steps = walk(cluster, "a[0:8] | c[0:4] b[4:8]", strategy)
    assert "cutover m-0-8-a between" not in steps[:1], "as long as there is room, both serve"
    assert cluster.serving == a_target("a[0:8] | c[0:4] b[4:8]").route
    tight = serving("a[0:8] | b[0:4] c[4:8]", {"a": 80, "b": 60, "c": 60})
    steps = walk(tight, "a[0:8] | c[0:4] b[4:8]", strategy)
    assert steps[0] == "cutover m-0-8-a between"
    assert tight.serving == a_target("a[0:8] | c[0:4] b[4:8]").route


@examples(200)
@given(plans(), plans())
def test_with_room_every_walk_ends_done_and_serves_throughout(first, second):
    cluster = serving(first, ROOMY)
    target = a_target(second)
    assert finish(Watcher(cluster, Strategy.SURGE), target) == Done()
    assert cluster.serving == target.route
    assert {name for name, s in cluster.segments.items() if s.phase is not Phase.LEAVING} == set(target.segments)


@examples(300)
@given(plans(), plans(), st.integers(80, 120), st.sampled_from(Strategy))
def test_with_little_room_walks_end_and_never_break_what_serves(first, second, room, strategy):
    cluster = serving(first, dict.fromkeys(NODES, room))
    result = finish(Watcher(cluster, strategy), a_target(second))
    if strategy is Strategy.BREAK_FIRST or result == Done():
        assert result == Done()
        assert cluster.serving == a_target(second).route
    else:
        assert isinstance(result, Blocked)
        assert cluster.serving is not None


@examples(300)
@given(st.data(), st.sampled_from(Strategy))
def test_disturbed_at_any_step_a_walk_still_ends(data, strategy):
    cluster = serving(data.draw(plans()), ROOMY)
    target = a_target(data.draw(plans()))
    watcher = Watcher(cluster, strategy, disturbed=True)
    for _ in range(data.draw(st.integers(1, 20))):
        result = next_steps(target, cluster.observed(), strategy)
        if isinstance(result, Steps):
            for action in result.actions[: data.draw(st.integers(0, len(result.actions)))]:
                watcher.apply(action, target)
        match data.draw(st.sampled_from(["progress", "fail", "vanish", "supersede"])):
            case "progress":
                cluster.progress()
            case "supersede":
                target = a_target(data.draw(plans()))
            case what if cluster.segments:
                cluster.set(data.draw(st.sampled_from(sorted(cluster.segments))), Phase.FAILED if what == "fail" else None)
    assert finish(watcher, target) == Done()
    assert cluster.serving == target.route
