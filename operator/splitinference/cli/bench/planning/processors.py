"""`splitinference bench processors`: planning over nodes alone against nodes and their processors together, on the cost model.

"Nodes only" sees each node as its quickest processor, as planners do that know one level. "Both levels" also sees the node's other
devices, slices and its CPU. Both use the same solver, model, links and figures. HiDP (arXiv 2411.16086) compares planners in this way.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from splitinference.cli.bench.planning.instances import A100, GIB, L4, MBIT, RTX3090, T4, Device, transformer
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import LinkQuality, Network, Node, Processor, Snapshot
from splitinference.core.values.problem import Goal, Objective, Problem, Workload
from splitinference.core.values.profile import Profile
from splitinference.core.values.result import Limits, Solved

CORE_FLOPS, CORE_BANDWIDTH = 20e9, 5e9
"""Of one core, as the operator assumes them."""
GOALS = (Goal.LATENCY, Goal.BOTTLENECK)
SECONDS = 20.0


@dataclass(frozen=True)
class Row:
    """One instance and goal. `nodes_only` and `both` are values in ms, None where no plan exists; `segments`: of the plan for both levels,
    by node and processor."""

    instance: str
    model: str
    goal: str
    nodes_only: float | None
    both: float | None
    segments: tuple[str, ...]

    @property
    def change(self) -> float | None:
        """Share by which both levels are better (below zero) or worse; None where one has no plan."""
        return None if self.nodes_only is None or self.both is None else self.both / self.nodes_only - 1


def _cpu(cores: int, memory: int) -> Processor:
    return Processor(name="", flops_per_s=cores * CORE_FLOPS, memory_bandwidth_bytes_per_s=cores * CORE_BANDWIDTH, memory_free_bytes=memory)


def _gpu(device: Device, number: int, slices: int = 1) -> Processor:
    """A device, or one of so many equal slices of it."""
    return Processor(
        name=f"{device.name}/{number}",
        kind="cuda",
        resource=f"example.com/{device.name}",
        flops_per_s=device.flops_per_s / slices,
        memory_bandwidth_bytes_per_s=device.bandwidth / slices,
        memory_free_bytes=device.memory // slices,
        utilization=0.0,
    )


def _node(name: str, *processors: Processor) -> Node:
    cpu = next(place for place in processors if not place.name)
    return Node(
        name=name,
        memory_free_bytes=cpu.memory_free_bytes,
        flops_per_s=cpu.flops_per_s,
        memory_bandwidth_bytes_per_s=cpu.memory_bandwidth_bytes_per_s,
        processors=processors if len(processors) > 1 else (),
        utilization=0.0,
    )


def _clusters() -> Iterator[tuple[str, tuple[Node, ...]]]:
    cpu = _cpu(16, 64 * GIB)
    yield "3 × (T4, 16 cores)", tuple(_node(f"n{i}", cpu, _gpu(T4, 0)) for i in range(3))
    yield "2 × (2 T4, 16 cores)", tuple(_node(f"n{i}", cpu, _gpu(T4, 0), _gpu(T4, 1)) for i in range(2))
    yield "(7 slices of an A100, 32 cores)", (_node("n0", _cpu(32, 128 * GIB), *(_gpu(A100, i, 7) for i in range(7))),)
    yield (
        "(RTX 3090, 16 cores), (L4, 16 cores), 64 cores",
        (
            _node("n0", cpu, _gpu(RTX3090, 0)),
            _node("n1", cpu, _gpu(L4, 0)),
            _node("n2", _cpu(64, 256 * GIB)),
        ),
    )


def _models() -> tuple[Profile, ...]:
    return transformer(32, 4096, name="7B"), transformer(40, 5120, name="13B")


def nodes_only(problem: Problem) -> Problem:
    """The problem in which each node is its quickest processor, by memory bandwidth and then compute."""

    def one(node: Node) -> Node:
        if not node.processors:
            return node
        best = max(node.processors, key=lambda place: (place.memory_bandwidth_bytes_per_s, place.flops_per_s))
        return node.model_copy(update={"processors": (best,)})

    return problem.model_copy(
        update={"snapshot": problem.snapshot.model_copy(update={"nodes": tuple(one(node) for node in problem.snapshot.nodes)})}
    )


def problems() -> Iterator[tuple[str, Problem]]:
    """Every instance: the cluster in words, and the problem with both levels."""
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=1000 * MBIT, rtt_ms=0.5))
    load = Workload(prompt_tokens=512, output_tokens=128, max_context_tokens=2048, max_concurrent_sequences=4)
    for name, nodes in _clusters():
        for profile in _models():
            for goal in GOALS:
                yield (
                    name,
                    Problem(
                        profile=profile, snapshot=Snapshot(nodes=nodes, network=network), workload=load, objective=Objective(goal=goal)
                    ),
                )


def compare(name: str, problem: Problem, seconds: float = SECONDS) -> Row:
    """Solve an instance with one level and with both. The plan with one level is a plan of both, so both are never worse."""
    one, two = (solve(each, Limits(seconds=seconds)) for each in (nodes_only(problem), problem))
    places: tuple[str, ...] = ()
    if isinstance(two, Solved):
        found = two.plan.segments
        places = tuple(f"[{s.start}, {s.end}) {s.node}/{s.processor or 'cpu'}" for s in found)
    values = [outcome.plan.value if isinstance(outcome, Solved) else None for outcome in (one, two)]
    return Row(name, problem.profile.model, problem.objective.goal.value, values[0], values[1], places)


def register(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    words = "planning over nodes alone against nodes and their processors together, on the cost model"
    parser = parts.add_parser("processors", help=words, description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Solve all instances and print a Markdown table."""
    rows = [compare(name, problem) for name, problem in problems()]
    print(json.dumps([asdict(row) for row in rows], indent=2) if args.json else table(rows))
    return 0


def table(rows: list[Row]) -> str:
    """As Markdown."""

    def ms(value: float | None) -> str:
        return "no plan" if value is None else f"{value:.4g}"

    lines = ["| cluster | model | goal | nodes only, ms | both levels, ms | change | segments |", "|---|---|---|---:|---:|---:|---|"]
    for row in rows:
        change = "–" if row.change is None else f"{100 * row.change:+.0f} %"
        lines.append(
            f"| {row.instance} | {row.model} | {row.goal} | {ms(row.nodes_only)} | {ms(row.both)} | {change} | {', '.join(row.segments)} |"
        )
    return "\n".join(lines)
