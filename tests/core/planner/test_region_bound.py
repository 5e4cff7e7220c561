"""The bound for clusters that are far apart: never above the best chain, and above what prices alone prove where it matters."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.planner.chain.bounds.dual import price, sum_along
from splitinference.core.planner.chain.bounds.regions import region_bound, regions_of
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import task_of
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot, Way
from splitinference.core.values.problem import Goal, Objective, Problem, Workload
from tests.core.planner_problems import a_node, a_profile, best_value
from tests.examples import examples

ROUNDS = 100


def in_zones(rtts: list[float], free_mib: list[int], gbps: list[float], *, closed: bool = False, in_one: int = 2) -> Problem:
    """Six nodes, so many in one zone: 0.2 ms inside, `rtts` between zones, each way its own."""
    zones = ("x", "y", "z")
    pairs = [(a, b) for a in zones for b in zones if a != b]
    between = tuple(
        Link(source=a, target=b, quality=LinkQuality(bandwidth_bytes_per_s=1e8, rtt_ms=rtt))
        for (a, b), rtt in zip(pairs, rtts, strict=True)
    )
    fast = LinkQuality(bandwidth_bytes_per_s=1e10, rtt_ms=0.2)
    inside = tuple(Link(source=z, target=z, quality=fast) for z in zones)
    nodes = tuple(
        a_node(f"n{k}", zone=zones[k // in_one], free_mib=free, gbps=speed)
        for k, (free, speed) in enumerate(zip(free_mib, gbps, strict=True))
    )
    network = Network(default=fast, zones=(*inside, *between), closed_zones=(Way(source="x", target="y"),) if closed else ())
    return Problem(
        profile=a_profile((100, 100, 100, 100)),
        snapshot=Snapshot(nodes=nodes, network=network),
        workload=Workload(prompt_tokens=16, output_tokens=8),
        objective=Objective(goal=Goal.LATENCY),
    )


@examples(25)
@given(
    st.lists(st.floats(5.0, 300.0), min_size=6, max_size=6),
    st.lists(st.sampled_from([120, 240, 360]), min_size=6, max_size=6),
    st.lists(st.floats(5.0, 50.0), min_size=6, max_size=6),
    st.booleans(),
)
def test_the_bound_is_never_above_the_best_chain(rtts: list[float], free_mib: list[int], gbps: list[float], closed: bool) -> None:
    problem = in_zones(rtts, free_mib, gbps, closed=closed)
    task, best = task_of(Tables(problem)), best_value(problem)
    most = 1e9 if best is None else best * 1.5
    found = region_bound(task, most, -math.inf, ROUNDS, lambda: False)
    if found is None:
        return
    assert found.bound <= (most if best is None else best * (1 + 1e-6))
    if found.steps is not None:
        assert best is not None
        assert found.value == pytest.approx(sum_along(task.plain, found.steps))
        assert found.value >= best * (1 - 1e-6)


def test_it_counts_the_long_hops_that_prices_forget() -> None:
    """A zone holds three layers of four, so that every chain visits two. Prices are met by chains that go round in one zone."""
    problem = in_zones([50.0] * 6, [120] * 6, [20.0, 20.1, 20.2, 20.3, 20.4, 20.5], in_one=3)
    task, best = task_of(Tables(problem)), best_value(problem)
    assert best is not None
    by_prices = price(task, best * 1.01, ROUNDS, lambda: False).bound
    found = region_bound(task, best * 1.01, by_prices, ROUNDS, lambda: False)
    assert found is not None
    assert by_prices < 0.9 * best
    assert found.bound > 0.97 * best


def test_clusters_are_found_by_their_links() -> None:
    hops = np.full((5, 5), 40.0)
    hops[:2, :2] = hops[2:, 2:] = 1.0
    np.fill_diagonal(hops, np.inf)
    found = regions_of(hops)
    assert found is not None
    assert found.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("hops", [np.full((5, 5), 3.0), np.full((2, 2), 3.0), np.full((5, 5), np.inf)], ids=["alike", "two", "none"])
def test_links_that_are_alike_make_no_clusters(hops: np.ndarray) -> None:
    assert regions_of(hops) is None


def test_it_says_so_where_it_does_not_apply() -> None:
    problem = in_zones([50.0] * 6, [120] * 6, [20.0] * 6)
    task = task_of(Tables(problem))
    assert region_bound(task, math.inf, 0.0, ROUNDS, lambda: False) is None
    goal = problem.model_copy(update={"objective": Objective(goal=Goal.BOTTLENECK)})
    assert region_bound(task_of(Tables(goal)), 1.0, 0.0, ROUNDS, lambda: False) is None
