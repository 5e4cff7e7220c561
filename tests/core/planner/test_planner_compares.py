"""No goal returns a plan that another of our own algorithms beats; and what is said of infeasible problems is sufficient and smallest."""

import re
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner import Infeasible, Limits, Solved, TimedOut
from splitinference.core.planner.columns.heuristics import heuristic_chains
from splitinference.core.planner.lab.baselines import CHAINS
from splitinference.core.planner.solver import solve
from splitinference.core.planner.throughput.decomposition import plan_of_runs
from splitinference.core.planner.throughput.rules import RULES
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Workload
from tests.core.planner_problems import a_node, a_profile, best_value, problems, single_goals
from tests.examples import examples

GOALS = (Goal.LATENCY, Goal.BOTTLENECK, Goal.THROUGHPUT, Goal.ENERGY, Goal.COST, Goal.MOVE)


@st.composite
def clusters(draw: st.DrawFn) -> Problem:
    """More nodes and layers than can be tried one by one, in two zones."""
    count = draw(st.integers(6, 9))
    nodes = tuple(
        a_node(f"n{i}", free_mib=draw(st.sampled_from([140, 200, 330])), gflops=draw(st.sampled_from([40.0, 90.0, 200.0])),
               gbps=draw(st.sampled_from([4.0, 9.0])), utilization=draw(st.sampled_from([0.0, 0.3])), zone=draw(st.sampled_from("xy")),
               cost_per_hour=draw(st.sampled_from([1.0, 3.0])), idle_watts=5.0, busy_watts=draw(st.sampled_from([20.0, 90.0])))
        for i in range(count)
    )  # fmt: skip
    between = LinkQuality(bandwidth_bytes_per_s=draw(st.sampled_from([2e5, 5e6])), rtt_ms=draw(st.sampled_from([1.0, 20.0])))
    network = Network(zones=tuple(Link(source=a, target=b, quality=between) for a, b in ("xy", "yx")))
    return Problem(
        profile=a_profile((40, *((60,) * draw(st.integers(4, 8))), 50)), snapshot=Snapshot(nodes=nodes, network=network),
        workload=Workload(max_context_tokens=256, prompt_tokens=32, output_tokens=16), serving=((0, 2, "n0"), (2, 5, "n1")),
        constraints=Constraints(max_stage_nodes=1),
    )  # fmt: skip


def plan_of(answer: object) -> Plan | None:
    return answer.plan if isinstance(answer, Solved) else answer.best if isinstance(answer, TimedOut) else None


def by_all_algorithms(problem: Problem) -> Iterator[tuple[str, Plan]]:
    """What each of our algorithms makes of the problem: every goal's answer, heuristics, baselines, rules for flows."""
    for goal in GOALS:
        if goal is not problem.objective.goal:
            other = plan_of(solve(problem.model_copy(update={"objective": Objective(goal=goal)}), Limits(seconds=30)))
            if other is not None:
                yield goal.value, other
    for pipeline in heuristic_chains(problem):
        yield "heuristic", Plan(model_digest=problem.profile.digest, pipelines=(pipeline,))
    for name, make in CHAINS.items():
        if (made := make(problem)) is not None:
            yield name, made
    if problem.objective.goal is Goal.THROUGHPUT:
        for name, rule in RULES.items():
            if (flow := plan_of_runs(rule(problem), problem)) is not None:
                yield name, flow


@examples(8)
@given(clusters(), st.sampled_from(GOALS), st.sampled_from([30.0, 1e-6]))
def test_no_algorithm_of_ours_beats_the_answer_for_a_goal(problem: Problem, goal: Goal, seconds: float) -> None:
    """Also where the time is over at once, an answer is no worse than the rules that are asked first; with time, than none."""
    asked = problem.model_copy(update={"objective": Objective(goal=goal)})
    answer = solve(asked, Limits(seconds=seconds))
    plan = plan_of(answer)
    if isinstance(answer, Infeasible) or (plan is None and seconds < 1):
        return
    assert plan is not None
    mine = objective_value(plan, asked)
    for name, other in by_all_algorithms(asked) if seconds > 1 else ():
        if violations(other, asked):
            continue
        theirs = objective_value(other, asked)
        if goal is Goal.THROUGHPUT:
            assert mine >= theirs * (1 - 1e-6), name
        else:
            assert mine <= theirs * (1 + 1e-6) + 1e-9, name


def within(problem: Problem, slo_field: str, ms: float) -> Problem:
    return problem.model_copy(update={"slo": problem.slo.model_copy(update={slo_field: ms})})


def bounded(problem: Problem, field: str, value: object) -> Problem:
    return problem.model_copy(update={"constraints": problem.constraints.model_copy(update={field: value})})


def with_memory(problem: Problem, more: int) -> Problem:
    nodes = tuple(
        node.model_copy(
            update={
                "memory_free_bytes": node.memory_free_bytes + more,
                "processors": tuple(p.model_copy(update={"memory_free_bytes": p.memory_free_bytes + more}) for p in node.processors),
            }
        )
        for node in problem.snapshot.nodes
    )
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})


SAID: dict[str, tuple[str, Callable[[Problem, float], Problem], float, float]] = {
    "slo-time-to-first-token": (r"^([\d.e+]+) ms", lambda p, x: within(p, "time_to_first_token_ms", x), 0.998, 0.0),
    "slo-time-per-output-token": (r"^([\d.e+]+) ms", lambda p, x: within(p, "time_per_output_token_ms", x), 0.998, 0.0),
    "utilization": (r"ceiling of (\d+) %", lambda p, x: bounded(p, "utilization_ceiling", x / 100), 1.0, -1.0),
    "min-bandwidth": (r"^(\d+) B/s", lambda p, x: bounded(p, "min_bandwidth_bytes_per_s", x), 1.0, 2.0),
    "min-segments": (r"min_segments (\d+)", lambda p, x: bounded(p, "min_segments", int(x)), 1.0, 1.0),
    "max-segments": (r"max_segments (\d+)", lambda p, x: bounded(p, "max_segments", int(x)), 1.0, -1.0),
    "max-nodes": (r"max_nodes (\d+)", lambda p, x: bounded(p, "max_nodes", int(x)), 1.0, -1.0),
    "memory": (r"^(\d+) MiB", lambda p, x: with_memory(p, int(x) * 2**20), 1.0, -1.0),
}
"""By constraint: where its advice has the figure, the problem with that figure, and how to make it a little less: a factor, a sum."""


@examples(60)
@given(problems(single_goals(), layers=4, nodes=3))
def test_what_is_advised_is_sufficient_and_a_little_less_is_not(problem: Problem) -> None:
    answer = solve(problem, Limits(seconds=120))
    if not isinstance(answer, Infeasible):
        return
    assert best_value(problem) is None
    for reason in answer.reasons:
        pattern, changed, factor, less = SAID.get(reason.name, ("$^", with_memory, 1.0, 0.0))
        found = re.search(pattern, reason.relaxation)
        if found is None:
            continue
        figure = float(found.group(1))
        assert best_value(changed(problem, figure)) is not None, reason
        short = figure * factor + less
        if short > 0:
            assert best_value(changed(problem, short)) is None, reason


def test_two_goals_never_disagree_about_one_chain() -> None:
    """A chain that `latency` finds is offered to `bottleneck`, too, where that is not proven."""
    nodes = tuple(a_node(f"n{i}", free_mib=150, gflops=30.0 + i) for i in range(4))
    problem = Problem(profile=a_profile((60, 60)), snapshot=Snapshot(nodes=nodes), workload=Workload(max_context_tokens=256))
    for goal in (Goal.LATENCY, Goal.BOTTLENECK):
        asked = problem.model_copy(update={"objective": Objective(goal=goal)})
        answer = solve(asked, Limits(seconds=60))
        assert isinstance(answer, Solved)
        assert answer.plan.value == pytest.approx(best_value(asked), rel=1e-9)
        assert isinstance(answer.plan.pipelines[0], Pipeline)
