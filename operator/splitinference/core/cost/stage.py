"""How long a segment takes on a place, and what memory it needs there.

Roofline per layer: the larger of FLOPs over compute and bytes over memory bandwidth, both as others leave them; prefill and decode apart.
"""

import math
from dataclasses import dataclass

from splitinference.core.cost.site import Site
from splitinference.core.values.problem import Problem, Workload
from splitinference.core.values.profile import Layer, Profile


@dataclass(frozen=True)
class LayerCost:
    """Milliseconds that one layer takes on one place: for the whole prompt of one sequence, and for one decode step of the batch."""

    prefill_ms: float
    decode_ms: float


def mean_context(workload: Workload) -> float:
    """Tokens attended to by an average decode step: the prompt and half the output, within the context limit."""
    return min(workload.prompt_tokens + workload.output_tokens / 2.0, float(workload.max_context_tokens))


def layer_cost(layer: Layer, site: Site, workload: Workload) -> LayerCost:
    """Time of `layer` on `site`; measured times of that place win over the roofline."""
    factor = site.node.calibration
    tokens, batch = workload.prompt_tokens, workload.batch
    for measured in site.node.layer_times:
        if measured.layer == layer.index and measured.processor == site.processor:
            scale = factor / site.free_share
            return LayerCost(measured.prefill_ms_per_token * tokens * scale, measured.decode_ms_per_token * batch * scale)
    context = mean_context(workload)
    read = layer.weight_bytes if layer.read_bytes_per_token is None else layer.read_bytes_per_token
    prefill_flops = tokens * (layer.flops_per_token + layer.flops_per_token_and_context * (tokens - 1) / 2.0)
    prefill_bytes = min(layer.weight_bytes, read * tokens) + layer.kv_bytes_per_token * tokens
    decode_flops = batch * (layer.flops_per_token + layer.flops_per_token_and_context * context)
    decode_bytes = min(layer.weight_bytes, read * batch) + batch * layer.kv_bytes_per_token * context
    return LayerCost(
        factor * 1e3 * max(prefill_flops / site.flops_per_s, prefill_bytes / site.bandwidth_bytes_per_s),
        factor * 1e3 * max(decode_flops / site.flops_per_s, decode_bytes / site.bandwidth_bytes_per_s),
    )


@dataclass(frozen=True)
class StageCost:
    """What one segment costs on one place. `occupancy_ms`: how long each decode step takes the stage, its share of prefills included."""

    prefill_ms: float
    decode_ms: float
    output_tokens: int
    batch: int

    @property
    def occupancy_ms(self) -> float:
        """Milliseconds for which one step of the batch takes the stage: its decode, and a prompt's prefill spread over the outputs."""
        return self.decode_ms + self.batch * self.prefill_ms / self.output_tokens

    @property
    def busy_ms_per_request(self) -> float:
        """Milliseconds of work that one request brings: its prefill, and its share of the decode steps."""
        return self.prefill_ms + self.output_tokens * self.decode_ms / self.batch


def stage_cost(problem: Problem, site: Site, start: int, end: int) -> StageCost:
    """Time of segment [start, end) on `site`, the server's overhead per step included."""
    workload = problem.workload
    costs = [layer_cost(layer, site, workload) for layer in problem.profile.layers[start:end]]
    overhead = site.node.stage_overhead_ms
    return StageCost(
        math.fsum(c.prefill_ms for c in costs) + overhead,
        math.fsum(c.decode_ms for c in costs) + overhead,
        workload.output_tokens,
        workload.batch,
    )


def kv_bytes(profile: Profile, workload: Workload, start: int, end: int) -> int:
    """Bytes of KV cache of a segment with every sequence at its context limit."""
    return profile.kv_bytes_per_token(start, end) * workload.max_concurrent_sequences * workload.max_context_tokens


def memory_bytes(problem: Problem, start: int, end: int) -> int:
    """What a segment needs in all: weights, KV, runtime, and the margin on top; rounded up."""
    profile = problem.profile
    net = profile.weight_bytes(start, end) + kv_bytes(profile, problem.workload, start, end) + profile.runtime_bytes
    return math.ceil(net * (1.0 + problem.constraints.memory_margin))


def smallest_bytes(problem: Problem) -> int:
    """What the smallest segment of one layer needs, as `memory_bytes` has it."""
    load = problem.workload
    tokens = load.max_concurrent_sequences * load.max_context_tokens
    net = min(layer.weight_bytes + layer.kv_bytes_per_token * tokens for layer in problem.profile.layers) + problem.profile.runtime_bytes
    return math.ceil(net * (1.0 + problem.constraints.memory_margin))


def utilization_after(site: Site, busy_ms_per_request: float, requests_per_s: float) -> float:
    """Utilization of a node by others and by us: we take what others leave for as long as our work runs; at most 1."""
    others = site.node.utilization or 0.0
    return min(1.0, others + (1.0 - others) * min(1.0, requests_per_s * busy_ms_per_request / 1e3))
