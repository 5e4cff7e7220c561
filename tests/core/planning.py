"""Small problems, written short, and a solver that tries every plan: slow, plain, and no other code than the judge's."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import combinations, permutations
from typing import Any

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.decide.base.policy import DecisionInputs
from splitinference.core.values.cluster import LinkQuality, Network, Node, Snapshot
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Layer, LayerKind, Profile
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Outcome, Solved

MIB = 1024 * 1024
START = datetime(2026, 1, 1, tzinfo=UTC)


def a_profile(layers: int = 4, mib: int = 100, digest: str = "0123456789abcdef") -> Profile:
    """Equal layers, each of `mib` MiB of weights and 0.1 GFLOP for a token."""
    return Profile(
        model="m",
        digest=digest,
        dtype="float32",
        layers=tuple(
            Layer(index=i, name=f"l{i}", kind=LayerKind.GENERIC, weight_bytes=mib * MIB, flops_per_token=1e8, boundary_bytes_per_token=4096)
            for i in range(layers)
        ),
    )


def a_node(name: str, mib: int = 1000, gflops: float = 100.0, **more: Any) -> Node:
    """An idle node whose memory bandwidth counts for nothing beside its compute."""
    given = {"utilization": 0.0, **more}
    return Node(name=name, memory_free_bytes=mib * MIB, flops_per_s=gflops * 1e9, memory_bandwidth_bytes_per_s=1e15, **given)


def a_problem(*nodes: Node, profile: Profile | None = None, network: Network | None = None, **more: Any) -> Problem:
    """A problem over these nodes, all links fast."""
    net = network or Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5))
    return Problem(profile=profile or a_profile(), snapshot=Snapshot(nodes=nodes, network=net), **more)


def a_plan(text: str, problem: Problem | None = None, digest: str = "0123456789abcdef") -> Plan:
    """`a[0:2] b[2:4]`, with its prediction where a problem is given."""
    segments = []
    for part in text.split():
        node, layers = part[:-1].split("[")
        start, end = layers.split(":")
        segments.append(Segment(start=int(start), end=int(end), node=node))
    plan = Plan(model_digest=digest, pipelines=(Pipeline(segments=tuple(segments)),))
    return plan if problem is None else plan.model_copy(update={"prediction": predict(plan, problem)})


def text_of(plan: Plan) -> str:
    """The opposite of `a_plan`."""
    return " ".join(f"{s.node}[{s.start}:{s.end}]" for s in plan.segments)


def all_plans(problem: Problem) -> Iterator[Plan]:
    """Every plan of one pipeline that uses each node at most once."""
    layers = len(problem.profile.layers)
    names = [node.name for node in problem.snapshot.nodes]
    for count in range(1, min(layers, len(names)) + 1):
        for cuts in combinations(range(1, layers), count - 1):
            edges = (0, *cuts, layers)
            for chosen in permutations(names, count):
                segments = tuple(Segment(start=a, end=b, node=n) for a, b, n in zip(edges, edges[1:], chosen, strict=False))
                yield Plan(model_digest=problem.profile.digest, pipelines=(Pipeline(segments=segments),))


@dataclass
class Exhaustive:
    """Solves by trying every plan, and keeps what it was asked."""

    asked: list[Problem] = field(default_factory=list)

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        """The best valid plan, first of equals; the hint wins ties."""
        self.asked.append(problem)
        best: tuple[float, Plan] | None = None
        candidates = [*([hint] if hint else []), *all_plans(problem)]
        for plan in candidates:
            if violations(plan, problem):
                continue
            value = objective_value(plan, problem)
            if best is None or value < best[0] - 1e-9:
                best = (value, plan)
        if best is None:
            message = f"the model needs {sum(x.weight_bytes for x in problem.profile.layers) // MIB} MiB and no set of nodes holds it"
            return Infeasible(reasons=(BindingConstraint(name="memory", message=message, relaxation=""),))
        value, plan = best
        plan = plan.model_copy(update={"prediction": predict(plan, problem), "value": value, "bound": value, "gap": 0.0, "optimal": True})
        return Solved(plan=plan, bound=value, gap=0.0, optimal=True, seconds=0.0, explanation=("every plan was tried",))


def inputs(problem: Problem, plan: Plan | None, seconds: float = 0.0, **more: Any) -> DecisionInputs:
    """What is known so many seconds after START."""
    serving = () if plan is None else tuple((s.start, s.end, s.node) for s in plan.segments)
    problem = problem.model_copy(update={"serving": serving})
    return DecisionInputs(
        now=START + timedelta(seconds=seconds), problem=problem, plan=plan, **{"plan_spec_digest": "s", "spec_digest": "s", **more}
    )
