"""What a solve has so far is there whenever it ends: by its deadline, by its cap on memory, or because its process is killed."""

import math
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner import Limits, Solved, SolverProcess, TimedOut, solver
from splitinference.core.planner import process as planner_process
from splitinference.core.planner.columns.master import Choice
from splitinference.core.planner.progress import Progress
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Workload
from splitinference.core.values.result import Incumbent
from tests.core.planner_problems import a_node, a_plan, a_profile


def many(count: int = 270, goal: Goal = Goal.LATENCY, layers: int = 24) -> Problem:
    """Unequal nodes on unequal links between zones: not answered at once."""
    nodes = tuple(
        a_node(f"n{i}", free_mib=120 + i * 7 % 90, gflops=40.0 + i * 13 % 61, utilization=(i * 37 % 60) / 100, zone=f"z{i % 5}")
        for i in range(count)
    )
    zones = tuple(
        Link(source=f"z{a}", target=f"z{b}", quality=LinkQuality(bandwidth_bytes_per_s=1e6 * (3 + a + 2 * b), rtt_ms=1.0 + a * b))
        for a in range(5)
        for b in range(5)
    )
    return Problem(
        profile=a_profile((40, *((60,) * (layers - 2)), 50)), snapshot=Snapshot(nodes=nodes, network=Network(zones=zones)),
        workload=Workload(max_context_tokens=256), objective=Objective(goal=goal),
    )  # fmt: skip


def goals() -> Iterator[Problem]:
    yield many()
    yield many(goal=Goal.BOTTLENECK)
    yield many(24, Goal.THROUGHPUT, 8)
    two = many(24, Goal.LATENCY, 12)
    yield two.model_copy(update={"constraints": Constraints(pipelines=2)})


def plan_of(answer: object) -> Plan | None:
    return answer.plan if isinstance(answer, Solved) else answer.best if isinstance(answer, TimedOut) else None


@pytest.mark.parametrize("problem", list(goals()), ids=["latency", "bottleneck", "throughput", "two pipelines"])
def test_plans_and_bounds_are_reported_on_the_way_and_only_get_better(problem: Problem) -> None:
    heard: list[Incumbent] = []
    answer = solver.solve(problem, Limits(seconds=120), report=heard.append)
    plan = plan_of(answer)
    assert plan is not None
    sign = -1.0 if problem.objective.goal is Goal.THROUGHPUT else 1.0
    values = [sign * objective_value(found.plan, problem) for found in heard if found.plan is not None]
    assert values, "no plan was reported before the answer"
    assert values == sorted(values, reverse=True)
    assert all(not violations(found.plan, problem) for found in heard if found.plan is not None)
    bounds = [sign * found.bound for found in heard]
    assert bounds == sorted(bounds)
    best = sign * objective_value(plan, problem)
    assert best <= values[-1] + 1e-9 * abs(best)
    assert all(bound <= best + 1e-9 * abs(best) for bound in bounds)


def test_a_process_that_is_killed_leaves_the_best_plan_and_bound_that_it_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed by its number as soon as it has reported a plan and a bound: the answer is those."""
    problem = many()
    monkeypatch.setattr(planner_process, "START_SECONDS", 600.0)
    with SolverProcess() as process:
        receive, heard = planner_process._receive, list[Incumbent]()

        def killing(running: object, deadline: float) -> bytes | None:
            data = receive(running, deadline)  # type: ignore[arg-type]
            if data is not None and data != b"ready" and isinstance(found := planner_process.pickle.loads(data), Incumbent):
                heard.append(found)
                if found.plan is not None and math.isfinite(found.bound):
                    assert process._process is not None
                    os.kill(process._process.pid, signal.SIGKILL)
            return data

        monkeypatch.setattr(planner_process, "_receive", killing)
        answer = process.solve(problem, Limits(seconds=120))
        last = heard[-1]
        plan = plan_of(answer)
        assert plan is not None
        assert last.plan is not None
        assert plan.pipelines == last.plan.pipelines
        assert plan.bound == pytest.approx(min(last.bound, objective_value(last.plan, problem)))
        assert isinstance(answer, Solved) == (plan.gap is not None and plan.gap <= 0.05)
        monkeypatch.setattr(planner_process, "_receive", receive)
        assert isinstance(process.solve(many(8, layers=6)), Solved), "the next problem has a process of its own"


def test_whatever_does_not_look_at_the_clock_is_interrupted_and_the_best_so_far_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, known = many(8, layers=5), threading.Event()

    def stuck(given: Problem, _hint: object, _expired: object, _seconds: float, progress: Progress) -> object:
        progress.plan(a_plan("n0[0:2] n1[2:3] n2[3:5]"))
        progress.bound(1e-3)
        known.set()
        raise solver.DeadlineError

    monkeypatch.setattr(solver, "_answer", stuck)
    answer = solver.solve(problem, Limits(seconds=60))
    assert known.is_set()
    assert isinstance(answer, TimedOut)
    assert answer.best is not None
    assert answer.best.pipelines == a_plan("n0[0:2] n1[2:3] n2[3:5]").pipelines
    assert answer.bound == pytest.approx(1e-3)


def test_where_memory_ends_the_best_so_far_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(given: Problem, _hint: object, _expired: object, _seconds: float, progress: Progress) -> object:
        progress.plan(a_plan("n0[0:2] n1[2:3] n2[3:5]"))
        raise MemoryError

    monkeypatch.setattr(solver, "_answer", out_of_memory)
    answer = solver.solve(many(8, layers=5), Limits(seconds=60))
    assert isinstance(answer, TimedOut)
    assert answer.best is not None
    assert answer.bound == -math.inf


def test_without_a_plan_so_far_memory_that_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> object:
        raise MemoryError

    monkeypatch.setattr(solver, "_answer", out_of_memory)
    with pytest.raises(MemoryError):
        solver.solve(many(8, layers=5), Limits(seconds=60))


def test_an_answer_that_another_of_our_algorithms_beats_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    better, worse = a_plan("n5[0:2] n1[2:3] n2[3:5]"), a_plan("n0[0:1] n1[1:2] n2[2:3] n3[3:4] n4[4:5]")
    problem = many(8, layers=5)
    better, worse = sorted((better, worse), key=lambda plan: objective_value(plan, problem))

    def poor(given: Problem, _hint: object, _expired: object, _seconds: float, progress: Progress) -> object:
        progress.plan(better)
        return solver._Answer(worse, 0.0)

    monkeypatch.setattr(solver, "_answer", poor)
    answer = solver.solve(problem, Limits(seconds=60))
    plan = answer.plan if isinstance(answer, Solved) else None
    assert plan is not None
    assert objective_value(plan, problem) <= objective_value(better, problem) < objective_value(worse, problem)


def test_where_the_time_is_over_before_the_choice_the_best_priced_chain_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = many(8, layers=5)
    expected = solver.solve(problem, Limits(seconds=60))
    monkeypatch.setattr(solver, "choose", lambda *_: Choice(None, -math.inf, refuted=False))
    answer = solver.solve(problem, Limits(seconds=60))
    assert isinstance(expected, Solved)
    assert isinstance(answer, Solved)
    assert answer.plan.value == pytest.approx(expected.plan.value)
