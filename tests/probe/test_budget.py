"""The probe's budget: a strict limit for any sixty seconds; and how large a burst is."""

import random

import pytest

from splitinference.probe.budget import WINDOW_S, Budget
from splitinference.probe.rounds import LEAST_BURST, burst_size

MIB = 1 << 20


def test_no_window_of_a_minute_ever_holds_more():
    numbers, budget, spent, now = random.Random(7), Budget(16 * MIB), [], 0.0
    for _ in range(2000):
        now += numbers.uniform(0, 3)
        size = numbers.randrange(1, 2 * MIB)
        if budget.left(now) >= size:
            budget.spend(size, now)
            spent.append((now, size))
    assert len(spent) > 100
    assert max(sum(size for at, size in spent if start <= at < start + WINDOW_S) for start, _ in spent) <= 16 * MIB


def test_no_budget_is_no_byte():
    assert Budget(0).left(1e9) == 0


@pytest.mark.parametrize(
    ("mbps", "size"),
    [(None, MIB), (10_000, MIB), (8, 96 << 10), (10, 96 << 10), (40, 480 << 10), (0.1, LEAST_BURST)],
)
def test_a_burst_takes_a_tenth_of_a_second_on_a_thin_link(mbps: float | None, size: int):
    assert burst_size(mbps, MIB) == size
