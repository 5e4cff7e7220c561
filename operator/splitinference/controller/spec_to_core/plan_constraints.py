"""From a resource's spec to the core's terms: workload, objective, limits and constraints for a model of so many layers."""

from collections.abc import Collection, Mapping
from datetime import timedelta

from splitinference.controller.api.sections.privacy_spec import PrivacyRule
from splitinference.controller.api.spec import FieldProblem, Rejected, Spec
from splitinference.controller.spec_to_core import token_recovery
from splitinference.core.values.problem import Constraints, Goal, Objective, Pin, Slo, Toleration, TrustRule, Workload
from splitinference.core.values.profile import LinkEncoding


def workload(spec: Spec) -> Workload:
    """What is asked of the model."""
    return Workload(
        prompt_tokens=spec.workload.prompt_tokens,
        output_tokens=spec.workload.output_tokens,
        max_context_tokens=spec.model.max_context_tokens,
        max_concurrent_sequences=spec.model.max_concurrent_sequences,
        adapter_bytes=spec.segments.adapter_memory_mib << 20,
    )


def objective(spec: Spec) -> Objective:
    """What a better plan is. For throughput there are as many pipelines as fit, and each is cut for its slowest stage or link."""
    wanted, weights = spec.objective, spec.objective.weights
    goal = Goal.BOTTLENECK if wanted.goal == "throughput" else Goal(wanted.goal)
    further = tuple(Goal(name) for name in wanted.then)
    return Objective(goal=goal, then=further, utilization_weight=weights.utilization, move_weight=weights.move)


def slo(spec: Spec) -> Slo:
    """Upper limits that a plan must keep."""
    return Slo(
        time_to_first_token_ms=_ms(spec.slo.time_to_first_token),
        time_per_output_token_ms=_ms(spec.slo.time_per_output_token),
    )


def link_encoding(spec: Spec) -> LinkEncoding:
    """How hidden states travel between segments."""
    return LinkEncoding(spec.segments.link_encoding.lower())


def constraints(spec: Spec, layers: int, positions: int | None = None, cuts: Collection[int] | None = None) -> Constraints | Rejected:
    """What a plan must keep, for a model of `layers` layers and `positions` positions (None: no limit), which its engine can cut at `cuts`
    (None: at each boundary).

    Rejected where the spec speaks of layers, positions or cuts that the model does not have.
    """
    problems: list[FieldProblem] = []
    pins: list[Pin] = []
    for index, pin in enumerate(spec.partition.pins):
        if (found := pin.layers.of(layers)) is None:
            problems.append(_outside(f"spec.partition.pins[{index}].layers", pin.layers.text, layers))
        else:
            pins.append(Pin(start=found[0], end=found[1], node=pin.node))
    trust = _trust(spec, layers, problems)
    points = spec.partition.allowed_split_points
    for index, point in enumerate(points or ()):
        if not 0 < point < layers:
            message = f"{point} is not a boundary of the model, which has {layers} layers, so from 1 to {layers - 1}"
            problems.append(FieldProblem(path=f"spec.partition.allowedSplitPoints[{index}]", message=message))
        elif cuts is not None and point not in cuts:
            problems.append(FieldProblem(path=f"spec.partition.allowedSplitPoints[{index}]", message=_no_cut(point, cuts)))
    after = 0 if spec.filter is None else spec.filter.after_layers
    if after >= layers:
        message = f"{after} layers leave nothing to save: the model has {layers}, so at most {layers - 1}"
        problems.append(FieldProblem(path="spec.filter.afterLayers", message=message))
    most = layers if cuts is None else len(cuts) + 1
    if spec.partition.min_segments > most and most < layers:
        message = f"{spec.partition.min_segments} segments cannot be made: the model's engine can cut it into {most} at most"
        problems.append(FieldProblem(path="spec.partition.minSegments", message=message))
    elif spec.partition.min_segments > layers:
        message = f"{spec.partition.min_segments} segments cannot be made of {layers} layers"
        problems.append(FieldProblem(path="spec.partition.minSegments", message=message))
    if positions is not None and spec.model.max_context_tokens > positions:
        message = (
            f"{spec.model.max_context_tokens} is more than the {positions} positions that the model has; set it to at most {positions} "
            "(of a model with longrope, the positions of its first training are served)"
        )
        problems.append(FieldProblem(path="spec.model.maxContextTokens", message=message))
    if problems:
        return Rejected(problems=tuple(problems))
    return Constraints(
        min_segments=spec.partition.min_segments,
        max_segments=spec.partition.max_segments,
        max_nodes=spec.placement.max_nodes,
        split_points=_points(points, cuts, after, layers),
        pins=tuple(pins),
        trust=tuple(trust),
        node_selector=spec.placement.node_selector,
        tolerations=tolerations(spec),
        memory_margin=spec.segments.memory_margin_percent / 100,
        pipelines=spec.replicas,
        max_cost_per_hour=spec.objective.max_cost_per_hour,
        max_watts=spec.objective.max_watts,
    )


def _points(allowed: Collection[int] | None, cuts: Collection[int] | None, after: int, layers: int) -> tuple[int, ...] | None:
    """None: each boundary. A filter over the first `after` layers keeps these in the first segment."""
    points = cuts if allowed is None else allowed
    if points is None:
        return None if after <= 1 else tuple(range(after, layers))
    return tuple(sorted(point for point in points if point >= after))


def _no_cut(point: int, cuts: Collection[int]) -> str:
    if not cuts:
        return f"the model's engine cannot cut it at {point}, nor elsewhere"
    listed = sorted(cuts)
    shown = f"{listed[0]} to {listed[-1]}" if len(listed) == listed[-1] - listed[0] + 1 else ", ".join(map(str, listed[:40]))
    return f"the model's engine cannot cut it at {point}; it can at {shown}"


def _trust(spec: Spec, layers: int, problems: list[FieldProblem]) -> list[TrustRule]:
    """The rules of privacy and those that come from a limit on token recovery; what is wrong with them is added to `problems`."""
    trust: list[TrustRule] = []
    for index, rule in enumerate(spec.privacy.rules):
        if (found := rule.layers.of(layers)) is None:
            problems.append(_outside(f"spec.privacy.rules[{index}].layers", rule.layers.text, layers))
        else:
            trust.append(TrustRule(start=found[0], end=found[1], labels=rule.node_labels))
    leaky = token_recovery.rules(spec.privacy, layers)
    if isinstance(leaky, FieldProblem):
        problems.append(leaky)
    else:
        trust += leaky
    if spec.verification is not None:
        # What the head gives are tokens, which a verifier cannot compare; and the segment with it witnesses what came before.
        because = "verification: a trusted node has to see what the last layers but the head gave"
        trust.append(TrustRule(start=layers - 1, end=layers, labels=spec.privacy.trusted_node_labels, because=because))
    return trust


def tolerations(spec: Spec) -> tuple[Toleration, ...]:
    """Taints that keep no pod of the resource away."""
    return tuple(Toleration(key=t.key, operator=t.operator, value=t.value, effect=t.effect) for t in spec.placement.tolerations)


def text_labels(spec: Spec, layers: int) -> tuple[Mapping[str, str], ...]:
    """The node labels of each rule that covers the first or the last layer: whoever sees text must keep them all, the gateway too."""
    found = [rule.node_labels for rule in spec.privacy.rules if _sees_text(rule, layers)]
    return (*found, spec.privacy.trusted_node_labels) if trust_used(spec) else tuple(found)


def trust_used(spec: Spec) -> Mapping[str, str]:
    """The labels of trusted nodes, where anything depends on them: a limit on token recovery, or verification."""
    used = spec.privacy.max_token_recovery_percent is not None or spec.verification is not None
    return spec.privacy.trusted_node_labels if used else {}


def runtime_class(spec: Spec, layers: int, start: int, end: int) -> str | None:
    """The RuntimeClass that the rules ask of a pod that holds a layer of [start, end), in a model of `layers`; None where they ask none."""
    found = ((rule, rule.layers.of(layers)) for rule in spec.privacy.rules if rule.runtime_class_name is not None)
    return next((rule.runtime_class_name for rule, run in found if run is not None and run[0] < end and start < run[1]), None)


def text_runtime_class(spec: Spec, layers: int) -> str | None:
    """The RuntimeClass that the rules ask of whoever sees text: the gateway."""
    found = (rule.runtime_class_name for rule in spec.privacy.rules if _sees_text(rule, layers))
    return next((name for name in found if name is not None), None)


def _sees_text(rule: PrivacyRule, layers: int) -> bool:
    found = rule.layers.of(layers)
    return found is not None and (found[0] == 0 or found[1] == layers)


def _outside(path: str, text: str, layers: int) -> FieldProblem:
    return FieldProblem(path=path, message=f"{text} is outside of the model: it has the layers 0:{layers}")


def _ms(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds() * 1000
