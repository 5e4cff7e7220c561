"""CP-SAT at the heart of planning: every chain is chosen by the master, and the circuit model knows the truth independently."""

import pytest
from hypothesis import given
from ortools.sat.python import cp_model

from splitinference.core.cost import objective_value, violations
from splitinference.core.planner import Infeasible, Limits, Solved, SolverProcess
from splitinference.core.planner.columns.columns import Pool, column, plan_with
from splitinference.core.planner.columns.master import choose
from splitinference.core.planner.lab.circuit import circuit, covers
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Workload
from tests.core.planner_problems import a_node, a_plan, a_profile, problems, single_goals, valid_chains
from tests.examples import examples

SETTINGS = examples(60)


def one_model(**more: object) -> Problem:
    nodes = tuple(a_node(f"n{i}", free_mib=500, gflops=50.0 * (i + 1), cost_per_hour=1.0 + i) for i in range(4))
    base = {"profile": a_profile(), "snapshot": Snapshot(nodes=nodes), "workload": Workload(max_context_tokens=256)}
    return Problem.model_validate({**base, **more})


@pytest.mark.parametrize(
    "problem",
    [
        one_model(),
        one_model(objective=Objective(goal=Goal.BOTTLENECK)),
        one_model(objective=Objective(goal=Goal.COST, then=(Goal.LATENCY,))),
        one_model(constraints=Constraints(pipelines=2)),
        one_model(constraints=Constraints(max_stage_nodes=2)),
    ],
)
def test_the_operators_own_solve_reaches_cp_sat(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """One resource's plan is CP-SAT's choice: its solver runs, and what it takes is the answer."""
    models: list[cp_model.CpModel] = []
    runs = cp_model.CpSolver.solve

    def counted(solver: cp_model.CpSolver, model: cp_model.CpModel) -> object:
        models.append(model)
        return runs(solver, model)

    monkeypatch.setattr(cp_model.CpSolver, "solve", counted)
    answer = solve(problem)
    assert isinstance(answer, Solved)
    assert models
    assert answer.columns >= len(answer.plan.pipelines)


def test_the_solver_process_of_the_operator_says_among_how_many_columns_cp_sat_chose() -> None:
    with SolverProcess() as process:
        answer = process.solve(one_model())
        again = process.solve(one_model(), hint=answer.plan if isinstance(answer, Solved) else None)
    assert isinstance(answer, Solved)
    assert isinstance(again, Solved)
    assert answer.columns >= 1
    assert again.plan.revision == answer.plan.revision


@SETTINGS
@given(problems(single_goals().filter(lambda o: not o.utilization_weight), layers=6))
def test_the_circuit_model_and_the_planner_agree(problem: Problem) -> None:
    if not covers(problem):
        return
    answer, other = solve(problem, Limits(seconds=60)), circuit(problem, 60.0)
    assert other.proven
    if other.plan is None:
        assert isinstance(answer, Infeasible)
        return
    assert violations(other.plan, problem) == ()
    assert isinstance(answer, Solved)
    value = objective_value(other.plan, problem)
    assert answer.plan.value == pytest.approx(value, rel=1e-6, abs=1e-7)
    assert other.bound <= value * (1 + 1e-6) + 1e-7


@examples(40)
@given(problems(single_goals(), layers=4, nodes=3))
def test_from_all_chains_the_master_takes_the_best(problem: Problem) -> None:
    """The smallest case of the master: one problem, one chain, all chains as columns."""
    columns = tuple(c for chain in valid_chains(problem) if (c := column(chain, problem)))
    choice = choose([problem], [Pool(columns, whole=True)], 60.0)
    if not columns:
        assert choice.refuted
        return
    assert choice.columns is not None
    best = min(objective_value(Plan(model_digest="0" * 64, pipelines=(c.pipeline,)), problem) for c in columns)
    assert objective_value(plan_with(problem, choice.columns[0]), problem) == pytest.approx(best, rel=1e-8, abs=1e-8)
    assert choice.bound <= best * (1 + 1e-9) + 1e-9


def test_further_goals_decide_among_equally_good_columns() -> None:
    """Two nodes of one price: the cheaper goal leaves both, the next one takes the quicker."""
    nodes = (
        a_node("slow", gflops=10.0, cost_per_hour=1.0),
        a_node("fast", gflops=400.0, cost_per_hour=1.0),
        a_node("dear", cost_per_hour=2.0),
    )
    problem = one_model(snapshot=Snapshot(nodes=nodes), objective=Objective(goal=Goal.COST, then=(Goal.LATENCY,)))
    columns = tuple(c for name in ("slow", "dear", "fast") if (c := column(a_plan(f"{name}[0:5]").pipelines[0], problem)))
    choice = choose([problem], [Pool(columns, whole=True)], 60.0)
    assert choice.columns is not None
    assert choice.columns[0][0].pipeline.segments[0].node == "fast"


def test_values_far_from_one_are_chosen_as_well() -> None:
    """Times of hours and prices of a millionth: the figures are scaled to the solver's whole numbers, not cut off."""
    for gflops in (1e-9, 1e9):
        nodes = tuple(a_node(f"n{i}", free_mib=600, gflops=gflops * (i + 1), gbps=gflops * (i + 1)) for i in range(4))
        problem = one_model(snapshot=Snapshot(nodes=nodes), constraints=Constraints(pipelines=2))
        answer = solve(problem)
        assert isinstance(answer, Solved)
        assert answer.plan.value == pytest.approx(objective_value(a_plan("n2[0:5]|n3[0:5]"), problem), rel=1e-9)
