"""`splitinference bench planner`: value, bound, gap and time of the planner beside other methods, on the same problems in one run."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.planning import instances as family
from splitinference.cli.bench.planning.instances import Instance
from splitinference.cli.plan.arguments import seconds
from splitinference.core.cost import objective_value, violations
from splitinference.core.cost.flow import flow_over
from splitinference.core.planner import JointlySolved, Limits, Solved, TimedOut, solve
from splitinference.core.planner.lab.baselines import CHAINS
from splitinference.core.planner.throughput.rules import RULES as FLOWS
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Goal, Objective, Problem, Slo

Row = dict[str, Any]
Clock = Callable[[], float]
_FAMILIES = (
    family.homogeneous, family.three_classes, family.three_classes_busy, family.two_regions, family.one_fast, family.all_unequal,
)  # fmt: skip
_BASELINE_NODES = 128
CIRCUIT_NODES = 16
"""On more nodes the circuit model is asked only if `--circuit-nodes` says so: it takes all the time that it gets."""
CIRCUIT_SECONDS = 5.0
CIRCUIT = "circuit CP-SAT"
MANY_MODELS, JOINT_TIMES = 8, 6
"""More models than so many have so many times the time of one problem."""
MS_PER_GIB = 0.1
"""What a GiB to move weighs in the rows with moves: to move all of a model of 130 GiB counts about as much as a whole bottleneck."""


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("planner", help="the planner beside other methods", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small instances, for a check of correctness")
    parser.add_argument("--json", action="store_true", help="one JSON object with `rows`")
    parser.add_argument("--seconds", type=seconds, default=10.0, help="time limit for one problem (default 10)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of CPU time instead of the clock's, for figures and limits, where others use the machine",
    )
    parser.add_argument("--only", default="", help="only instances whose name contains this, or one of these with commas between")
    parser.add_argument(
        "--circuit-nodes", type=int, metavar="N",
        help=f"ask the circuit model on instances of at most N nodes (default {CIRCUIT_NODES}); JSON rows then have its bound and time too",
    )  # fmt: skip
    parser.add_argument(
        "--circuit-seconds", type=seconds, default=CIRCUIT_SECONDS, help=f"time limit of the circuit model (default {CIRCUIT_SECONDS:g})"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a baseline beats the planner, which would be a defect."""
    rows = []
    clock = time.process_time if args.cpu_time else time.perf_counter
    wanted = args.only.split(",")
    # The first solve of a process loads what all others then have.
    for small in (family.homogeneous(2, 6), family.shaped(family.homogeneous(4, 6), pipelines=2)):
        solve(small.problem, Limits(args.seconds))
    for instance, goal in cases(quick=args.quick):
        if any(part in instance.name for part in wanted):
            row = measure(instance, goal, args.seconds, clock)
            if row["nodes"] <= (CIRCUIT_NODES if args.circuit_nodes is None else args.circuit_nodes):
                detail = add_circuit(row, instance.with_goal(goal), args.circuit_seconds, clock)
                if args.circuit_nodes is not None and detail is not None:
                    row["circuit"] = detail
            rows.append(row)
            sys.stderr.write(f"{rows[-1]['instance']}, {rows[-1]['objective']}: {rows[-1]['seconds']} s\n")
    for name, problems in several(quick=args.quick):
        if any(part in name for part in wanted):
            rows.append(measure_jointly(name, problems, args.seconds, clock))
            sys.stderr.write(f"{rows[-1]['instance']}, {rows[-1]['objective']}: {rows[-1]['seconds']} s\n")
    if not args.quick and (not args.only or "re-solved" in wanted):
        rows.append(resolve(family.three_classes_busy(64), args.seconds, clock))
    if args.json:
        print(json.dumps({"rows": rows}, indent=2))
    else:
        Console(width=None if sys.stdout.isatty() else 220, highlight=False).print(table(rows))
    beaten = [row for row in rows if worse(row)]
    for row in beaten:
        sys.stderr.write(f"a baseline is better on {row['instance']}, {row['objective']}: {row['baselines']}\n")
    return 1 if beaten else 0


def cases(*, quick: bool) -> Iterator[tuple[Instance, Goal]]:
    """Instances and goals."""
    if quick:
        small = [make(10, 24) for make in _FAMILIES]
        for instance in (*small, family.edge_testbed("7B")):
            yield from ((instance, goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
        yield family.helix(24), Goal.THROUGHPUT
        yield moving(family.three_classes_busy(10, 24), family.three_classes(10, 24)), Goal.BOTTLENECK
        return
    for count in (32, 64, 100, 1000):
        for make in _FAMILIES:
            yield from ((make(count), goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    for layers in (24, 128):
        instance = family.three_classes_busy(64, layers)
        named = Instance(f"{instance.name}-{layers}-layers", instance.problem)
        yield from ((named, goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    for size in ("7B", "13B", "70B"):
        yield from ((family.edge_testbed(size), goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    yield from ((family.helix(count), Goal.THROUGHPUT) for count in (24, 42))
    for make in (family.one_fast, family.three_classes_busy, family.all_unequal):
        yield from ((within(make(32), times), Goal.COST) for times in (1.1, 2.0))
    for count in (32, 64):
        yield moving(family.three_classes_busy(count), family.three_classes(count)), Goal.BOTTLENECK
    for layers, count in ((6, 4), (24, 16), (80, 64)):
        instance = family.three_classes_busy(count, layers)
        for shape in ({"pipelines": 2}, {"max_stage_nodes": 2}):
            yield from ((family.shaped(instance, **shape), goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    yield from large_cases()


def large_cases() -> Iterator[tuple[Instance, Goal]]:
    """The largest instances, of 128 layers."""
    for make in (family.regions, family.star, family.line):
        yield from ((make(1000), goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    yield family.few_layers_a_node(), Goal.LATENCY
    yield from ((family.thousands(), goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    unequal = family.all_unequal(1000, 128)
    yield within(unequal, 1.5), Goal.COST
    yield within(family.regions(1000), 1.5), Goal.COST
    yield in_order(unequal, (Goal.LATENCY,)), Goal.COST
    yield from ((family.shaped(unequal, pipelines=4), goal) for goal in (Goal.LATENCY, Goal.BOTTLENECK))
    for count in (100, 1000):
        yield family.all_unequal(count, 128), Goal.THROUGHPUT
    yield family.helix_regions(24), Goal.THROUGHPUT
    yield family.helix_regions(42), Goal.THROUGHPUT


def in_order(instance: Instance, then: tuple[Goal, ...]) -> Instance:
    """The instance with further goals."""
    problem = instance.problem.model_copy(update={"objective": Objective(goal=Goal.COST, then=then)})
    return Instance(f"{instance.name} then {', '.join(goal.value for goal in then)}", problem)


def within(instance: Instance, times: float) -> Instance:
    """The instance with an SLO: each output token in at most `times` the time of the plan of least latency."""
    quickest = solve(instance.problem, Limits())
    if not isinstance(quickest, Solved) or quickest.plan.prediction is None:
        raise ValueError(f"{instance.name} has no plan to take an SLO from")
    slo = Slo(time_per_output_token_ms=quickest.plan.prediction.time_per_output_token_ms * times)
    return Instance(f"{instance.name} SLO × {times:g}", instance.problem.model_copy(update={"slo": slo}))


def moving(instance: Instance, before: Instance, weight: float = MS_PER_GIB) -> Instance:
    """The instance served by what was best before, for the bottleneck and `weight` ms for each GiB to move from that."""
    served = solve(before.with_goal(Goal.BOTTLENECK), Limits())
    if not isinstance(served, Solved):
        raise ValueError(f"{before.name} has no plan to move from")
    problem = instance.problem.model_copy(
        update={
            "objective": Objective(goal=Goal.BOTTLENECK, move_weight=weight),
            "serving": tuple((s.start, s.end, s.node) for s in served.plan.segments),
        }
    )
    return Instance(f"{instance.name} with moves", problem)


def several(*, quick: bool) -> Iterator[tuple[str, tuple[Problem, ...]]]:
    """Problems of unlike goals on the same nodes, to be planned jointly."""
    layers, count = (24, 10) if quick else (80, 32)
    one = family.three_classes_busy(count, layers)
    other = one.problem.model_copy(update={"profile": family.transformer(12 if quick else 40, 5120, name="13B"),
                                           "objective": Objective(goal=Goal.BOTTLENECK)})  # fmt: skip
    yield f"{one.name} two models", (one.with_goal(Goal.LATENCY), other)
    if not quick:
        yield "200 models on 400 nodes", family.many_models(200, 400)


def measure(instance: Instance, goal: Goal, seconds: float, clock: Clock = time.perf_counter) -> Row:
    """One row: the planner and every baseline that has an answer."""
    problem = instance.with_goal(goal)
    return {**_row(instance.name, problem, seconds, None, clock), "baselines": baselines(problem)}


def measure_jointly(name: str, problems: tuple[Problem, ...], seconds: float, clock: Clock = time.perf_counter) -> Row:
    """One row: several models jointly, beside one after the other in both orders, in the measure of unlike goals."""
    from splitinference.core.planner.joint import solve_in_turn, solve_jointly

    began = clock()
    limits = Limits(seconds * (JOINT_TIMES if len(problems) > MANY_MODELS else 1), cpu_time=clock is time.process_time)
    found = solve_jointly(problems, limits)
    took = clock() - began
    in_turn = {"in turn": solve_in_turn(problems, limits)}
    if len(problems) <= MANY_MODELS:
        in_turn["in turn, last first"] = solve_in_turn(problems[::-1], limits)
    solved = found if isinstance(found, JointlySolved) else None
    return {
        "instance": name,
        "objective": "jointly " + " + ".join(dict.fromkeys(problem.objective.goal.value for problem in problems)),
        "layers": sum(len(problem.profile.layers) for problem in problems),
        "nodes": len(problems[0].snapshot.nodes),
        "seconds": round(took, 3),
        "value": solved.value if solved else None,
        "bound": solved.bound if solved else None,
        "gap": solved.gap if solved else None,
        "optimal": solved.optimal if solved else False,
        "baselines": {name: answer.value if isinstance(answer, JointlySolved) else None for name, answer in in_turn.items()},
    }


def resolve(instance: Instance, seconds: float, clock: Clock = time.perf_counter) -> Row:
    """One row: the same problem after one node has become busier, with the plan before as hint."""
    before = solve(instance.problem, Limits(seconds))
    hint = before.plan if isinstance(before, Solved) else None
    nodes = instance.problem.snapshot.nodes
    busy = hint.segments[0].node if hint else nodes[0].name
    changed = tuple(n.model_copy(update={"utilization": min(0.9, (n.utilization or 0) + 0.2)}) if n.name == busy else n for n in nodes)
    snapshot = instance.problem.snapshot.model_copy(update={"nodes": changed})
    problem = instance.problem.model_copy(update={"snapshot": snapshot})
    return {**_row(f"{instance.name} re-solved", problem, seconds, hint, clock), "baselines": {"the plan before": _value(hint, problem)}}


def _row(name: str, problem: Problem, seconds: float, hint: Plan | None, clock: Clock) -> Row:
    began = clock()
    outcome = solve(problem, Limits(seconds, cpu_time=clock is time.process_time), hint)
    took = clock() - began
    plan = outcome.plan if isinstance(outcome, Solved) else outcome.best if isinstance(outcome, TimedOut) else None
    return {
        "instance": name,
        "objective": problem.objective.goal.value,
        "layers": len(problem.profile.layers),
        "nodes": len(problem.snapshot.nodes),
        "seconds": round(took, 3),
        "value": plan.value if plan else None,
        "bound": plan.bound if plan else None,
        "gap": plan.gap if plan else None,
        "optimal": plan.optimal if plan else False,
    }


def baselines(problem: Problem) -> dict[str, float | None]:
    """Every baseline's value; None where it has no valid plan. On very many nodes only the quick ones are asked."""
    few = len(problem.snapshot.nodes) <= _BASELINE_NODES
    if problem.objective.goal is Goal.THROUGHPUT:
        return {} if not few else {name: flow_over(make(problem), problem)[0] or None for name, make in FLOWS.items()}
    asked = {name: make for name, make in CHAINS.items() if few or name in ("memory-proportional", "greedy", "water-filling")}
    found = {name: _value(make(problem), problem) for name, make in asked.items()}
    if problem.serving:
        served = tuple(Segment(start=start, end=end, node=node) for start, end, node in problem.serving)
        stay = Plan(model_digest=problem.profile.digest, pipelines=(Pipeline(segments=served),))
        found["stay"] = None if violations(stay, problem) else _value(stay, problem)
        apart = solve(problem.model_copy(update={"objective": Objective(goal=problem.objective.goal)}), Limits())
        found["moves not counted"] = _value(apart.plan if isinstance(apart, Solved) else None, problem)
    return found


def add_circuit(row: Row, problem: Problem, seconds: float, clock: Clock = time.perf_counter) -> Row | None:
    """Adds the circuit model's value to the row's baselines, where it expresses the problem; its bound, gap and time are the answer."""
    from splitinference.core.planner.lab.circuit import circuit, covers

    if not covers(problem):
        return None
    began = clock()
    found = circuit(problem, seconds)
    value = _value(found.plan, problem) if found.plan and not violations(found.plan, problem) else None
    gap = None if value is None else 0.0 if found.proven else (value - found.bound) / abs(value) if value else abs(found.bound)
    row["baselines"][CIRCUIT] = value
    return {"seconds": round(clock() - began, 3), "value": value, "bound": found.bound, "gap": gap, "optimal": found.proven}


def _value(plan: Plan | None, problem: Problem) -> float | None:
    return None if plan is None else objective_value(plan, problem)


def worse(row: Row) -> bool:
    """Whether a baseline's value is better than the planner's."""
    others = [value for value in row["baselines"].values() if value is not None]
    if row["value"] is None:
        return bool(others)
    if row["objective"] == Goal.THROUGHPUT.value:
        return any(value > row["value"] * (1 + 1e-6) for value in others)
    return any(value < row["value"] * (1 - 1e-6) for value in others)


def table(rows: list[Row]) -> Table:
    """The rows for people; the best baseline with its name."""
    result = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("INSTANCE", "OBJECTIVE", "LAYERS", "NODES", "SECONDS", "VALUE", "GAP", "BEST BASELINE", "CIRCUIT MODEL"):
        result.add_column(name)
    for row in rows:
        most = row["objective"] == Goal.THROUGHPUT.value
        others = sorted((v if not most else -v, name) for name, v in row["baselines"].items() if v is not None and name != CIRCUIT)
        best = f"{abs(others[0][0]):.4g} ({others[0][1]})" if others else "none has a plan"
        gap = "-" if row["gap"] is None else "proven" if row["optimal"] else f"{row['gap']:.2%}"
        value = "-" if row["value"] is None else f"{row['value']:.4g}"
        alone = row["baselines"].get(CIRCUIT)
        circuit = ("none found" if CIRCUIT in row["baselines"] else "-") if alone is None else f"{alone:.4g}"
        result.add_row(
            row["instance"], row["objective"], str(row["layers"]), str(row["nodes"]), f"{row['seconds']:.2f}", value, gap, best, circuit
        )
    return result
