"""Factors learned while a plan serves: steady, bounded, and no reason to wander."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost.fitting.learn import ENOUGH_WINDOWS, FORGOTTEN, LEAST, MOST, Factor, calibrated, counting, learn
from splitinference.core.values.cluster import Snapshot
from tests.core.planning import a_node

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SNAPSHOT = Snapshot(nodes=tuple(a_node(name) for name in "abc"))


def after(*ratios: float, node: str = "a", known: dict[str, Factor] | None = None) -> dict[str, Factor]:
    """So many windows, a minute apart."""
    found = dict(known or {})
    for number, ratio in enumerate(ratios):
        found = learn(found, {node: ratio}, NOW + number * MINUTE)
    return found


def test_two_windows_are_not_enough_and_three_are() -> None:
    assert counting(after(3.0, 3.0), NOW) == {}
    assert calibrated(SNAPSHOT, after(3.0, 3.0), NOW) == SNAPSHOT
    assert counting(after(3.0, 3.0, 3.0), NOW) == {"a": pytest.approx(3.0)}


def test_twice_as_slow_and_twice_as_quick_cancel_out() -> None:
    assert after(2.0, 0.5)["a"].factor == pytest.approx(1.0)


def test_one_odd_window_moves_a_factor_that_counts_by_at_most_fifteen_per_cent() -> None:
    steady = after(2.0, 2.0, 2.0, 2.0, 2.0)
    assert after(1000.0, known=steady)["a"].factor < 2.0 * 1.15
    assert after(0.001, known=steady)["a"].factor > 2.0 / 1.15


def test_a_lasting_change_is_learned_within_ten_windows() -> None:
    steady = after(1.0, 1.0, 1.0, 1.0, 1.0)
    assert after(*[2.0] * 10, known=steady)["a"].factor == pytest.approx(2.0, rel=0.1)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_whatever_is_measured_the_factor_stays_within_its_bounds(ratios: list[float]) -> None:
    for factor in after(*ratios).values():
        assert LEAST <= factor.factor <= MOST


def test_of_a_shared_node_only_that_it_is_slower_than_it_counts_as_is_learned() -> None:
    known = {**after(2.0, 2.0, 2.0), **after(3.0, 3.0, 3.0, node="b")}
    assert learn(known, {"a": 0.5}, NOW, {"a"})["a"] == known["a"]
    assert learn(known, {"a": 2.5}, NOW, {"a"})["a"].factor > 2.0
    assert "c" not in learn(known, {"c": 2.4}, NOW, {"c"}), "it counts as the median of the others, 2.45"
    assert learn(known, {"c": 2.5}, NOW, {"c"})["c"].factor == 2.5
    assert learn(known, {"a": 0.5}, NOW)["a"].factor < 2.0


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_ratio_is_left_out(ratio: float) -> None:
    assert after(2.0, ratio) == after(2.0)


@pytest.mark.parametrize(("measured", "usual"), [((4.0,), 4.0), ((4.0, 1.0), 2.0), ((4.0, 1.0, 3.8), 3.8)])
def test_nodes_that_were_never_measured_count_as_the_measured_ones_do_in_the_median(measured: tuple[float, ...], usual: float) -> None:
    snapshot = Snapshot(nodes=tuple(a_node(name) for name in "abcd"))
    known = {name: Factor(factor=factor, windows=ENOUGH_WINDOWS, time=NOW) for name, factor in zip("abc", measured, strict=False)}
    found = [node.calibration for node in calibrated(snapshot, known, NOW).nodes]
    assert found[: len(measured)] == list(measured)
    assert found[len(measured) :] == [pytest.approx(usual)] * (4 - len(measured))


def test_what_was_measured_a_day_ago_is_forgotten_and_an_hour_ago_is_not() -> None:
    known = after(3.0, 3.0, 3.0)
    assert counting(known, NOW + timedelta(hours=1)) == {"a": pytest.approx(3.0)}
    assert counting(known, NOW + FORGOTTEN + 3 * MINUTE) == {}
    assert after(5.0, known={"a": Factor(factor=1.0, windows=9, time=NOW - FORGOTTEN)})["a"] == Factor(factor=5.0, windows=1, time=NOW)


def test_a_measurement_from_a_clock_that_was_set_back_by_days_does_not_count() -> None:
    assert counting({"a": Factor(factor=3.0, windows=9, time=NOW + 2 * FORGOTTEN)}, NOW) == {}
