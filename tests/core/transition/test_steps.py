"""Steps of the walk between two plans, one situation at a time."""

import pytest

from splitinference.core.transition.state import Observed, ObservedSegment, Phase, Route, Shortage, ShortOf, Target
from splitinference.core.transition.steps import Blocked, CreateSegment, Cutover, DeleteSegment, Done, Steps, Strategy, next_steps
from tests.core.transition.pretend_cluster import Cluster, a_segment, a_target, serving

ROOMY = {"a": 1000, "b": 1000, "c": 1000}


def names(result: object) -> list[str]:
    """The steps in short."""
    assert isinstance(result, Steps), result
    words = []
    for action in result.actions:
        match action:
            case CreateSegment(segment=s):
                words.append(f"create {s.name}")
            case Cutover(route=route, whole=whole):
                words.append(f"cutover {' '.join(' '.join(p) for p in route.pipelines)}{'' if whole else ' between'}")
            case DeleteSegment(name=name):
                words.append(f"delete {name}")
    return words


def walk(cluster: Cluster, text: str, strategy: Strategy = Strategy.SURGE) -> list[str]:
    """All steps until Done, everything under way succeeding."""
    taken: list[str] = []
    for _ in range(100):
        result = next_steps(a_target(text), cluster.observed(), strategy)
        if isinstance(result, Done):
            return taken
        assert isinstance(result, Steps), result
        taken += names(result)
        for action in result.actions:
            cluster.apply(action)
        cluster.progress()
    raise AssertionError(f"no end after {taken}")


def test_a_first_plan_creates_all_segments_at_once():
    result = next_steps(a_target("a[0:4] b[4:8]"), Cluster(ROOMY).observed())
    assert names(result) == ["create m-0-4-a", "create m-4-8-b"]


def test_a_first_plan_is_cut_over_to_once_all_is_proven():
    assert walk(Cluster(ROOMY), "a[0:4] b[4:8]") == ["create m-0-4-a", "create m-4-8-b", "cutover m-0-4-a m-4-8-b"]


def test_a_ready_segment_that_is_not_proven_is_waited_for():
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    cluster.serving = None
    cluster.set("m-4-8-b", Phase.READY)
    result = next_steps(a_target("a[0:4] b[4:8]"), cluster.observed())
    assert names(result) == []
    assert isinstance(result, Steps)
    assert result.waiting == ("m-4-8-b on b is ready, and its probe is outstanding",)


def test_moving_one_segment_leaves_the_others_alone():
    steps = walk(serving("a[0:4] b[4:8]", ROOMY), "a[0:4] c[4:8]")
    assert steps == ["create m-4-8-c", "cutover m-0-4-a m-4-8-c", "delete m-4-8-b"]


def test_what_serves_is_done():
    assert next_steps(a_target("a[0:4] b[4:8]"), serving("a[0:4] b[4:8]", ROOMY).observed()) == Done()


def test_a_segment_of_an_older_route_stays_while_something_is_in_flight():
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    for action in (CreateSegment(segment=a_segment("c[4:8]")),):
        cluster.apply(action)
    cluster.set("m-4-8-c", Phase.PROVEN)
    cluster.apply(Cutover(route=a_target("a[0:4] c[4:8]").route))
    result = next_steps(a_target("a[0:4] c[4:8]"), cluster.observed())
    assert names(result) == []
    assert isinstance(result, Steps)
    assert "m-4-8-b on b drains" in result.waiting[0]


def test_a_reverted_transition_deletes_what_never_served_at_once():
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    cluster.apply(CreateSegment(segment=a_segment("c[4:8]")))
    assert names(next_steps(a_target("a[0:4] b[4:8]"), cluster.observed())) == ["delete m-4-8-c"]


def test_a_segment_that_grows_is_a_new_segment_beside_the_old():
    steps = walk(serving("a[0:4] b[4:8]", ROOMY), "a[0:3] b[3:8]")
    assert steps == ["create m-0-3-a", "create m-3-8-b", "cutover m-0-3-a m-3-8-b", "delete m-0-4-a", "delete m-4-8-b"]


def test_one_segment_at_a_time_on_a_node_that_also_serves():
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    first = next_steps(a_target("b[0:2] b[2:4] a[4:8]"), cluster.observed())
    assert names(first) == ["create m-0-2-b", "create m-4-8-a"]


def test_a_swap_without_room_for_both_goes_over_a_route_between():
    """Three nodes with room for one segment each and an empty one: the rotation must use intermediate routes, never a second copy."""
    cluster = serving("a[0:4] b[4:8]", {"a": 40, "b": 40, "c": 40})
    assert walk(cluster, "b[0:4] c[4:8]") == [
        "create m-4-8-c",
        "cutover m-0-4-a m-4-8-c between",
        "delete m-4-8-b",
        "create m-0-4-b",
        "cutover m-0-4-b m-4-8-c",
        "delete m-0-4-a",
    ]


def test_without_room_and_without_a_way_between_the_walk_is_blocked_and_says_the_numbers():
    result = next_steps(a_target("a[0:3] b[3:8]"), serving("a[0:4] b[4:8]", {"a": 60, "b": 60}).observed())
    assert isinstance(result, Blocked)
    assert "segment [0, 3) needs 30 MiB, but a has 20 MiB free beside 40 MiB of present segments" in result.why
    assert "BreakFirst" in result.why


def test_break_first_deletes_first_where_no_node_has_room():
    steps = walk(serving("a[0:4] b[4:8]", {"a": 60, "b": 60}), "a[0:3] b[3:8]", Strategy.BREAK_FIRST)
    assert steps[0].startswith("delete")
    assert steps[-1] == "cutover m-0-3-a m-3-8-b"


def test_break_first_keeps_make_before_break_where_there_is_room():
    steps = walk(serving("a[0:4] b[4:8]", ROOMY), "a[0:4] c[4:8]", Strategy.BREAK_FIRST)
    assert steps == ["create m-4-8-c", "cutover m-0-4-a m-4-8-c", "delete m-4-8-b"]


@pytest.mark.parametrize("phase", [Phase.FAILED, None])
def test_a_serving_route_that_lost_a_segment_for_good_gives_its_room_away(phase: Phase | None):
    """Node c is lost; what b serves cannot serve any more, and b needs the room for more layers."""
    cluster = serving("a[0:4] b[4:8] c[8:12]", {"a": 40, "b": 90})
    cluster.set("m-8-12-c", phase)
    steps = walk(cluster, "a[0:4] b[4:12]")
    assert [step for step in steps if step != "delete m-8-12-c"] == ["delete m-4-8-b", "create m-4-12-b", "cutover m-0-4-a m-4-12-b"]


def test_a_failed_segment_of_the_plan_is_deleted_and_made_again():
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    cluster.set("m-4-8-b", Phase.FAILED)
    assert names(next_steps(a_target("a[0:4] b[4:8]"), cluster.observed())) == ["delete m-4-8-b"]
    assert walk(cluster, "a[0:4] b[4:8]") == ["delete m-4-8-b", "create m-4-8-b"]


def test_a_node_that_cannot_be_used_blocks_in_words():
    result = next_steps(a_target("a[0:4] z[4:8]"), serving("a[0:4] b[4:8]", ROOMY).observed())
    assert isinstance(result, Blocked)
    assert result.why == "segment [4, 8) needs 40 MiB on z, but that node cannot be used now"
    assert [(short.node, short.resource) for short in result.short] == [("z", ShortOf.NODE)]


def test_segments_of_two_models_are_never_mixed_in_one_route():
    cluster = serving("a[0:4] b[4:8]", {"a": 40, "b": 40, "c": 40}, family="old")
    target = a_target("b[0:4] c[4:8]", family="new")
    cluster.apply(CreateSegment(segment=a_segment("c[4:8]", "new")))
    cluster.set("new-4-8-c", Phase.PROVEN)
    assert isinstance(next_steps(target, cluster.observed()), Blocked)


def test_two_pipelines_are_a_plan_as_any_other():
    steps = walk(serving("a[0:8]", ROOMY), "a[0:8] | b[0:4] c[4:8]")
    assert steps == ["create m-0-4-b", "create m-4-8-c", "cutover m-0-8-a m-0-4-b m-4-8-c"]


def test_the_revision_of_a_route_is_that_of_its_names():
    one = Route(pipelines=(("x", "y"),))
    assert one.revision == Route(pipelines=(("x", "y"),)).revision
    assert one.revision != Route(pipelines=(("y", "x"),)).revision
    assert len(one.revision) == 10


def test_nothing_observed_and_no_room_is_blocked_not_done():
    assert isinstance(next_steps(a_target("a[0:4]"), Observed(room_bytes={"a": 0})), Blocked)


def renewed(cluster: Cluster, text: str, strategy: Strategy) -> list[str]:
    """Steps that put new segments in the place of the old ones, as another image does; in each route, how many of them are new."""
    target = Target(
        pipelines=tuple(tuple(s.model_copy(update={"name": f"new-{s.name}"}) for s in pipeline) for pipeline in a_target(text).pipelines)
    )
    taken: list[str] = []
    for _ in range(100):
        result = next_steps(target, cluster.observed(), strategy)
        if isinstance(result, Done | Blocked):
            return [*taken, type(result).__name__]
        taken += names(result)
        for action in result.actions:
            cluster.apply(action)
        cluster.progress()
    raise AssertionError(f"no end after {taken}")


def test_break_first_replaces_full_nodes_one_by_one_and_serves_between():
    cluster = serving("a[0:4] b[4:8]", {"a": 40, "b": 40})
    assert renewed(cluster, "a[0:4] b[4:8]", Strategy.BREAK_FIRST) == [
        "delete m-0-4-a",
        "create new-m-0-4-a",
        "cutover new-m-0-4-a m-4-8-b between",
        "delete m-4-8-b",
        "create new-m-4-8-b",
        "cutover new-m-0-4-a new-m-4-8-b",
        "Done",
    ]


def test_the_next_node_is_broken_only_when_what_waited_through_the_last_break_has_moved_on():
    cluster = serving("a[0:4] b[4:8]", {"a": 40, "b": 40})
    target = Target(pipelines=(tuple(s.model_copy(update={"name": f"new-{s.name}"}) for s in a_target("a[0:4] b[4:8]").pipelines[0]),))
    while cluster.serving == a_target("a[0:4] b[4:8]").route:
        for action in next_steps(target, cluster.observed(), Strategy.BREAK_FIRST).actions:
            cluster.apply(action)
        if cluster.serving == a_target("a[0:4] b[4:8]").route:
            cluster.progress()
    before = next_steps(target, cluster.observed(), Strategy.BREAK_FIRST)
    assert names(before) == []
    assert any("requests are leaving route" in words for words in before.waiting)
    cluster.progress()
    assert names(next_steps(target, cluster.observed(), Strategy.BREAK_FIRST)) == ["delete m-4-8-b"]


def test_surge_does_not_touch_full_nodes():
    assert renewed(serving("a[0:4] b[4:8]", {"a": 40, "b": 40}), "a[0:4] b[4:8]", Strategy.SURGE) == ["Blocked"]


def test_cores_that_a_node_has_not_left_are_asked_for_no_more_than_memory_is():
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    observed = cluster.observed().model_copy(update={"room_millicores": {"c": 150}})
    target = a_target("c[0:2] c[2:4] b[4:8]")
    first = next_steps(target, observed)
    assert names(first) == ["create m-0-2-c"]
    assert isinstance(first, Steps)
    with_it = Observed(
        segments={**observed.segments, "m-0-2-c": ObservedSegment(**target.segments["m-0-2-c"].model_dump(), phase=Phase.PROVEN)},
        serving=observed.serving,
        room_bytes=observed.room_bytes,
        room_millicores=observed.room_millicores,
    )
    blocked = next_steps(target, with_it)
    assert isinstance(blocked, Blocked)
    assert blocked.why == "segment [2, 4) requests 0.1 cores, but c has 0.05 free beside 0.1 of present segments"
    assert blocked.short == (Shortage(node="c", resource=ShortOf.CPU, needed=100, free=50),)


def after_a_cutover_to_c() -> Cluster:
    """c took over from b; something is still in flight on the route over b."""
    cluster = serving("a[0:4] b[4:8]", ROOMY)
    cluster.apply(CreateSegment(segment=a_segment("c[4:8]")))
    cluster.set("m-4-8-c", Phase.PROVEN)
    cluster.apply(Cutover(route=a_target("a[0:4] c[4:8]").route))
    return cluster


@pytest.mark.parametrize(
    ("phase", "steps"), [(Phase.PROVEN, []), (Phase.READY, []), (Phase.FAILED, ["delete m-4-8-b"]), (Phase.LEAVING, [])]
)
def test_a_failed_segment_of_an_older_route_goes_at_once_as_nothing_is_served_by_it(phase: Phase, steps: list[str]):
    cluster = after_a_cutover_to_c()
    cluster.set("m-4-8-b", phase)
    result = next_steps(a_target("a[0:4] c[4:8]"), cluster.observed())
    assert (names(result) if isinstance(result, Steps) else []) == steps


@pytest.mark.parametrize(("room", "made"), [(79, 1), (80, 2), (81, 2)])
def test_segments_made_in_the_same_step_share_the_memory_of_their_node(room: int, made: int):
    """Each needs 40 MiB."""
    result = next_steps(a_target("a[0:4] a[4:8]"), Cluster({"a": room}).observed())
    assert names(result) == ["create m-0-4-a", "create m-4-8-a"][:made]


@pytest.mark.parametrize(("millicores", "made"), [(199, 1), (200, 2), (201, 2)])
def test_segments_made_in_the_same_step_share_the_cores_of_their_node(millicores: int, made: int):
    """Each requests 100 millicores."""
    observed = Cluster({"a": 1000}).observed().model_copy(update={"room_millicores": {"a": millicores}})
    assert names(next_steps(a_target("a[0:4] a[4:8]"), observed)) == ["create m-0-4-a", "create m-4-8-a"][:made]


@pytest.mark.parametrize(("room", "fits"), [(39, False), (40, True), (41, True)])
def test_a_segment_is_made_where_the_memory_is_enough(room: int, fits: bool):
    result = next_steps(a_target("a[0:4]"), Cluster({"a": room}).observed())
    assert isinstance(result, Steps if fits else Blocked)
