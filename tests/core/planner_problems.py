"""Small problems for the planner's tests: builders that carry the noise, strategies, and the brute force that knows the truth."""

from collections.abc import Iterator
from itertools import combinations, permutations, product

import pytest
from hypothesis import strategies as st

from splitinference.core.cost import goal_value, objective_value, violations
from splitinference.core.cost.predict import predict
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.planner.columns.columns import alone
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Link, LinkQuality, Network, Node, Processor, Snapshot, Taint
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Constraints, Goal, Objective, Pin, Problem, Slo, Toleration, TrustRule, Workload
from splitinference.core.values.profile import Layer, Profile
from splitinference.core.values.result import Infeasible, Limits, Solved

MIB = 2**20


def a_profile(weights_mib: tuple[int, ...] = (40, 100, 100, 100, 60), *, tied: bool = False, runtime_mib: int = 0) -> Profile:
    """Layers of the given weights; two FLOPs a byte; a boundary of 16 KiB a token."""
    last = len(weights_mib) - 1
    layers = tuple(
        Layer(
            index=i,
            name=f"layer {i}",
            weight_bytes=w * MIB,
            flops_per_token=w * MIB,
            flops_per_token_and_context=1e4,
            kv_bytes_per_token=256 if 0 < i < last else 0,
            quantized_weights=w * MIB // 4 if w == 60 else 0,
            boundary_bytes_per_token=16384,
            tied_to=0 if tied and i == last else None,
            tied_bytes=min(weights_mib[0], w) * MIB if tied and i == last else 0,
        )
        for i, w in enumerate(weights_mib)
    )
    return Profile(model="test", digest="0" * 64, dtype="float16", layers=layers, runtime_bytes=runtime_mib * MIB)


def a_node(name: str, *, free_mib: int = 1000, gflops: float = 100.0, gbps: float = 10.0, **more: object) -> Node:
    """One node; `more` are fields of Node."""
    return Node.model_validate(
        {"name": name, "memory_free_bytes": free_mib * MIB, "flops_per_s": gflops * 1e9, "memory_bandwidth_bytes_per_s": gbps * 1e9, **more}
    )


def a_plan(text: str, digest: str = "0" * 64) -> Plan:
    """A plan from `a[0:4] b/gpu[4:8] c+d[8:9]`; pipelines are separated by `|`."""
    pipelines = []
    for chain in text.split("|"):
        segments = []
        for part in chain.split():
            where, _, layers = part.rstrip("]").partition("[")
            start, _, end = layers.partition(":")
            names, _, processor = where.partition("/")
            first, *others = names.split("+")
            segments.append(Segment(start=int(start), end=int(end), node=first, processor=processor, replicas=tuple(others)))
        pipelines.append(Pipeline(segments=tuple(segments)))
    return Plan(model_digest=digest, pipelines=tuple(pipelines))


def chains(problem: Problem) -> Iterator[Pipeline]:
    """Every chain over every order of places, cut everywhere, but for those that cannot be valid; the judge says which are.

    Left out are runs larger than their place's memory, and chains that come back to a node or use a place twice.
    """
    layers = len(problem.profile.layers)
    places = [(site.node.name, site.processor, site.memory_bytes) for node in problem.snapshot.nodes for site in sites(node)]
    need = {(a, b): memory_bytes(problem, a, b) for a in range(layers) for b in range(a + 1, layers + 1)}

    def extend(done: tuple[Segment, ...], at: int) -> Iterator[Pipeline]:
        if at == layers:
            yield Pipeline(segments=done)
            return
        used = {(s.node, s.processor) for s in done}
        left = {s.node for s in done if s.node != done[-1].node}
        for node, processor, free in places:
            if node in left or (node, processor) in used:
                continue
            for end in range(at + 1, layers + 1):
                if need[at, end] <= free:
                    yield from extend((*done, Segment(start=at, end=end, node=node, processor=processor)), end)

    yield from extend((), 0)


def all_chains(problem: Problem) -> Iterator[Pipeline]:
    """Every chain over every order of places, cut everywhere."""
    layers = len(problem.profile.layers)
    places = [(n.name, p.name) for n in problem.snapshot.nodes for p in n.processors]
    places += [(n.name, "") for n in problem.snapshot.nodes if not n.processors]
    for count in range(1, min(layers, len(places)) + 1):
        for cuts in combinations(range(1, layers), count - 1):
            bounds = (0, *cuts, layers)
            for order in permutations(places, count):
                yield Pipeline(
                    segments=tuple(
                        Segment(start=bounds[k], end=bounds[k + 1], node=node, processor=processor)
                        for k, (node, processor) in enumerate(order)
                    )
                )


def valid_chains(problem: Problem) -> Iterator[Pipeline]:
    """Every valid chain whose stages are on one or two nodes."""
    layers = len(problem.profile.layers)
    places = [(n.name, p.processor) for n in problem.snapshot.nodes for p in sites(n)]
    groups: list[tuple[tuple[str, ...], str]] = [((name,), processor) for name, processor in places]
    if problem.constraints.max_stage_nodes > 1:
        groups += [((a, b), p) for (a, p), (b, q) in combinations(places, 2) if p == q and a != b]

    def extend(done: tuple[Segment, ...], at: int) -> Iterator[Pipeline]:
        if at == layers:
            yield Pipeline(segments=done)
            return
        for names, processor in groups:
            if not any((n, processor) == (m, s.processor) for s in done for m in s.nodes for n in names):
                for end in range(at + 1, layers + 1):
                    segment = Segment(start=at, end=end, node=names[0], processor=processor, replicas=names[1:])
                    yield from extend((*done, segment), end)

    single = alone(problem)
    for chain in extend((), 0):
        if not violations(Plan(model_digest=problem.profile.digest, pipelines=(chain,)), single):
            yield chain


def valid_plans(problem: Problem) -> list[Plan]:
    """Every valid plan of a problem with one pipeline."""
    plans = (Plan(model_digest=problem.profile.digest, pipelines=(chain,)) for chain in chains(problem))
    return [plan for plan in plans if not violations(plan, problem)]


def best_value(problem: Problem) -> float | None:
    """The least value over all valid plans of one pipeline; None if there is none."""
    return min((objective_value(plan, problem) for plan in valid_plans(problem)), default=None)


def best_in_order(problem: Problem) -> tuple[float, ...] | None:
    """The least values goal by goal, each among the plans that are best in those before."""
    found = [predict(plan, problem) for plan in valid_plans(problem)]
    if not found:
        return None
    result = []
    for goal in (problem.objective.goal, *problem.objective.then):
        least = min(goal_value(p, goal) for p in found)
        found = [p for p in found if goal_value(p, goal) <= least + 1e-9 * abs(least)]
        result.append(least)
    return tuple(result)


def qualities() -> st.SearchStrategy[LinkQuality]:
    """Links from thin to wide, coarse on purpose, so that equal links occur."""
    return st.builds(LinkQuality, bandwidth_bytes_per_s=st.sampled_from([1e5, 1e6, 1e8]), rtt_ms=st.sampled_from([0.1, 5.0, 40.0]))


def efficiencies() -> st.SearchStrategy[Efficiency]:
    """Mostly the default; else figures of their own for each phase, which no single factor can express."""
    low, high = PhaseEfficiency(compute=0.4, bandwidth=0.8, attention=0.1, launch_ms=3.0), PhaseEfficiency(compute=0.9, bandwidth=0.5)
    others = st.builds(
        Efficiency,
        prefill=st.sampled_from([low, high]),
        decode=st.sampled_from([high, low]),
        dequantized_per_s=st.sampled_from([None, 1e10]),
    )
    return st.one_of(st.just(Efficiency()), st.just(Efficiency()), others)


def nodes(name: str) -> st.SearchStrategy[Node]:
    """Nodes of few kinds, so that equal nodes occur; some with processors, labels, taints, loads."""
    processors = st.lists(
        st.builds(
            lambda f, m, e, u, c: {
                "kind": "gpu",
                "utilization": u,
                "calibration": c,
                "flops_per_s": f * 1e9,
                "memory_bandwidth_bytes_per_s": 2e10,
                "memory_free_bytes": m * MIB,
                "efficiency": e,
            },
            st.sampled_from([50, 200]),
            st.sampled_from([110, 250]),
            efficiencies(),
            st.sampled_from([None, None, 0.0, 0.5]),
            st.sampled_from([None, None, 1.0, 2.0]),
        ),
        max_size=2,
    )
    # The first one may be the node's own CPU, which has no name.
    processors = st.builds(
        lambda found, first: tuple(Processor(name=f"p{i}" if i else first, **p) for i, p in enumerate(found)),
        processors,
        st.sampled_from(["", "p0"]),
    )
    return st.builds(
        a_node,
        st.just(name),
        free_mib=st.sampled_from([150, 250, 400]),
        gflops=st.sampled_from([20.0, 100.0, 400.0]),
        gbps=st.sampled_from([5.0, 50.0]),
        ready=st.sampled_from([True] * 9 + [False]),
        utilization=st.sampled_from([None, 0.0, 0.3, 0.9]),
        labels=st.sampled_from([{}, {"trusted": "yes"}, {"trusted": "yes", "disk": "ssd"}]),
        taints=st.sampled_from([()] * 9 + [(Taint(key="gpu"),)]),
        zone=st.sampled_from(["", "east", "west"]),
        calibration=st.sampled_from([1.0, 1.0, 2.5]),
        prefill_calibration=st.sampled_from([1.0, 1.0, 0.5]),
        efficiency=efficiencies(),
        stage_overhead_ms=st.sampled_from([0.0, 1.0, 20.0]),
        processors=st.one_of(st.just(()), st.just(()), processors),
        idle_watts=st.just(5.0),
        busy_watts=st.sampled_from([20.0, 300.0, 20.0, 300.0, 0.0]),
        cost_per_hour=st.sampled_from([0.0, 1.0, 3.5]),
    )


@st.composite
def snapshots(draw: st.DrawFn, most: int = 4) -> Snapshot:
    """Up to `most` nodes with their links."""
    names = [f"n{i}" for i in range(draw(st.sampled_from([*range(1, most + 1), most, most, most])))]
    found = tuple(draw(nodes(name)) for name in names)
    pairs = [(a, b) for a, b in product(names, names) if a != b]
    links = tuple(Link(source=a, target=b, quality=draw(qualities())) for a, b in pairs if draw(st.integers(0, 2)) == 0)
    zones = tuple(Link(source="east", target=t, quality=draw(qualities())) for t in ("east", "west") if draw(st.booleans()))
    network = Network(default=draw(qualities()), zones=zones, links=links, ingress=draw(st.sampled_from(["", "n0", "elsewhere"])))
    return Snapshot(nodes=found, network=network)


@st.composite
def problems(draw: st.DrawFn, objective: st.SearchStrategy[Objective], *, layers: int = 5, nodes: int = 4) -> Problem:
    """Problems with constraints of every kind, most of them slack, some tight."""
    count = draw(st.sampled_from([*range(1, layers + 1), layers, layers]))
    profile = a_profile(tuple(draw(st.sampled_from([40, 60, 100])) for _ in range(count)), tied=draw(st.booleans()), runtime_mib=draw(
        st.sampled_from([0, 30])))  # fmt: skip
    snapshot = draw(snapshots(nodes))
    names = [node.name for node in snapshot.nodes]

    def runs() -> tuple[int, int]:
        start = draw(st.integers(0, count - 1))
        return start, draw(st.integers(start + 1, count))

    def rarely(build: object, nothing: object) -> object:
        return build() if draw(st.integers(0, 9)) == 9 and callable(build) else nothing

    def pin() -> tuple[Pin, ...]:
        start, end = runs()
        return (Pin(start=start, end=end, node=draw(st.sampled_from(names))),)

    def trust() -> tuple[TrustRule, ...]:
        start, end = runs()
        return (TrustRule(start=start, end=end, labels={"trusted": "yes"}),)

    least = rarely(lambda: draw(st.integers(1, 3)), 1)
    constraints = Constraints.model_validate(
        {
            "min_segments": least,
            "max_segments": rarely(lambda: max(int(str(least)), draw(st.integers(1, 3))), None),
            "max_nodes": rarely(lambda: draw(st.integers(1, 3)), None),
            "split_points": rarely(lambda: tuple(p for p in range(1, count) if draw(st.booleans())), None),
            "pins": rarely(pin, ()),
            "trust": rarely(trust, ()),
            "node_selector": rarely(lambda: {"disk": "ssd"}, {}),
            "tolerations": rarely(lambda: (Toleration(key="gpu", operator="Exists"),), ()),
            "utilization_ceiling": rarely(lambda: draw(st.sampled_from([0.2, 0.6, 0.95])), None),
            "min_bandwidth_bytes_per_s": rarely(lambda: 5e5, None),
            "memory_margin": draw(st.sampled_from([0.0, 0.1])),
        }
    )
    slo = Slo.model_validate(
        {
            "time_to_first_token_ms": rarely(lambda: draw(st.sampled_from([300.0, 1000.0, 5000.0])), None),
            "time_per_output_token_ms": rarely(lambda: draw(st.sampled_from([20.0, 60.0, 200.0])), None),
        }
    )
    workload = Workload(
        prompt_tokens=draw(st.sampled_from([1, 64])),
        output_tokens=draw(st.sampled_from([1, 32])),
        max_context_tokens=256,
        batch=draw(st.sampled_from([1, 1, 4])),
        requests_per_s=draw(st.sampled_from([0.0, 0.0, 0.5])),
    )
    serving = rarely(lambda: ((*runs(), draw(st.sampled_from(names))), (*runs(), draw(st.sampled_from(names)))), ())
    return Problem.model_validate(
        {"profile": profile, "snapshot": snapshot, "workload": workload, "objective": draw(objective), "constraints": constraints,
         "slo": slo, "serving": serving}
    )  # fmt: skip


def single_goals() -> st.SearchStrategy[Objective]:
    """Every goal of a chain, with and without weights."""
    goal = st.sampled_from([Goal.LATENCY, Goal.BOTTLENECK, Goal.ENERGY, Goal.COST, Goal.MOVE])
    return st.builds(
        Objective, goal=goal, utilization_weight=st.sampled_from([0.0, 0.0, 100.0]), move_weight=st.sampled_from([0.0, 0.0, 500.0])
    )


def as_brute_force(problem: Problem) -> Solved | None:
    """Assert that the solver's plan is valid, proven, and as good as the best of all valid ones; None where none is valid."""
    expected = best_value(problem)
    answer = solve(problem, Limits(seconds=60))
    if expected is None:
        assert isinstance(answer, Infeasible)
        return None
    assert isinstance(answer, Solved)
    assert violations(answer.plan, problem) == ()
    assert answer.plan.value == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert answer.optimal
    assert answer.bound <= expected * (1 + 1e-9) + 1e-12
    return answer
