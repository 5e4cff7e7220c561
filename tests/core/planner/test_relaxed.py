"""The relaxation without chains that turn back, against all walks that do not."""

import math
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.planner.chain.bounds.dual import sum_along
from splitinference.core.planner.chain.bounds.relaxed import Step, complete, onward, path, turns_back
from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.chain.task import task_of
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot
from splitinference.core.values.problem import Objective, Problem, Workload
from tests.core.planner_problems import a_node, a_profile
from tests.examples import examples


@st.composite
def lines(draw: st.DrawFn) -> Problem:
    """Few nodes, every link with figures of its own, and memory for one to three layers each."""
    count = draw(st.integers(2, 4))
    nodes = tuple(
        a_node(f"n{i}", free_mib=draw(st.sampled_from([80, 150, 220])), gflops=draw(st.sampled_from([30.0, 90.0]))) for i in range(count)
    )
    links = tuple(
        Link(source=a.name, target=b.name, quality=LinkQuality(bandwidth_bytes_per_s=draw(st.sampled_from([1e6, 1e7, 1e8])), rtt_ms=1.0))
        for a, b in product(nodes, nodes)
        if a is not b
    )
    return Problem(profile=a_profile((60,) * draw(st.integers(2, 5))), snapshot=Snapshot(nodes=nodes, network=Network(links=links)),
                   workload=Workload(max_context_tokens=256), objective=Objective())  # fmt: skip


def walks(arrays: Arrays) -> list[tuple[Step, ...]]:
    """Every walk over classes that covers the layers; places may come back, but not at once, and never twice in a row."""
    layers, count = arrays.tables.layers, arrays.tables.count
    single = arrays.tables.multiplicity == 1
    found: list[tuple[Step, ...]] = []

    def extend(done: tuple[Step, ...], boundary: int) -> None:
        if boundary == layers:
            found.append(done)
            return
        for c in range(count):
            back = len(done) > 1 and done[-2].place == c and single[c]
            if back or (done and done[-1].place == c and single[c]):
                continue
            for end in range(boundary + 1, arrays.stop[boundary]):
                if math.isfinite(arrays.segment(boundary, end, c)):
                    extend((*done, Step(boundary, end, c)), end)

    extend((), 0)
    return found


@examples(60)
@given(lines())
def test_the_least_chain_that_does_not_turn_back_is_that_of_all_walks(problem: Problem) -> None:
    arrays = task_of(Tables(problem)).plain
    expected = min((sum_along(arrays, walk) for walk in walks(arrays)), default=math.inf)
    found = onward(arrays)
    assert found.value == (expected if math.isinf(expected) else pytest.approx(expected, rel=1e-9))
    assert complete(arrays).value <= found.value * (1 + 1e-12)
    if math.isfinite(found.value):
        steps = path(arrays, found)
        assert not turns_back(arrays, steps)
        assert all(before.end == after.start for before, after in pairwise(steps))
        assert sum_along(arrays, steps) == pytest.approx(found.value, rel=1e-9)
