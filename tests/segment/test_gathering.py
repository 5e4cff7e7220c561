"""When a batch waits for others: only for those that are about to come, never long, and never alone."""

import pytest

from splitinference_segment.steps.gathering import FORGET_S, Gathering

STEP_S = 0.020
PATIENCE_S = STEP_S / 2


def rounds(gathering: Gathering, away_s: dict[str, float], *, until_s: float = 10.0) -> None:
    """Each sequence leaves, comes back after its time away, and leaves again; all leave the last time at `until_s`."""
    gathering.ran(STEP_S)
    for number in (3, 2, 1, 0):
        left_at = until_s - number
        for name, seconds in away_s.items():
            if number < 3:
                gathering.came(name, left_at - 1 + seconds)
            gathering.left(name, left_at)


def waits(gathering: Gathering, *waiting: str, at: float, since: float | None = None) -> float:
    for name in waiting:
        gathering.came(name, at)
    return gathering.wait_s(waiting, at if since is None else since, at)


def test_one_client_never_waits() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.1})
    assert waits(gathering, "a", at=10.1) == 0


def test_the_first_of_a_group_waits_for_those_that_ran_with_it() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100, "b": 0.101, "c": 0.102})
    assert waits(gathering, "a", at=10.1) == pytest.approx(PATIENCE_S)
    assert waits(gathering, "a", "b", at=10.101, since=10.1) == pytest.approx(PATIENCE_S - 0.001)
    assert waits(gathering, "a", "b", "c", at=10.102, since=10.1) == 0, "all are here"


def test_nobody_waits_for_a_group_that_is_elsewhere() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100, "b": 0.200, "c": 0.200})
    assert waits(gathering, "a", at=10.1) == 0


def test_many_do_not_wait_long_for_one_but_one_does_for_many() -> None:
    few, many = Gathering(1.0), Gathering(1.0)
    names = [f"s{i}" for i in range(7)]
    rounds(few, dict.fromkeys(names, 0.100) | {"late": 0.108})
    assert waits(few, *names, at=10.1) == 0  # 7 × 8 ms are lost, 12 are gained
    rounds(many, dict.fromkeys(names, 0.108) | {"early": 0.100})
    assert waits(many, "early", at=10.1) > 0  # 8 ms are lost, 7 × 12 are gained


def test_a_group_that_comes_late_is_late_together() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100, "b": 0.101})
    assert waits(gathering, "a", at=10.3) == pytest.approx(PATIENCE_S)


def test_who_does_not_come_is_not_waited_for_again_and_again() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100, "gone": 0.100})
    assert waits(gathering, "a", at=10.1) > 0
    assert waits(gathering, "a", at=10.1 + PATIENCE_S, since=10.1) == 0
    gathering.left("a", 10.2)
    assert waits(gathering, "a", at=10.3) == 0


def test_who_has_ended_is_not_waited_for() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100, "b": 0.101})
    gathering.ended("b")
    assert waits(gathering, "a", at=10.1) == 0


def test_a_sequence_that_was_not_seen_coming_back_is_not_waited_for() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100})
    gathering.left("new", 10.0)
    assert waits(gathering, "a", at=10.1) == 0


def test_before_a_step_was_measured_nobody_waits() -> None:
    gathering = Gathering(1.0)
    gathering.left("a", 1.0)
    gathering.left("b", 1.0)
    gathering.came("b", 1.1)
    gathering.left("b", 2.0)
    assert waits(gathering, "a", at=2.1) == 0


@pytest.mark.parametrize(("most_s", "expected"), [(0.0, 0.0), (0.004, 0.004), (1.0, PATIENCE_S)])
def test_nobody_waits_longer_than_is_set_nor_than_half_a_step(most_s: float, expected: float) -> None:
    gathering = Gathering(most_s)
    rounds(gathering, {"a": 0.100, "b": 0.101})
    assert waits(gathering, "a", at=10.1) == pytest.approx(expected)


def test_a_batch_that_waited_while_another_ran_joins_those_that_come_back_at_once() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.003, "b": 0.003})
    gathering.came("c", 9.99)
    assert gathering.wait_s(["c"], since=10.0, now=10.0) == pytest.approx(PATIENCE_S)


def test_what_was_not_seen_for_long_is_forgotten() -> None:
    gathering = Gathering(1.0)
    rounds(gathering, {"a": 0.100, "b": FORGET_S + 1})
    gathering.forget(10.0 + FORGET_S)
    gathering.left("a", 10.0 + FORGET_S)
    assert waits(gathering, "a", at=11.0 + FORGET_S) == 0
