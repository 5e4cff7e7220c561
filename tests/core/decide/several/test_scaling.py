"""The autoscaler on loads that are made up: ahead of a ramp, steady in noise, slow on the way down, to zero and back."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from splitinference.core.cost.carry import MOST_BUSY, carried
from splitinference.core.decide.scaling import Load, Need, Scaled, ScalingPolicy, ScalingState, forecast, needed, scaled
from splitinference.core.values.problem import Slo, Workload
from tests.core.planning import a_node, a_plan, a_problem

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = 10
POLICY = ScalingPolicy(least=1, most=8)


def play(
    policy: ScalingPolicy, rate: Callable[[float], float], seconds: int, *, carries: float = 2.0, start: float = 60.0, seed: int | None = 1
) -> list[tuple[float, float, Scaled]]:
    """(time, rate, decision) every ten seconds. Observed is the mean over a minute of Poisson arrivals, or the rate itself without a seed.

    A pipeline that is decided serves after `start` seconds."""
    drawn = random.Random(seed)
    state: ScalingState | None = None
    found: list[tuple[float, float, Scaled]] = []
    window: list[float] = []
    for t in range(0, seconds, EVERY):
        count = float(_poisson(drawn, rate(t) * EVERY)) if seed is not None else rate(t) * EVERY
        window = [*window, count][-6:]
        before = [decision.pipelines for at, _, decision in found if at <= t - start]
        planned = found[-1][2].pipelines if found else 1
        waiting = 1 if before and before[-1] == 0 and count else 0
        load = Load(requests_per_s=sum(window) / (len(window) * EVERY), waiting=waiting)
        made = scaled(policy, state, load, [carries] * planned, now=START + timedelta(seconds=t), start_seconds=start)
        state = made.state
        found.append((t, rate(t), made))
    return found


def _poisson(drawn: random.Random, mean: float) -> int:
    count, left = 0, drawn.expovariate(1.0)
    while left < mean:
        count, left = count + 1, left + drawn.expovariate(1.0)
    return count


def serving(found: list[tuple[float, float, Scaled]], t: float, start: float = 60.0) -> int:
    """Pipelines that serve at a time: decided `start` seconds before, or fewer since."""
    before = [decision.pipelines for at, _, decision in found if at <= max(0.0, t - start)]
    now = next(decision.pipelines for at, _, decision in found if at >= t)
    return min(before[-1] if before else 1, now) if now else 0


def test_a_ramp_is_met_before_it_comes() -> None:
    found = play(POLICY, lambda t: 0.5 + 10.0 * min(t, 1800) / 1800, 2400, seed=None)
    short = [t for t, rate, _ in found if t >= 120 and serving(found, t) * 2.0 < rate]
    assert short == []


def test_noise_alone_moves_nothing() -> None:
    for seed in range(5):
        found = play(POLICY, lambda _: 3.0, 3600, carries=5.0, seed=seed)
        numbers = [decision.pipelines for t, _, decision in found if t >= 600]
        assert sum(a != b for a, b in pairwise(numbers)) <= 2, seed


def test_down_only_after_the_need_was_lower_for_long_enough() -> None:
    found = play(POLICY, lambda t: 9.0 if t < 1200 else 1.0, 3000, seed=None)
    most = max(decision.pipelines for _, _, decision in found)
    fell = next(t for t, _, decision in found if t > 1200 and decision.pipelines < most)
    assert fell >= 1200 + POLICY.down_after.total_seconds()
    assert found[-1][2].pipelines == 1


def test_a_short_dip_is_sat_out() -> None:
    found = play(POLICY, lambda t: 2.0 if 1200 <= t < 1380 else 9.0, 2400, seed=None)
    numbers = [decision.pipelines for t, _, decision in found if t >= 600]
    assert min(numbers) == numbers[0]


def test_to_zero_when_idle_and_back_with_the_first_request() -> None:
    policy = ScalingPolicy(least=0, most=3, idle=timedelta(minutes=10))
    found = play(policy, lambda t: 0.0 if 300 <= t < 1800 else 1.0, 2400, seed=None)
    asleep = [t for t, _, decision in found if decision.pipelines == 0]
    # The window of a minute still shows requests for a minute.
    assert asleep[0] == pytest.approx(300 + 50 + 600, abs=20)
    assert asleep[-1] == 1790
    reasons = [decision.reason for _, _, decision in found]
    assert "Idle" in reasons
    assert "RequestsWait" in reasons


def test_a_pause_shorter_than_idle_keeps_the_last_pipeline() -> None:
    policy = ScalingPolicy(least=0, most=3, idle=timedelta(minutes=10))
    found = play(policy, lambda t: 0.0 if 300 <= t < 800 else 1.0, 1500, seed=None)
    assert min(decision.pipelines for _, _, decision in found) == 1


def test_unknown_is_not_zero() -> None:
    policy = ScalingPolicy(least=0, most=8, idle=timedelta(seconds=1))
    made = scaled(policy, None, Load(requests_per_s=9.0), [2.0] * 5, now=START)
    later = scaled(policy, made.state, None, [2.0] * 5, now=START + timedelta(hours=1))
    assert (later.pipelines, later.reason) == (made.pipelines, "LoadUnknown")


def test_limits_count_at_once_whatever_the_load() -> None:
    state = ScalingState(at=START, pipelines=5, level=9.0, needs=(Need(at=START, pipelines=5),))
    load = Load(requests_per_s=9.0)
    now = START + timedelta(seconds=10)
    assert scaled(ScalingPolicy(least=1, most=2), state, load, [2.0] * 5, now=now).pipelines == 2
    assert scaled(ScalingPolicy(least=7, most=9), state, load, [2.0] * 5, now=now).pipelines == 7


def test_a_queue_counts_as_load() -> None:
    state = ScalingState(at=START, pipelines=1, level=1.0)
    now = START + timedelta(seconds=10)
    calm = scaled(POLICY, state, Load(requests_per_s=1.0), [2.0], now=now)
    queued = scaled(POLICY, state, Load(requests_per_s=1.0, waiting=240), [2.0], now=now)
    assert (calm.pipelines, queued.pipelines) == (1, 4)


def test_unequal_pipelines_count_with_what_each_carries() -> None:
    assert needed(5.0, [4.0, 1.0], None, 1.0, 9) == 2
    assert needed(6.0, [4.0, 1.0], None, 1.0, 9) == 3
    assert needed(6.0, [], 2.0, 1.0, 9) == 3
    assert needed(6.0, [], None, 1.0, 9) == 1
    assert needed(99.0, [1.0], None, 1.0, 4) == 4
    assert needed(0.0, [1.0], None, 1.0, 4) == 0


def test_least_above_most_is_refused() -> None:
    with pytest.raises(ValueError, match="min 3 must be at most max 2"):
        ScalingPolicy(least=3, most=2)


def test_a_trend_does_not_go_on_for_ever() -> None:
    state = ScalingState(at=START, pipelines=1, level=1.0, trend=0.01)
    assert forecast(state, timedelta(days=1)) == pytest.approx(1.0 + 0.01 * 300)


def test_a_falling_trend_is_not_trusted() -> None:
    assert forecast(ScalingState(at=START, pipelines=1, level=5.0, trend=-0.1), timedelta(minutes=2)) == 5.0


# --- what a pipeline carries ---------------------------------------------------------------------------------------------------------

LOAD = Workload(prompt_tokens=100, output_tokens=20, max_concurrent_sequences=1000, max_context_tokens=200)


def test_without_an_slo_the_busiest_place_is_the_limit() -> None:
    problem = a_problem(a_node("a"), a_node("b"), workload=LOAD)
    plan = a_plan("a[0:1] b[1:4]", problem)
    found = carried(plan.pipelines[0], problem)
    assert plan.prediction is not None
    busy = (plan.prediction.stages[1].prefill_ms + 20 * plan.prediction.stages[1].decode_ms) / 1e3
    assert found.requests_per_s * busy == pytest.approx(MOST_BUSY, rel=1e-6)
    assert found.limit == "b is busy for 85% of its time"


def test_an_slo_lowers_what_is_carried_and_says_so() -> None:
    problem = a_problem(a_node("a"), a_node("b"), workload=LOAD)
    plan = a_plan("a[0:1] b[1:4]", problem)
    assert plan.prediction is not None
    each = plan.prediction.time_per_output_token_ms
    bound = problem.model_copy(update={"slo": Slo(time_per_output_token_ms=1.5 * each)})
    tight, free = carried(plan.pipelines[0], bound), carried(plan.pipelines[0], problem)
    assert 0 < tight.requests_per_s < free.requests_per_s
    assert tight.limit.startswith("an output token takes")


def test_few_sequences_at_once_are_a_limit_by_littles_law() -> None:
    problem = a_problem(a_node("a"), workload=LOAD.model_copy(update={"max_concurrent_sequences": 1}))
    plan = a_plan("a[0:4]", problem)
    found = carried(plan.pipelines[0], problem)
    assert found.limit == "1 sequences are in flight"
    assert plan.prediction is not None
    assert found.requests_per_s < 1e3 / plan.prediction.latency_ms


def test_an_slo_that_is_broken_without_load_does_not_make_it_carry_nothing() -> None:
    problem = a_problem(a_node("a"), workload=LOAD)
    plan = a_plan("a[0:4]", problem)
    impossible = problem.model_copy(update={"slo": Slo(time_per_output_token_ms=1e-3)})
    assert carried(plan.pipelines[0], impossible) == carried(plan.pipelines[0], problem)
