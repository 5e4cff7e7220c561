"""What the cost model expects of a plan: times, rates, loads."""

import math

from splitinference.core.cost.evaluate import EvaluatedStage, Evaluation, evaluate
from splitinference.core.cost.flow import tokens_per_s
from splitinference.core.cost.site import Site
from splitinference.core.cost.stage import kv_bytes, memory_bytes, sequences_on, utilization_after
from splitinference.core.cost.start import to_load
from splitinference.core.values.plan import Plan, Prediction, StagePrediction
from splitinference.core.values.problem import Goal, Problem


def predict(plan: Plan, problem: Problem) -> Prediction:
    """The prediction of a plan. Raises UnknownPlaceError if the snapshot lacks one of its places."""
    return prediction_of(evaluate(plan, problem), plan, problem)


def prediction_of(laid: Evaluation, plan: Plan, problem: Problem) -> Prediction:
    """The prediction from a plan already laid over its problem."""
    first = max(chain.time_to_first_token_ms for chain in laid.chains)
    each = max(chain.time_per_output_token_ms for chain in laid.chains)
    after = utilizations(laid, problem)
    batch = problem.workload.batch
    if problem.objective.goal is Goal.THROUGHPUT and not problem.limits_paths:
        rate = tokens_per_s(plan, problem)
        bottleneck = 1e3 * batch / rate
    else:
        bottleneck = max((*laid.load.place_ms.values(), *laid.load.link_ms.values()))
        rate = 1e3 * batch * len(laid.chains) / bottleneck
    return Prediction(
        time_to_first_token_ms=first,
        time_per_output_token_ms=each,
        latency_ms=max(
            chain.time_to_first_token_ms + (problem.workload.output_tokens - 1) * chain.time_per_output_token_ms for chain in laid.chains
        ),
        bottleneck_ms=bottleneck,
        tokens_per_s=rate,
        peak_utilization=max(after.values()),
        energy_joules_per_token=_energy(laid, problem),
        cost_per_hour=math.fsum(node.cost_per_hour for name, node in sorted(laid.nodes.items()) if name in after),
        watts=math.fsum(node.busy_watts for name, node in sorted(laid.nodes.items()) if name in after),
        moved_bytes=moved_bytes(plan, problem),
        ingress_ms=laid.chains[0].ingress.decode_ms,
        stages=tuple(_stage(stage, problem, after) for stage in laid.stages),
    )


def _stage(stage: EvaluatedStage, problem: Problem, after: dict[str, float]) -> StagePrediction:
    start, end = stage.segment.held
    sequences = min(sequences_on(problem, site, start, end) for site in stage.sites)
    return StagePrediction(
        weight_bytes=problem.profile.weight_bytes(start, end),
        kv_bytes=kv_bytes(problem.profile, problem.workload, start, end, sequences),
        memory_bytes=memory_bytes(problem, start, end, sequences),
        prefill_ms=stage.prefill_ms,
        decode_ms=stage.decode_ms,
        link_ms=stage.to_next.decode_ms if stage.to_next else 0.0,
        utilization=max(after[name] for name in stage.segment.nodes),
    )


def utilizations(laid: Evaluation, problem: Problem) -> dict[str, float]:
    """Utilization of every node used, by others and by us, 0..1."""
    rate = problem.workload.requests_per_s
    result = {}
    for stage in laid.stages:
        for site in stage.sites:
            result[site.node.name] = utilization_after(site, laid.load.busy_ms[site.node.name], rate)
    return result


def added_watts(site: Site) -> float:
    """Watts that work adds to what the node draws idle."""
    return max(0.0, site.node.busy_watts - site.node.idle_watts)


def _energy(laid: Evaluation, problem: Problem) -> float:
    joules_per_request = math.fsum(
        chain.share * added_watts(site) * cost.busy_ms_per_request / 1e3 / len(stage.sites)
        for chain in laid.chains
        for stage in chain.stages
        for site, cost in zip(stage.sites, stage.costs, strict=True)
    )
    return joules_per_request / problem.workload.output_tokens


def moved_bytes(plan: Plan, problem: Problem) -> int:
    """Weights to load for segments that do not serve now."""
    return sum(size for _, size in to_load(plan, problem))
