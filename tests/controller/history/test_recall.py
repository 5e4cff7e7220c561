"""How long failures, moves and times are remembered: to the second, on either side."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.cluster_state.figures.series_owners import Speaker
from splitinference.controller.cluster_state.segment_pods import SegmentPod
from splitinference.controller.history.adaptation_state import Failures, Recall, read_recall
from splitinference.core.transition.state import ObservedSegment, Phase

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WANTED = frozenset({"s"})


def a_pod(key: str = "pod/1", phase: Phase = Phase.FAILED, lasting: str = "") -> SegmentPod:
    """A segment on node a; `key` changes with each start of its process."""
    segment = ObservedSegment(name="s", start=0, end=1, node="a", memory_bytes=1, phase=phase, why="OOMKilled")
    return SegmentPod(segment=segment, model="m", ip="", proof_key=key, ready=False, lasting=lasting)


def failures(count: int = 3, **more: Any) -> Failures:
    return Failures(**{"count": count, "first": NOW, "last": NOW, "why": "OOMKilled", "key": "pod/1", **more})


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(("count", "avoided"), [(2, False), (3, True), (4, True)])
def test_a_node_is_avoided_after_three_failures(count: int, avoided: bool):
    assert bool(Recall(failures={"a": failures(count)}).quarantined(NOW)) is avoided


@pytest.mark.parametrize(("rounds", "minutes"), [(1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 160)])
def test_a_node_is_avoided_for_ten_minutes_and_twice_as_long_each_time_up_to_160(rounds: int, minutes: int):
    recall = Recall(failures={"a": failures(rounds=rounds)})
    assert recall.quarantined(at(60 * minutes - 0.1))
    assert not recall.quarantined(at(60 * minutes))


@pytest.mark.parametrize(("seconds", "remembered"), [(1199.9, True), (1200, False), (1200.1, False)])
def test_failures_are_forgotten_after_twice_as_long_as_the_node_was_avoided(seconds: float, remembered: bool):
    assert bool(Recall(failures={"a": failures()}).failed([], WANTED, at(seconds)).failures) is remembered


@pytest.mark.parametrize(("seconds", "count", "rounds"), [(599.9, 4, 1), (600, 1, 2), (1199.9, 1, 2), (1200, 1, 1)])
def test_a_failure_after_the_node_was_avoided_counts_anew_in_the_next_round(seconds: float, count: int, rounds: int):
    """Within the ten minutes it is one more of the same; after twenty nothing is remembered."""
    after = Recall(failures={"a": failures()}).failed([a_pod("pod/2")], WANTED, at(seconds)).failures["a"]
    assert (after.count, after.rounds) == (count, rounds)


@pytest.mark.parametrize(("count", "rounds"), [(2, 1), (3, 2)])
def test_only_a_node_that_was_avoided_gets_into_the_next_round(count: int, rounds: int):
    after = Recall(failures={"a": failures(count)}).failed([a_pod("pod/2")], WANTED, at(700)).failures["a"]
    assert after.rounds == rounds


def test_one_failure_is_counted_once():
    recall = Recall().failed([a_pod()], WANTED, NOW)
    assert recall.failed([a_pod()], WANTED, at(1)).failures == recall.failures


def test_what_waiting_does_not_mend_avoids_the_node_at_once_and_is_forgotten_when_the_pod_did_start():
    recall = Recall().failed([a_pod(lasting="no such image")], WANTED, NOW)
    assert recall.quarantined(NOW)
    other = replace(a_pod("other/1"), segment=a_pod(phase=Phase.PROVEN).segment)
    assert recall.failed([other], WANTED, at(1)).quarantined(at(1)), "another pod says nothing of it"
    assert not recall.failed([a_pod("pod/2", phase=Phase.PROVEN)], WANTED, at(1)).failures


@pytest.mark.parametrize(("count", "pause"), [(2, 2), (3, 4), (4, 8), (6, 32), (7, 60), (9, 60)])
def test_a_failed_segment_is_made_again_after_a_pause_that_doubles_up_to_a_minute(count: int, pause: int):
    recall = Recall(failures={"a": failures(count)})
    assert recall.held_back([a_pod()], at(pause - 0.1))
    assert not recall.held_back([a_pod()], at(pause))


def test_only_the_segment_that_failed_is_held_back():
    assert not Recall(failures={"a": failures(3)}).held_back([a_pod("pod/2")], NOW)


def test_the_last_twenty_moves_are_remembered():
    recall = Recall()
    for second in range(21):
        recall = recall.moved(at(second))
    assert recall.moves == tuple(at(second) for second in range(1, 21))


# --- segments that measured links ----------------------------------------------------------------------------------------------------

KEEP = timedelta(minutes=30)


def speaking(*names: str, node: str = "a") -> list[Speaker]:
    return [Speaker("team", name, node, frozenset({f"10.0.0.{ord(name[-1])}"}), segment=True) for name in names]


def test_a_segment_that_is_gone_is_remembered_while_its_links_are_of_use():
    recall = Recall().hearing(speaking("s-a", "s-b"), NOW, KEEP)
    assert recall.hearing(speaking("s-a", "s-b"), NOW + timedelta(minutes=9), KEEP) == recall, "nothing new is nothing to write"
    assert recall.gone_speakers("team") == {}
    later = NOW + timedelta(minutes=10)
    kept = read_recall({"adaptation": recall.hearing(speaking("s-b"), later, KEEP).as_status()})
    assert kept.gone_speakers("team") == {("team", "s-a"): (speaking("s-a")[0], later)}
    assert kept.hearing(speaking("s-b"), later + KEEP / 2, KEEP).gone_speakers("team").keys() == {("team", "s-a")}
    assert kept.hearing(speaking("s-b"), later + KEEP, KEEP).gone_speakers("team") == {}
    back = kept.hearing(speaking("s-a", "s-b", node="c"), later, KEEP)
    assert back.gone_speakers("team") == {}
    assert back.heard["s-a"].node == "c"


def test_probes_and_pods_without_an_address_are_not_kept():
    probe = Speaker("ops", "probe", "a", frozenset({"10.0.0.1"}), segment=False)
    starting = Speaker("team", "s-a", "a", frozenset(), segment=True)
    assert Recall().hearing([probe, starting], NOW, KEEP).as_status() == {}


def test_of_many_that_are_gone_the_newest_are_kept():
    recall = Recall()
    for number in range(100):
        now = NOW + timedelta(seconds=number)
        recall = recall.hearing([Speaker("team", f"s-{number}", "a", frozenset({f"10.0.0.{number}"}), segment=True)], now, KEEP)
    gone = recall.gone_speakers("team")
    assert len(gone) == 32
    assert ("team", "s-98") in gone
    assert ("team", "s-10") not in gone
