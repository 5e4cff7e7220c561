"""The latency programme of EdgeShard (arXiv 2405.14371) as a baseline: layer by layer, the cheapest device to go on from.

`DP(i, j) = min over k of DP(i-1, k) + t_comp(i, j) + t_comm(i-1, k, j)`, the first layer pinned to the source. As there, memory is followed
along the best way into each state and not part of the state; so is which devices were used, for a device serves one run of layers here.
It minimises the time of one token, and knows neither SLO nor trust beyond the pinned source.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from splitinference.core.cost import violations
from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.link import Links, hop
from splitinference.core.cost.site import Site, sites
from splitinference.core.cost.stage import kv_bytes, layer_cost
from splitinference.core.planner.judge import judged
from splitinference.core.values.plan import Pipeline, Plan, Segment
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import BindingConstraint, Infeasible, Limits, Outcome

Floats = NDArray[np.float64]


def edgeshard(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
    """The programme's plan, judged as any other. It takes one pass over layers × devices², so limits and hint are not needed."""
    del limits, hint
    devices = [site for node in problem.snapshot.nodes if not unusable(node, problem) for site in sites(node)]
    where = _chain(problem, devices) if devices else None
    if where is None:
        reason = BindingConstraint(name="memory", message="the programme finds no device with room for the next layer", relaxation="")
        return Infeasible((reason,))
    cuts = [0, *(i for i in range(1, len(where)) if where[i] != where[i - 1]), len(where)]
    segments = tuple(
        Segment(start=a, end=b, node=devices[where[a]].node.name, processor=devices[where[a]].processor) for a, b in pairwise(cuts)
    )
    plan = Plan(model_digest=problem.profile.digest, pipelines=(Pipeline(segments=segments),))
    wrong = violations(plan, problem)
    if wrong:
        unknown = ((w.constraint, f"the programme does not know: {w.message}") for w in wrong)
        return Infeasible(tuple(BindingConstraint(name=name, message=message, relaxation="") for name, message in unknown))
    return judged(plan, problem, 0.0, 0.0, late=False)


def _chain(problem: Problem, devices: list[Site]) -> list[int] | None:
    """The device of each layer."""
    layers, count, free = problem.profile.layers, len(devices), np.array([d.memory_bytes for d in devices], dtype=np.float64)
    margin = 1.0 + problem.constraints.memory_margin
    need = [margin * (layer.weight_bytes + kv_bytes(problem.profile, problem.workload, i, i + 1)) for i, layer in enumerate(layers)]
    runtime = margin * problem.profile.runtime_bytes + 1.0  # the judge rounds up to whole bytes
    compute = np.array([[layer_cost(layer, d, problem.workload).decode_ms for d in devices] for layer in layers])
    entering, between = _hops(problem, devices)

    source = problem.snapshot.network.ingress
    cost: Floats = compute[0] + entering
    if any(d.node.name == source for d in devices):
        cost[[d.node.name != source for d in devices]] = np.inf
    held = np.full(count, runtime + need[0])
    cost[held > free] = np.inf
    used = np.eye(count, dtype=bool)
    steps: list[NDArray[np.intp]] = []
    for i in range(1, len(layers)):
        way = cost[:, None] + between[layers[i - 1].boundary_bytes_per_token]
        way[used] = np.inf  # used[k, j]: the way to k has been on j
        way[:, runtime + need[i] > free] = np.inf
        stay = np.where(held + need[i] <= free, cost, np.inf)
        np.fill_diagonal(way, stay)
        best = np.argmin(way, axis=0)
        cost = way[best, np.arange(count)] + compute[i]
        stays = best == np.arange(count)
        held = np.where(stays, held + need[i], runtime + need[i])
        used = used[best]
        used[np.arange(count), np.arange(count)] = True
        steps.append(best)
    if not np.isfinite(cost).any():
        return None
    at = int(np.argmin(cost))
    where = [at]
    for best in reversed(steps):
        at = int(best[at])
        where.append(at)
    return where[::-1]


def _hops(problem: Problem, devices: list[Site]) -> tuple[Floats, dict[int, Floats]]:
    """Milliseconds of one token's hop from the gateway to each device; and by boundary bytes, from device to device."""
    links, outside = Links(problem.snapshot.network, problem.snapshot.nodes), problem.snapshot.network.ingress
    names = [d.node.name for d in devices]
    entering = np.array([hop(problem, 0, links.quality(outside, n), links.quality(n, outside)).decode_ms for n in names])
    between: dict[int, Floats] = {}
    for boundary in range(1, len(problem.profile.layers)):
        size = problem.profile.layers[boundary - 1].boundary_bytes_per_token
        if size not in between:
            between[size] = np.array(
                [[hop(problem, boundary, links.quality(a, b), links.quality(b, a)).decode_ms for b in names] for a in names]
            )
    return entering, between
