"""Why no plan exists: which constraints stand in the way, by how much, and the smallest relaxation of each that lets a plan exist.

Every constraint is relaxed alone, wholly at first; where that helps, the smallest step that helps is searched. Where none helps
alone, constraints are relaxed one after the other until a plan exists, and the answer names them together.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from splitinference.core.cost.checks.eligible import label_words, unusable
from splitinference.core.cost.predict import predict
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.values.cluster import Node, Way
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem
from splitinference.core.values.result import BindingConstraint

Exists = Callable[[Problem], Plan | None]
"""A plan for a problem, as far as the time that is left tells; None where none is found."""
_MIB = 2**20
_HUGE = 2**60
_MOST_ADMITTED = 50
"""Nodes that are tried one by one; of more the answer is that several would have to be admitted."""


@dataclass(frozen=True)
class _Relaxation:
    """One constraint: how it reads now, the problem without it, and a search for the smallest step."""

    name: str
    message: str
    without: Callable[[Problem], Problem]
    smallest: Callable[[Problem, Exists], str]


def reasons(problem: Problem, exists: Exists, late: Callable[[], bool] = lambda: False) -> tuple[BindingConstraint, ...]:
    """The constraints that stand in the way of any plan; `exists` finds a plan of a problem, until it is `late`."""
    plain = problem.model_copy(update={"objective": _plain_goal(problem)})
    if not problem.snapshot.nodes:
        return (BindingConstraint("nodes", "the snapshot has no node", "offer at least one node"),)
    contradiction = _contradicting_pins(problem)
    if contradiction is not None:
        return (contradiction,)
    candidates = list(_candidates(plain))
    alone = [
        BindingConstraint(c.name, c.message, c.smallest(plain, exists)) for c in candidates if exists(c.without(plain)) is not None
    ]  # fmt: skip
    return tuple(alone) if alone else _together(plain, candidates, exists, late)


def _plain_goal(problem: Problem) -> Objective:
    """The goal only matters where it excludes plans: throughput has paths, energy needs known power, cost known prices."""
    goals = (problem.objective.goal, *problem.objective.then)
    if Goal.THROUGHPUT in goals:
        return Objective(goal=Goal.THROUGHPUT)
    counts = [goal for goal in (Goal.ENERGY, Goal.COST) if goal in goals]
    return Objective(goal=counts[0], then=tuple(counts[1:])) if counts else Objective()


def _together(problem: Problem, candidates: list[_Relaxation], exists: Exists, late: Callable[[], bool]) -> tuple[BindingConstraint, ...]:
    relaxed, taken = problem, []
    for candidate in candidates:
        relaxed = candidate.without(relaxed)
        taken.append(candidate)
        if exists(relaxed) is not None:
            break
    else:
        words = "; ".join(c.message for c in candidates) or "no node can reach another as the plan needs"
        if late():
            message = f"no plan exists; the time was over before it was known which of these stands in the way: {words}"
            return (BindingConstraint("all", message, "allow more seconds to find the smallest change"),)
        return (BindingConstraint("all", f"no plan exists even without any of its constraints: {words}", "offer other nodes"),)
    for candidate in list(taken):
        without_it = problem
        for other in taken:
            without_it = without_it if other is candidate else other.without(without_it)
        if len(taken) > 1 and exists(without_it) is not None:
            taken.remove(candidate)
    names = " and ".join(c.name for c in taken)
    return tuple(BindingConstraint(c.name, c.message, f"only together: relax {names}") for c in taken)


def _contradicting_pins(problem: Problem) -> BindingConstraint | None:
    pins = problem.constraints.pins
    for number, one in enumerate(pins):
        for other in pins[:number]:
            if one.node != other.node and max(one.start, other.start) < min(one.end, other.end):
                layers = f"[{max(one.start, other.start)}, {min(one.end, other.end)})"
                message = f"layers {layers} are pinned to {other.node} and to {one.node}"
                return BindingConstraint("pins", message, f"take layers {layers} out of one of the two pins")
    return None


def _candidates(problem: Problem) -> Iterator[_Relaxation]:
    """Every constraint that the problem has, softest first."""
    bounds = problem.constraints
    yield from _limited_sums(problem)
    if bounds.utilization_ceiling is not None:
        message = f"no node may be used more than {bounds.utilization_ceiling:.0%} after placement"
        yield _Relaxation("utilization", message, _dropping("utilization_ceiling", None), _least_ceiling)
    if bounds.min_bandwidth_bytes_per_s is not None:
        message = f"links need {bounds.min_bandwidth_bytes_per_s:.0f} B/s"
        yield _Relaxation("min-bandwidth", message, _dropping("min_bandwidth_bytes_per_s", None), _most_bandwidth)
    yield from _closed_ways(problem)
    if bounds.pipelines > 1:
        yield _Relaxation(
            "pipelines",
            f"{bounds.pipelines} pipelines are required; {memory_words(problem)}",
            _dropping("pipelines", 1),
            _counted("pipelines", 1, bounds.pipelines, -1),
        )
    if bounds.min_segments > 1:
        message = f"at least {bounds.min_segments} segments are required"
        yield _Relaxation("min-segments", message, _dropping("min_segments", 1), _counted("min_segments", 1, bounds.min_segments, -1))
    layers = len(problem.profile.layers)
    if bounds.max_segments is not None:
        message = f"at most {bounds.max_segments} segments are allowed"
        yield _Relaxation(
            "max-segments", message, _dropping("max_segments", None), _counted("max_segments", bounds.max_segments, layers, 1)
        )
    if bounds.max_nodes is not None:
        message = f"at most {bounds.max_nodes} nodes are allowed"
        most = len(problem.snapshot.nodes)
        yield _Relaxation("max-nodes", message, _dropping("max_nodes", None), _counted("max_nodes", bounds.max_nodes, most, 1))
    if bounds.split_points is not None:
        message = f"cuts are allowed at {list(bounds.split_points)} alone"
        yield _Relaxation("split-points", message, _dropping("split_points", None), lambda p, e: "allow more split points")
    if bounds.pins:
        words = ", ".join(f"[{p.start}, {p.end}) on {p.node}" for p in bounds.pins)
        yield _Relaxation("pins", f"pinned: {words}", _dropping("pins", ()), _one_less("pins"))
    if bounds.trust:
        words = ", ".join(
            f"[{r.start}, {r.end}) needs {label_words(r.labels)}{f' ({r.because})' if r.because else ''}" for r in bounds.trust
        )
        yield _Relaxation("trust", f"trust: {words}; {_carrying(problem)}", _dropping("trust", ()), _one_less("trust"))
    shut = {node.name: reason for node in problem.snapshot.nodes if (reason := unusable(node, problem))}
    if shut:
        words = "; ".join(f"{name}: {reason}" for name, reason in sorted(shut.items())[:6])
        message = f"{len(shut)} of {len(problem.snapshot.nodes)} nodes may not be used: {words}"
        yield _Relaxation("nodes", message, _admitting, _admit_one)
    yield _Relaxation("memory", memory_words(problem), lambda p: _with_memory(p, _HUGE), _least_memory)


def _limited_sums(problem: Problem) -> Iterator[_Relaxation]:
    """The SLO, and the budgets."""
    for name, field in _SLOS:
        if (limit := getattr(problem.slo, field)) is not None:
            yield _limit(name, field, limit)
    for field, found, name, unit in _BUDGETS:
        if (limit := getattr(problem.constraints, field)) is not None:
            yield _budget(name, field, found, limit, unit)


def _closed_ways(problem: Problem) -> Iterator[_Relaxation]:
    network = problem.snapshot.network
    if network.closed or network.closed_zones or network.only_listed:
        count = len(network.closed) + len(network.closed_zones)
        message = f"{count} ways are closed" + ("; no hop goes where no link is listed" if network.only_listed else "")
        opened: dict[str, object] = {"closed": (), "closed_zones": (), "only_listed": False}
        yield _Relaxation("closed-link", message, lambda p: _with_network(p, opened), _open_one)


def _dropping(name: str, value: object) -> Callable[[Problem], Problem]:
    def without(problem: Problem) -> Problem:
        bounds = Constraints.model_validate({**_fields(problem.constraints), name: value})
        return problem.model_copy(update={"constraints": bounds})

    return without


def _fields(bounds: Constraints) -> dict[str, object]:
    return {name: getattr(bounds, name) for name in Constraints.model_fields}


def _limit(name: str, field: str, limit: float) -> _Relaxation:
    def without(problem: Problem, value: float | None = None) -> Problem:
        return problem.model_copy(update={"slo": problem.slo.model_copy(update={field: value})})

    def smallest(problem: Problem, exists: Exists) -> str:
        plan = exists(without(problem))
        if plan is None:
            return "no limit"
        high, low = max(limit, getattr(predict(plan, problem), field)), limit
        while high - low > 1e-3 * high:
            middle = math.sqrt(low * high) if high > 4 * low > 0 else (low + high) / 2.0
            plan = exists(without(problem, middle))
            if plan is None:
                low = middle
            else:
                high = min(middle, getattr(predict(plan, problem), field))
        return f"{_up(high)} ms instead of {limit:.4g} ms"

    return _Relaxation(name, f"the limit is {limit:.4g} ms", without, smallest)


_SLOS = (("slo-time-to-first-token", "time_to_first_token_ms"), ("slo-time-per-output-token", "time_per_output_token_ms"))
_BUDGETS = (("max_cost_per_hour", "cost_per_hour", "max-cost", "per hour"), ("max_watts", "watts", "max-watts", "W"))
"""Field of the constraints, of the prediction, name and unit of each budget."""


def _budget(name: str, field: str, predicted: str, limit: float, unit: str) -> _Relaxation:
    """A limit on what the nodes used cost or draw together; the answer is what a plan that was found needs."""

    def smallest(problem: Problem, exists: Exists) -> str:
        plan = exists(_dropping(field, None)(problem))
        if plan is None:
            return "no limit"
        low, high = limit, float(getattr(predict(plan, problem), predicted))
        while high - low > 1e-3 * high:
            plan = exists(_dropping(field, (low + high) / 2.0)(problem))
            if plan is None:
                low = (low + high) / 2.0
            else:
                high = min((low + high) / 2.0, float(getattr(predict(plan, problem), predicted)))
        return f"{_up(high)} {unit} instead of {limit:.4g} {unit}"

    return _Relaxation(name, f"the nodes used may take at most {limit:.4g} {unit} together", _dropping(field, None), smallest)


def _up(value: float) -> str:
    """A figure in few digits, never less than it is: advice that is rounded down would not do."""
    if value <= 0:
        return "0"
    unit = 10.0 ** (math.floor(math.log10(value)) - 4)
    return f"{math.ceil(value / unit * (1 - 1e-12)) * unit:.10g}"


def _counted(name: str, low: int, high: int, direction: int) -> Callable[[Problem, Exists], str]:
    """The value nearest to what is asked for (`low` upwards or `high` downwards) with which a plan exists, by bisection."""

    def smallest(problem: Problem, exists: Exists) -> str:
        now, far = (low, high) if direction > 0 else (high, low)
        if exists(_dropping(name, far)(problem)) is None:
            return f"no limit on {name}"
        near = now
        while abs(far - near) > 1:
            middle = (near + far) // 2
            near, far = (near, middle) if exists(_dropping(name, middle)(problem)) is not None else (middle, far)
        return f"{name} {far} instead of {now}"

    return smallest


def _least_ceiling(problem: Problem, exists: Exists) -> str:
    low, high = math.floor(100 * (problem.constraints.utilization_ceiling or 0)), 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if exists(_dropping("utilization_ceiling", middle / 100)(problem)) is not None else (middle, high)
    return f"a ceiling of {high} %"


def _most_bandwidth(problem: Problem, exists: Exists) -> str:
    """The widest of the links' bandwidths that does as a minimum, rounded down: a minimum above it would not do."""
    network, now = problem.snapshot.network, problem.constraints.min_bandwidth_bytes_per_s or 0.0
    links = [network.default, network.local, *(link.quality for link in (*network.zones, *network.links))]
    found = [b for b in sorted({q.bandwidth_bytes_per_s for q in links}) if b < now]
    low, high = -1, len(found)
    while high - low > 1:
        middle = (low + high) // 2
        does = exists(_dropping("min_bandwidth_bytes_per_s", found[middle])(problem)) is not None
        low, high = (middle, high) if does else (low, middle)
    return f"{_down(found[low])} B/s instead of {now:.0f} B/s" if low >= 0 else "no minimum"


def _with_network(problem: Problem, update: Mapping[str, object]) -> Problem:
    network = problem.snapshot.network.model_copy(update=dict(update))
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"network": network})})


def _open_one(problem: Problem, exists: Exists) -> str:
    """One closed way that does if it is opened; else that several have to be."""
    network = problem.snapshot.network
    for field in ("closed", "closed_zones"):
        ways: tuple[Way, ...] = getattr(network, field)
        for number, way in enumerate(ways[:_MOST_ADMITTED]):
            if exists(_with_network(problem, {field: (*ways[:number], *ways[number + 1 :])})) is not None:
                return f"open the way from {way.source} to {way.target}"
    if network.only_listed and exists(_with_network(problem, {"only_listed": False})) is not None:
        return "list the links that are missing"
    return "open several ways"


def _down(value: float) -> str:
    """A figure in few digits, never more than it is."""
    return f"{math.floor(value)}" if value >= 1 else f"{value:.17g}"


def _one_less(name: str) -> Callable[[Problem, Exists], str]:
    def smallest(problem: Problem, exists: Exists) -> str:
        rules = tuple(getattr(problem.constraints, name))
        for number, rule in enumerate(rules):
            if exists(_dropping(name, (*rules[:number], *rules[number + 1 :]))(problem)) is not None:
                return f"without the one for layers [{rule.start}, {rule.end})"
        return f"without {name}"

    return smallest


def _carrying(problem: Problem) -> str:
    parts = []
    for rule in problem.constraints.trust:
        count = sum(all(n.labels.get(k) == v for k, v in rule.labels.items()) for n in problem.snapshot.nodes)
        parts.append(f"{count} of {len(problem.snapshot.nodes)} nodes carry {label_words(rule.labels)}")
    return ", ".join(parts)


def _admitted(node: Node, problem: Problem) -> Node:
    labels = {**node.labels, **problem.constraints.node_selector}
    return node.model_copy(
        update={"ready": True, "taints": (), "labels": labels, "busy_watts": node.busy_watts or 1.0, "price_known": True}
    )


def _admitting(problem: Problem) -> Problem:
    return _with_nodes(problem, tuple(_admitted(node, problem) for node in problem.snapshot.nodes))


def _admit_one(problem: Problem, exists: Exists) -> str:
    for number, node in list(enumerate(problem.snapshot.nodes))[:_MOST_ADMITTED]:
        reason = unusable(node, problem)
        nodes = problem.snapshot.nodes
        if reason and exists(_with_nodes(problem, (*nodes[:number], _admitted(node, problem), *nodes[number + 1 :]))) is not None:
            return f"admit {node.name} ({reason})"
    return "admit several of them"


def _with_nodes(problem: Problem, nodes: tuple[Node, ...]) -> Problem:
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})


def _with_memory(problem: Problem, more: int) -> Problem:
    nodes = []
    for node in problem.snapshot.nodes:
        processors = tuple(p.model_copy(update={"memory_free_bytes": p.memory_free_bytes + more}) for p in node.processors)
        nodes.append(node.model_copy(update={"memory_free_bytes": node.memory_free_bytes + more, "processors": processors}))
    return _with_nodes(problem, tuple(nodes))


def memory_words(problem: Problem) -> str:
    """What the model needs and what places have, in MiB."""
    places = [site for node in problem.snapshot.nodes if not unusable(node, problem) for site in sites(node)]
    layers = len(problem.profile.layers)
    whole = memory_bytes(problem, 0, layers)
    single = [memory_bytes(problem, i, i + 1) for i in range(layers)]
    largest = max((site.memory_bytes for site in places), default=0)
    words = f"the model needs {-(-whole // _MIB)} MiB in one segment, {len(places)} places have "
    words += f"{sum(site.memory_bytes for site in places) // _MIB} MiB free, the largest {largest // _MIB} MiB"
    if max(single) > largest:
        number = single.index(max(single))
        words += f"; layer {number} ({problem.profile.layers[number].name}) alone needs {-(-max(single) // _MIB)} MiB"
    return words


def _least_memory(problem: Problem, exists: Exists) -> str:
    # Enough for the whole model on each place is enough; less is searched.
    low, high = 0, -(-memory_bytes(problem, 0, len(problem.profile.layers)) // _MIB) * _MIB
    if exists(_with_memory(problem, high)) is None:
        return "more memory on each place"
    while high - low > _MIB:
        middle = (low + high) // 2
        middle -= middle % _MIB
        low, high = (low, middle) if exists(_with_memory(problem, middle)) is not None else (middle, high)
    return f"{-(-high // _MIB)} MiB more on each place"
