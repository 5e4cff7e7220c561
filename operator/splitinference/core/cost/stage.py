"""How long a segment takes on a place, and what memory it needs there.

A layer's time is a sum of its products with weights, its attention, its launches, and in prefills the dequantization of its weights.
Prefill and decode have efficiencies of their own. docs/concepts/cost-model.md has the formulas and what they were fitted on.
"""

import math
from dataclasses import dataclass

from splitinference.core.cost.measured import measured_ms
from splitinference.core.cost.site import Site
from splitinference.core.values.problem import Problem, Workload
from splitinference.core.values.profile import Layer, LayerKind, Profile

DEQUANTIZED_TOKENS = 512
"""Tokens of a prefill for which weights are dequantized once: the usual physical batch of llama.cpp (`--ubatch-size`)."""


@dataclass(frozen=True)
class LayerCost:
    """Milliseconds that one layer takes on one place: for the whole prompt of one sequence, and for one decode step of the batch."""

    prefill_ms: float
    decode_ms: float


def mean_context(workload: Workload) -> float:
    """Tokens attended to by an average decode step: the prompt and half the output, within the context limit."""
    return min(workload.prompt_tokens + workload.output_tokens / 2.0, float(workload.max_context_tokens))


def layer_cost(layer: Layer, site: Site, workload: Workload) -> LayerCost:
    """Time of `layer` on `site`; measured times of that place win over the formula. Factors of both phases are applied."""
    tokens, batch, context = workload.prompt_tokens, workload.batch, mean_context(workload)
    node, share = site.node, site.free_share
    found = [t for t in node.layer_times if t.layer == layer.index and t.processor == site.processor]
    if found:
        prefill, decode = (milliseconds / share for milliseconds in measured_ms(found, tokens, batch, context))
    else:
        prefill, decode = prefill_ms(layer, site, tokens), decode_ms(layer, site, batch, context)
    return LayerCost(site.prefill_calibration * prefill, site.calibration * decode)


def prefill_ms(layer: Layer, site: Site, tokens: int) -> float:
    """Milliseconds for a prompt of `tokens`: the longer of computing and reading, attention, dequantization, launches; without factors."""
    reached, efficiency = site.efficiency.prefill, site.efficiency
    computing = tokens * layer.flops_per_token / (site.flops_per_s * reached.compute)
    reading = _read_bytes(layer, tokens) / (site.bandwidth_bytes_per_s * reached.bandwidth)
    attended = tokens * layer.flops_per_token_and_context * (tokens - 1) / 2.0
    attention = max(attended / site.flops_per_s, layer.kv_bytes_per_token * tokens / site.bandwidth_bytes_per_s) / reached.attention
    dequantizing = 0.0
    if efficiency.dequantized_per_s is not None:
        passes = math.ceil(tokens / DEQUANTIZED_TOKENS)
        dequantizing = passes * layer.quantized_weights / (efficiency.dequantized_per_s * site.free_share)
    return 1e3 * (max(computing, reading) + attention + dequantizing) + _launch_ms(layer, reached.launch_ms) / site.free_share


def decode_ms(layer: Layer, site: Site, batch: int, context: float) -> float:
    """Milliseconds for one step of `batch` sequences that attend to `context` tokens each: computing and reading added, attention,
    launches; without factors."""
    reached = site.efficiency.decode
    computing = batch * layer.flops_per_token / (site.flops_per_s * reached.compute)
    reading = _read_bytes(layer, batch) / (site.bandwidth_bytes_per_s * reached.bandwidth)
    attended, read = (batch * context * each for each in (layer.flops_per_token_and_context, layer.kv_bytes_per_token))
    attention = max(attended / site.flops_per_s, read / site.bandwidth_bytes_per_s) / reached.attention
    return 1e3 * (computing + reading + attention) + _launch_ms(layer, reached.launch_ms) / site.free_share


def _launch_ms(layer: Layer, each: float) -> float:
    """Milliseconds of a layer's launches. An embedding looks up rows: one launch where others have dozens."""
    return 0.0 if layer.kind is LayerKind.EMBEDDING else each


def _read_bytes(layer: Layer, tokens: int) -> float:
    """Bytes of weights read for so many tokens at once: all of them, or of an embedding the rows."""
    return layer.weight_bytes if layer.read_bytes_per_token is None else min(layer.weight_bytes, layer.read_bytes_per_token * tokens)


def no_slower(site: Site) -> tuple[float, ...]:
    """Figures of a place of which a layer's times are rising functions, whatever the layer: a place that has no larger one is no slower.

    For places without measured layer times."""
    prefill, decode, rate = site.efficiency.prefill, site.efficiency.decode, site.efficiency.dequantized_per_s
    result = [0.0 if rate is None else site.prefill_calibration / (rate * site.free_share)]
    for reached, factor in ((prefill, site.prefill_calibration), (decode, site.calibration)):
        for nominal, shares in (
            (site.flops_per_s, (reached.compute, reached.attention)),
            (site.bandwidth_bytes_per_s, (reached.bandwidth, reached.attention)),
        ):
            result += [factor / (nominal * share) for share in shares]
        result.append(factor * reached.launch_ms / site.free_share)
    return tuple(result)


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


def adapter_bytes(profile: Profile, whole: int, start: int, end: int) -> int:
    """Bytes for adapters of a segment, of `whole` bytes for the model: its blocks' part; each block's is rounded up."""
    each = -(-whole // max(1, sum(layer.kind is LayerKind.BLOCK for layer in profile.layers)))
    return each * sum(layer.kind is LayerKind.BLOCK for layer in profile.layers[start:end])


def memory_bytes(problem: Problem, start: int, end: int) -> int:
    """What a segment needs in all: weights, KV, adapters, runtime, and the margin on top; rounded up."""
    profile = problem.profile
    net = profile.weight_bytes(start, end) + kv_bytes(profile, problem.workload, start, end) + profile.runtime_bytes
    if problem.workload.adapter_bytes:
        net += adapter_bytes(profile, problem.workload.adapter_bytes, start, end)
    return math.ceil(net * (1.0 + problem.constraints.memory_margin))


def smallest_bytes(problem: Problem) -> int:
    """What the smallest segment of one layer needs, as `memory_bytes` has it."""
    load = problem.workload
    tokens = load.max_concurrent_sequences * load.max_context_tokens
    profile = problem.profile
    each = (
        layer.weight_bytes + layer.kv_bytes_per_token * tokens + adapter_bytes(profile, load.adapter_bytes, layer.index, layer.index + 1)
        for layer in profile.layers
    )
    net = min(each) + profile.runtime_bytes
    return math.ceil(net * (1.0 + problem.constraints.memory_margin))


def utilization_after(site: Site, busy_ms_per_request: float, requests_per_s: float) -> float:
    """Utilization of a node by others and by us: we take what others leave for as long as our work runs; at most 1."""
    others = site.node.utilization or 0.0
    return min(1.0, others + (1.0 - others) * min(1.0, requests_per_s * busy_ms_per_request / 1e3))
