"""The autoscaler at the edges of its limits, times and margins, one decision at a time."""

import math
from datetime import UTC, datetime, timedelta

import pytest

from splitinference.core.decide.scaling import Load, Need, Scaled, ScalingPolicy, ScalingState, followed, forecast, needed, scaled

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POLICY = ScalingPolicy(least=1, most=8)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def a_state(pipelines: int = 2, level: float = 3.0, **more: object) -> ScalingState:
    """The load is steady, and was seen a moment ago."""
    return ScalingState(**{"at": NOW, "pipelines": pipelines, "level": level, "busy_at": NOW, "needs": (), **more})


def decided(
    state: ScalingState | None, load: Load | None, policy: ScalingPolicy = POLICY, carries: tuple[float, ...] = (2.0, 2.0)
) -> Scaled:
    return scaled(policy, state, load, carries, now=NOW)


def rate(per_s: float, **more: object) -> Load:
    return Load(requests_per_s=per_s, **more)


# --- how many are needed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("per_s", "count"), [(1.599, 1), (1.6, 1), (1.601, 2), (3.2, 2), (3.201, 3), (0.0, 0), (-1.0, 0), (1e-9, 1)])
def test_pipelines_are_used_up_to_the_share_that_is_the_target(per_s, count):
    assert needed(per_s, [2.0, 2.0], None, 0.8, 8) == count


def test_there_are_never_more_than_the_most():
    assert [needed(100.0, [2.0], None, 0.8, most) for most in (1, 2, 3)] == [1, 2, 3]
    assert needed(1.6, [2.0], None, 0.8, 1) == 1


def test_a_further_pipeline_carries_as_much_as_the_weakest():
    assert needed(7.0, [1.0, 3.0, 2.0], None, 1.0, 8) == 4
    assert needed(7.01, [1.0, 3.0, 2.0], None, 1.0, 8) == 5


def test_where_none_is_planned_what_one_carried_counts_and_else_one_will_do():
    assert needed(4.0, [], 2.0, 1.0, 8) == 2
    assert needed(4.0, [], None, 1.0, 8) == 1


# --- the forecast ---------------------------------------------------------------------------------------------------------------------


def test_the_forecast_has_the_trend_as_far_as_it_is_damped_and_a_margin_for_the_deviation():
    state = a_state(level=4.0, trend=0.02, deviation=0.5)
    assert forecast(state, timedelta(0)) == pytest.approx(4.0 + 1.5 * 0.5)
    assert forecast(state, timedelta(seconds=60)) == pytest.approx(4.0 + 0.02 * 300 * (1 - math.exp(-60 / 300)) + 0.75)
    assert forecast(a_state(level=0.0), timedelta(seconds=60)) == 0.0


def test_an_observation_moves_level_trend_and_deviation_by_its_share_of_the_time():
    state = a_state(level=4.0, trend=0.01, deviation=0.2, at=ago(10))
    found = followed(state, rate(6.0), NOW)
    expected, weight, slope = 4.0 + 0.01 * 10, 1 - math.exp(-10 / 60), 1 - math.exp(-10 / 180)
    level = expected + weight * (6.0 - expected)
    assert found.level == pytest.approx(level)
    assert found.trend == pytest.approx(0.01 + slope * ((level - 4.0) / 10 - 0.01))
    assert found.deviation == pytest.approx(0.2 + slope * (abs(6.0 - expected) - 0.2))
    assert found.at == NOW


def test_a_falling_trend_leads_to_nothing_below_zero():
    found = followed(a_state(level=0.1, trend=-1.0, at=ago(10)), rate(0.0), NOW)
    assert found.level == 0.0
    assert found.deviation == pytest.approx(0.0)


@pytest.mark.parametrize(("seconds", "anew"), [(299.9, False), (300, False), (300.1, True)])
def test_after_five_minutes_without_a_look_the_trend_starts_anew(seconds, anew):
    found = followed(a_state(level=4.0, trend=0.01, deviation=0.2, at=ago(seconds)), rate(6.0), NOW)
    assert (found.trend == 0.0) is anew
    assert (found.level == 6.0) is anew
    assert (found.deviation == pytest.approx(math.sqrt(6.0 / 60))) is anew


@pytest.mark.parametrize(("seconds", "counts"), [(-1.0, False), (0.0, False), (0.1, True)])
def test_an_observation_that_is_not_later_changes_nothing(seconds, counts):
    state = a_state(at=ago(seconds))
    assert (followed(state, rate(9.0), NOW) is not state) is counts


@pytest.mark.parametrize(
    ("load", "busy"),
    [(rate(0.0), False), (rate(0.001), True), (rate(0.0, waiting=1), True), (rate(0.0, in_flight=1), True)],
)
def test_a_request_that_came_waits_or_is_under_way_is_one_that_is_there(load, busy):
    found = followed(a_state(at=ago(10), busy_at=ago(500)), load, NOW)
    assert found.busy_at == (NOW if busy else ago(500))


def test_where_none_was_ever_seen_the_idle_time_begins_now():
    assert followed(a_state(at=ago(10), busy_at=None), rate(0.0), NOW).busy_at == NOW


def test_mean_lengths_follow_what_ends_and_stay_where_nothing_ends():
    state = a_state(at=ago(60), prompt_tokens=100.0)
    found = followed(state, rate(1.0, prompt_tokens=200.0, output_tokens=50.0), NOW)
    assert found.prompt_tokens == pytest.approx(100 + 100 * (1 - math.exp(-60 / 600)))
    assert found.output_tokens == 50.0, "the first is taken as it is"
    assert followed(state, rate(1.0), NOW).prompt_tokens == 100.0


# --- one decision ---------------------------------------------------------------------------------------------------------------------


def test_the_first_decision_takes_the_load_as_it_is():
    found = decided(None, rate(3.0, prompt_tokens=7.0, output_tokens=9.0))
    state = found.state
    assert (state.level, state.prompt_tokens, state.output_tokens) == (3.0, 7.0, 9.0)
    assert state.deviation == pytest.approx(math.sqrt(3.0 / 60))
    assert state.carries == 2.0
    assert state.busy_at == NOW


@pytest.mark.parametrize(("least", "most", "planned", "there"), [(1, 8, 2, 2), (3, 8, 2, 3), (1, 1, 2, 1), (0, 8, 0, 1), (2, 8, 0, 2)])
def test_the_first_number_is_what_is_planned_within_the_limits(least, most, planned, there):
    found = decided(None, None, ScalingPolicy(least=least, most=most), (2.0,) * planned)
    assert (found.pipelines, found.reason) == (there, "LoadUnknown")
    assert found.forecast == 0.0
    assert found.message == "the load is not known, so the number of pipelines stays"


@pytest.mark.parametrize(("per_s", "pipelines", "reason"), [(3.1, 2, "Steady"), (3.2, 2, "Steady"), (3.3, 3, "LoadRises")])
def test_it_scales_up_as_soon_as_the_need_is_more(per_s, pipelines, reason):
    found = decided(a_state(level=per_s), rate(per_s))
    assert (found.pipelines, found.reason) == (pipelines, reason)
    assert found.message == f"{per_s:.3g} requests/s now, at most {per_s:.3g} within 0 s; a pipeline carries 2, used to 80%"


@pytest.mark.parametrize(("seconds", "pipelines"), [(299.9, 2), (300, 1), (300.1, 1)])
def test_it_scales_down_when_the_need_was_lower_for_the_whole_time(seconds, pipelines):
    found = decided(a_state(level=1.0, needs=(Need(at=ago(seconds), pipelines=2), Need(at=ago(1), pipelines=1))), rate(1.0))
    assert (found.pipelines, found.reason) == (pipelines, "Steady" if pipelines == 2 else "LoadFell")


@pytest.mark.parametrize(("per_s", "pipelines"), [(1.359, 1), (1.36, 1), (1.361, 2), (1.5, 2)])
def test_and_when_fewer_carry_it_with_a_margin(per_s, pipelines):
    """One carries 2, used to 80 %, of that 85 %."""
    assert decided(a_state(level=per_s), rate(per_s)).pipelines == pipelines


@pytest.mark.parametrize(("seconds", "pipelines"), [(599.9, 1), (600, 0), (600.1, 0)])
def test_the_last_one_is_unloaded_when_nothing_came_for_the_idle_time(seconds, pipelines):
    policy = ScalingPolicy(least=0, most=8)
    found = decided(a_state(1, 0.0, busy_at=ago(seconds)), rate(0.0), policy, (2.0,))
    assert (found.pipelines, found.reason) == (pipelines, "Idle" if pipelines == 0 else "Steady")
    if pipelines == 0:
        assert found.message == f"no request for {seconds:.0f} s"


def test_but_not_where_one_is_the_least_nor_two_at_once():
    long_idle = a_state(1, 0.0, busy_at=ago(9999))
    assert decided(long_idle, rate(0.0), POLICY, (2.0,)).pipelines == 1
    two = a_state(2, 0.0, busy_at=ago(9999))
    assert decided(two, rate(0.0), ScalingPolicy(least=0, most=8)).pipelines == 1


@pytest.mark.parametrize(("load", "pipelines"), [(rate(0.0), 0), (rate(0.0, waiting=1), 1), (rate(0.0, in_flight=1), 1), (rate(0.01), 1)])
def test_from_zero_only_a_request_that_is_there_starts_the_first(load, pipelines):
    """What is left of an old forecast does not."""
    found = decided(a_state(0, 5.0, carries=20.0), load, ScalingPolicy(least=0, most=8), ())
    assert found.pipelines == pipelines
    assert found.reason == ("RequestsWait" if pipelines else "Steady")


def test_a_queue_is_load_over_the_time_ahead_and_over_a_minute_at_least():
    calm = decided(a_state(level=1.0), rate(1.0)).forecast
    assert decided(a_state(level=1.0), rate(1.0, waiting=60)).forecast == pytest.approx(calm + 1.0)
    ahead = ScalingPolicy(least=1, most=8, ahead=timedelta(seconds=120))
    assert decided(a_state(level=1.0), rate(1.0, waiting=60), ahead).forecast == pytest.approx(calm + 0.5)


def test_the_time_ahead_is_the_longer_of_what_is_set_and_what_a_start_takes():
    state = a_state(level=1.0, trend=0.01)
    policy = ScalingPolicy(least=1, most=8, ahead=timedelta(seconds=60))
    short, long = (scaled(policy, state, rate(1.0), (2.0,), now=NOW, start_seconds=seconds) for seconds in (30.0, 90.0))
    assert short.forecast == pytest.approx(forecast(state, timedelta(seconds=60)))
    assert long.forecast == pytest.approx(forecast(state, timedelta(seconds=90)))
    assert "within 90 s" in long.message


def test_what_the_weakest_carries_is_kept_for_when_none_is_planned():
    assert decided(a_state(), rate(3.0), carries=(3.0, 2.5)).state.carries == 2.5
    assert decided(a_state(carries=2.5), rate(3.0), carries=()).state.carries == 2.5
    assert "a pipeline carries" not in decided(a_state(), rate(3.0), carries=()).message


@pytest.mark.parametrize(("before", "kept"), [(3, True), (2, False), (1, False)])
def test_only_larger_needs_of_before_are_kept_in_mind(before, kept):
    """Two are needed now."""
    found = decided(a_state(4, 3.0, needs=(Need(at=ago(10), pipelines=before),)), rate(3.0), carries=(2.0,) * 4)
    assert [need.pipelines for need in found.state.needs] == ([before, 2] if kept else [2])
    assert found.pipelines == 3, "two would carry it without a margin only"


def test_the_limits_hold_where_the_least_is_the_most():
    same = ScalingPolicy(least=2, most=2)
    assert decided(a_state(5, 99.0), rate(99.0), same).pipelines == 2
    assert decided(a_state(1, 0.0), rate(0.0), same).pipelines == 2
