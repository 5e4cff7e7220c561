"""A rehearsal ends as the walk would."""

from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.transition.dry_run import dry_run
from splitinference.core.transition.steps import Blocked, Done, Strategy
from tests.core.transition.pretend_cluster import a_target, serving
from tests.core.transition.test_whole_transitions import Watcher, finish, plans
from tests.examples import examples


def test_a_walk_with_room_arrives():
    assert dry_run(a_target("a[0:4] c[4:8]"), serving("a[0:4] b[4:8]", {"a": 40, "b": 40, "c": 40}).observed(), Strategy.SURGE) == Done()


def test_a_walk_without_room_is_known_before_it_is_begun():
    cramped = serving("a[0:4] b[4:8]", {"a": 60, "b": 60}).observed()
    assert isinstance(dry_run(a_target("a[0:3] b[3:8]"), cramped, Strategy.SURGE), Blocked)
    assert dry_run(a_target("a[0:3] b[3:8]"), cramped, Strategy.BREAK_FIRST) == Done()


@examples(200)
@given(plans(), plans(), st.integers(40, 120), st.sampled_from(Strategy))
def test_a_rehearsal_ends_as_the_walk_does(first, second, room, strategy):
    cluster = serving(first, dict.fromkeys("abcd", room))
    for segment in cluster.segments.values():
        need = segment.memory_bytes // (1024 * 1024)
        cluster.room_mib[segment.node] = max(cluster.room_mib[segment.node], need)
    cluster.room_segments = dict.fromkeys("abc", 1)
    expected = dry_run(a_target(second), cluster.observed(), strategy)
    assert type(finish(Watcher(cluster, strategy), a_target(second))) is type(expected)
