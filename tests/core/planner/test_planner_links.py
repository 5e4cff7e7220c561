"""Links that are absent, go one way, or are shared by several nodes: the planner against brute force, and what it says of them."""

from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from splitinference.cli.plan.input import unknown_names
from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.link import Links
from splitinference.core.planner import Infeasible, Limits, Solved
from splitinference.core.planner.chain.tables import Tables
from splitinference.core.planner.columns.presolve import needed_nodes
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Link, LinkQuality, Network, SharedLink, Snapshot, Way
from splitinference.core.values.problem import Goal, Objective, Problem, Workload
from tests.core.planner_problems import a_node, a_plan, a_profile, as_brute_force, best_value, problems, single_goals
from tests.examples import examples

WIDE, THIN = LinkQuality(bandwidth_bytes_per_s=1e8, rtt_ms=0.2), LinkQuality(bandwidth_bytes_per_s=2e6, rtt_ms=1.0)


@st.composite
def with_ways(draw: st.DrawFn, objectives: st.SearchStrategy[Objective]) -> Problem:
    """A problem with some ways closed and some links shared."""
    problem = draw(problems(objectives, layers=4, nodes=4))
    snapshot = problem.snapshot
    names = [node.name for node in snapshot.nodes]
    zones = sorted({node.zone for node in snapshot.nodes})
    pairs = [Way(source=a, target=b) for a, b in product(names, names) if a != b]
    network = snapshot.network.model_copy(
        update={
            "closed": tuple(way for way in pairs if draw(st.integers(0, 3)) == 0),
            "closed_zones": tuple(Way(source=a, target=b) for a, b in product(zones, zones) if draw(st.integers(0, 5)) == 0),
            "only_listed": draw(st.integers(0, 3)) == 0,
            "links": (
                *snapshot.network.links,
                *(Link(source=w.source, target=w.target, quality=WIDE) for w in pairs if draw(st.booleans())),
            ),
        }
    )
    return problem.model_copy(update={"snapshot": snapshot.model_copy(update={"network": network})})


@examples(60)
@given(with_ways(single_goals()))
def test_the_best_chain_over_open_ways_is_that_of_brute_force(problem: Problem) -> None:
    as_brute_force(problem)


@examples(40)
@given(with_ways(st.just(Objective())), st.lists(st.sampled_from([3e4, 1e6]), min_size=1, max_size=2), st.integers(1, 3))
def test_shared_links_are_never_forgotten_and_bounds_hold(problem: Problem, widths: list[float], behind: int) -> None:
    names = [node.name for node in problem.snapshot.nodes]
    shared = tuple(SharedLink(name=f"up{i}", nodes=tuple(names[i : i + behind]), bandwidth_bytes_per_s=w) for i, w in enumerate(widths)
                   if names[i : i + behind])  # fmt: skip
    network = problem.snapshot.network.model_copy(update={"shared": shared})
    problem = problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"network": network})})
    for goal in (Goal.LATENCY, Goal.BOTTLENECK):
        asked = problem.model_copy(update={"objective": Objective(goal=goal)})
        expected = best_value(asked)
        answer = solve(asked, Limits(seconds=60))
        if expected is None:
            assert isinstance(answer, Infeasible)
            continue
        assert isinstance(answer, Solved)
        assert answer.plan.value is not None
        assert answer.bound <= expected * (1 + 1e-9)
        assert answer.plan.value >= expected * (1 - 1e-9)
        if goal is Goal.LATENCY:
            assert answer.plan.value == pytest.approx(expected, rel=1e-6)


@examples(40)
@given(with_ways(st.just(Objective())))
def test_the_arrays_know_the_same_ways_as_the_judge(problem: Problem) -> None:
    tables = Tables(problem)
    links = Links(problem.snapshot.network, problem.snapshot.nodes)
    for i, one in enumerate(tables.members):
        for j, other in enumerate(tables.members):
            a, b = one[0][1].node.name, other[0][1].node.name
            if a == b:
                continue
            quality = links.quality(a, b)
            least = problem.constraints.min_bandwidth_bytes_per_s or 0.0
            wide = min(quality.bandwidth_bytes_per_s, links.quality(b, a).bandwidth_bytes_per_s) >= least
            assert tables.open_links[i, j] == (links.is_open(a, b) and wide)
            assert tables.links[1][i, j] == pytest.approx(1e3 / quality.bandwidth_bytes_per_s)


def two_sites(width: float, goal: Goal = Goal.BOTTLENECK) -> Problem:
    """Two sites of three nodes; each holds the model alone, and a chain over both is quicker. The sites share an uplink each."""
    nodes = tuple(
        a_node(f"n{i}", free_mib=190, gflops=60.0 + 25 * (i % 3), gbps=8.0 + i, zone="east" if i < 3 else "west") for i in range(6)
    )
    shared = tuple(SharedLink(name=f"uplink {zone}", zones=(zone,), bandwidth_bytes_per_s=width) for zone in ("east", "west"))
    load = Workload(max_context_tokens=256, prompt_tokens=64, output_tokens=32)
    snapshot = Snapshot(nodes=nodes, network=Network(default=WIDE, shared=shared))
    return Problem(profile=a_profile((60,) * 6), snapshot=snapshot, workload=load, objective=Objective(goal=goal))


def crossings(answer: object) -> int:
    assert isinstance(answer, Solved)
    homes = ["east" if int(s.node[1]) < 3 else "west" for s in answer.plan.segments]
    return sum(a != b for a, b in pairwise(homes))


def test_a_thin_shared_uplink_keeps_a_chain_on_one_side() -> None:
    assert crossings(solve(two_sites(1e9), Limits(seconds=60))) > 0
    assert crossings(solve(two_sites(3e4), Limits(seconds=60))) == 0


def test_hops_over_one_shared_link_add_up_in_the_bottleneck() -> None:
    """Out of a site twice: each hop alone would pass, both together take the uplink twice as long."""
    problem = two_sites(1e5)
    digest = problem.profile.digest
    once = a_plan("n0[0:2] n1[2:4] n3[4:6]", digest)
    twice = a_plan("n0[0:2] n3[2:4] n1[4:5] n4[5:6]", digest)
    one, two = objective_value(once, problem), objective_value(twice, problem)
    assert two == pytest.approx(2 * one, rel=0.05)


def test_throughput_over_a_shared_uplink_is_no_more_than_the_uplink_passes() -> None:
    wide, thin = (two_sites(width, Goal.THROUGHPUT) for width in (1e9, 3e4))
    free, held = solve(wide, Limits(seconds=60)), solve(thin, Limits(seconds=60))
    assert isinstance(free, Solved)
    plan = held.plan if isinstance(held, Solved) else getattr(held, "best", None)
    assert plan is not None
    assert plan.value is not None
    assert free.plan.value is not None
    assert plan.value <= free.plan.value
    assert violations(plan, thin) == ()


def test_a_way_that_is_closed_stands_in_the_way_and_says_which_one_to_open() -> None:
    nodes = tuple(a_node(name, free_mib=150) for name in ("a", "b"))
    ways = tuple(Way(source=x, target=y) for x, y in (("a", "b"), ("b", "a")))
    problem = Problem(profile=a_profile((60, 60, 60)), snapshot=Snapshot(nodes=nodes, network=Network(closed=ways)),
                      workload=Workload(max_context_tokens=256))  # fmt: skip
    answer = solve(problem, Limits(seconds=60))
    assert isinstance(answer, Infeasible)
    found = {reason.name: reason for reason in answer.reasons}
    assert "open the way from a to b" in found["closed-link"].relaxation or "open the way from b to a" in found["closed-link"].relaxation


def test_one_way_links_are_gone_along_in_their_direction() -> None:
    nodes = tuple(a_node(name, free_mib=150, gflops=speed) for name, speed in (("a", 100.0), ("b", 200.0)))
    network = Network(closed=(Way(source="a", target="b"),))
    problem = Problem(profile=a_profile((60, 60, 60)), snapshot=Snapshot(nodes=nodes, network=network),
                      workload=Workload(max_context_tokens=256))  # fmt: skip
    answer = solve(problem, Limits(seconds=60))
    assert isinstance(answer, Solved)
    assert [segment.node for segment in answer.plan.segments] == ["b", "a"]


def test_of_many_nodes_none_with_a_closed_way_is_left_out_unseen() -> None:
    nodes = tuple(a_node(f"n{i}", gflops=10.0 + i, free_mib=150) for i in range(300))
    closed = tuple(Way(source="n299", target=f"n{i}") for i in range(299))
    problem = Problem(profile=a_profile(), snapshot=Snapshot(nodes=nodes, network=Network(closed=closed)))
    assert "n299" in {node.name for node in needed_nodes(problem).snapshot.nodes}


def test_bad_links_are_refused_where_they_stand() -> None:
    with pytest.raises(ValidationError, match="'a' to itself is no link"):
        Network(closed=(Way(source="a", target="a"),))
    with pytest.raises(ValidationError, match="neither nodes nor zones"):
        SharedLink(name="up", bandwidth_bytes_per_s=1.0)
    with pytest.raises(ValidationError, match="'up' occurs twice"):
        Network(shared=(SharedLink(name="up", nodes=("a",), bandwidth_bytes_per_s=1.0),) * 2)
    with pytest.raises(ValidationError):
        SharedLink(name="up", nodes=("a",), bandwidth_bytes_per_s=0.0)
    network = Network(closed=(Way(source="a", target="ghost"),), closed_zones=(Way(source="nowhere", target=""),),
                      shared=(SharedLink(name="up", nodes=("ghost",), zones=("nowhere",), bandwidth_bytes_per_s=1.0),))  # fmt: skip
    problem = Problem(profile=a_profile(), snapshot=Snapshot(nodes=(a_node("a"),), network=network))
    lines = unknown_names(problem)
    for path in ("closed.0.target", "closed_zones.0.source", "shared.0.nodes.0", "shared.0.zones.0"):
        assert any(line.startswith(f"snapshot.network.{path}: ") for line in lines), path
