"""Why a plan is as it is, in words with numbers: what it promises, why these nodes were taken, why others were left."""

from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.cost.encoding import in_words
from splitinference.core.cost.objective import value_of
from splitinference.core.cost.ranges import spreads
from splitinference.core.cost.site import free_share, sites
from splitinference.core.cost.stage import memory_bytes, smallest_bytes
from splitinference.core.values.cluster import Node, load_in_words
from splitinference.core.values.plan import Plan, Prediction
from splitinference.core.values.problem import Goal, Problem

UNITS = {
    Goal.LATENCY: "ms (time to first token + time per output token)",
    Goal.BOTTLENECK: "ms in the slowest stage or link",
    Goal.THROUGHPUT: "tokens/s",
    Goal.ENERGY: "J per output token",
    Goal.COST: "per hour",
    Goal.MOVE: "GiB to move",
}
_MIB = 2**20
_MOST_NODES = 20
_MOST_STAGES = 400


def explain(plan: Plan, prediction: Prediction, problem: Problem, proof: str) -> tuple[str, ...]:
    """Sentences about the plan: its value and the `proof`, one for each stage, one for each node left (or their number, if many)."""
    objective = problem.objective
    lines = [f"{objective.goal.value}: {value_of(prediction, problem):.4g} {UNITS[objective.goal]}; {proof}"]
    lines.append(_why_so_many(plan, problem))
    nodes = {node.name: node for node in problem.snapshot.nodes}
    used = {name for segment in plan.segments for name in segment.nodes}
    lines.append(_likely(prediction, [nodes[name] for name in sorted(used)]))
    stages = list(zip(plan.segments, prediction.stages, strict=True))
    for segment, stage in stages[:_MOST_STAGES]:
        where = "+".join(segment.nodes) + (f"/{segment.processor}" if segment.processor else "")
        node = nodes[segment.node]
        free = next((s.memory_bytes for s in sites(node) if s.processor == segment.processor), node.memory_free_bytes)
        has = f"{stage.memory_bytes // _MIB} of {free // _MIB} MiB; {_capacity(node, segment.processor)}{_source(node)}"
        lines.append(
            f"layers [{segment.start}, {segment.end}) on {where}: {stage.prefill_ms:.3g} ms for the prompt, "
            f"{stage.decode_ms:.3g} ms a token, {has}"
        )
    lines.extend(in_words(plan, problem)[:_MOST_STAGES])
    if len(stages) > _MOST_STAGES:
        lines.append(f"and {len(stages) - _MOST_STAGES} more segments of {len(plan.pipelines)} pipelines")
    out = [(node, name, why) for node in problem.snapshot.nodes for name, why in sorted(node.devices_out.items())]
    lines.extend(f"{name} of {node.name} not used: {why}" for node, name, why in out[:_MOST_NODES])
    if len(out) > _MOST_NODES:
        lines.append(f"and {len(out) - _MOST_NODES} more kinds of devices not used")
    left = [node for node in problem.snapshot.nodes if node.name not in used]
    smallest = smallest_bytes(problem)
    lines.extend(f"{node.name} left: {why_left(node, problem, smallest)}" for node in left[:_MOST_NODES])
    if len(left) > _MOST_NODES:
        lines.append(f"and {len(left) - _MOST_NODES} more nodes left")
    unknown = sorted(name for name in used if nodes[name].utilization is None)
    if unknown:
        lines.append(f"utilization of {', '.join(unknown)} is unknown: counted as idle, so the times may be too good")
    return tuple(lines)


def _why_so_many(plan: Plan, problem: Problem) -> str:
    segments = len(plan.pipelines[0].segments)
    whole = memory_bytes(problem, 0, len(problem.profile.layers)) / _MIB
    largest = max((site.memory_bytes for node in problem.snapshot.nodes if not unusable(node, problem) for site in sites(node)), default=0)
    if len(plan.pipelines) > 1:
        return f"{len(plan.pipelines)} pipelines of {', '.join(str(len(p.segments)) for p in plan.pipelines)} segments"
    if segments == 1:
        return f"one segment: the whole model needs {whole:.0f} MiB and fits; no cut would pay for its hop"
    if whole > largest / _MIB:
        return f"{segments} segments: the whole model needs {whole:.0f} MiB, the largest place has {largest / _MIB:.0f} MiB"
    return f"{segments} segments: the whole model would fit in one place ({whole:.0f} MiB), but this is better or asked for"


def _likely(prediction: Prediction, used: list[Node]) -> str:
    found = prediction.ranges
    if found is None:
        unknown = [node.name for node in used if spreads(node) is None]
        return f"no range: the spread of the figures of {', '.join(unknown) or 'a node'} is not known"
    (first, last), (quick, slow) = found.time_to_first_token_ms, found.time_per_output_token_ms
    return f"likely: first token {first:.3g} to {last:.3g} ms, each further token {quick:.3g} to {slow:.3g} ms"


def _source(node: Node) -> str:
    """Where efficiencies come from, and how far times may be off; empty where neither is known."""
    places = node.processors or (node,)
    words = sorted({place.efficiency.source for place in places if place.efficiency.source})
    known = spreads(node)
    if known is not None:
        words.append(f"within {known[0]:.0%} for prompts and {known[1]:.0%} for tokens")
    return f"; {', '.join(words)}" if words else ""


def _capacity(node: Node, processor: str | None = None) -> str:
    """Of the node, or of one place of it."""
    found = [site for site in sites(node) if processor is None or site.processor == processor] or list(sites(node))
    if processor:
        place = next((each for each in node.processors if each.name == processor), None)
        basis = f" ({place.figures})" if place is not None and place.figures else ""
        return f"{found[0].flops_per_s / 1e9:.4g} GFLOP/s and {found[0].bandwidth_bytes_per_s / 1e9:.4g} GB/s{basis}"
    compute, bandwidth = sum(site.flops_per_s for site in found) / 1e9, sum(site.bandwidth_bytes_per_s for site in found) / 1e9
    basis = f" ({node.figures})" if node.figures else ""
    return f"{load_in_words(node)}, {compute:.4g} GFLOP/s and {bandwidth:.4g} GB/s free{basis}"


def why_left(node: Node, problem: Problem, smallest: int) -> str:
    """Why a node has no segment, in words; `smallest`: bytes that the model's smallest segment needs."""
    reason = unusable(node, problem)
    if reason:
        return reason
    free = max(site.memory_bytes for site in sites(node))
    if smallest > free:
        return f"{free // _MIB} MiB free, the smallest segment needs {-(-smallest // _MIB)} MiB"
    bounds = problem.constraints
    if (bounds.pins or bounds.trust) and all(forbidden(node, i, bounds) for i in range(len(problem.profile.layers))):
        return forbidden(node, 0, bounds) or "no layer is allowed there"
    ceiling = bounds.utilization_ceiling
    if ceiling is not None and 1 - free_share(node) > ceiling:
        return f"{load_in_words(node)}, the ceiling is {ceiling:.0%}"
    return f"a plan with it is not better ({_capacity(node)}, {free // _MIB} MiB free)"
