"""How far a prediction may be off: the spreads of the figures of all places that a plan uses."""

from splitinference.core.cost.predict import predict
from splitinference.core.values.cluster import Node
from splitinference.core.values.efficiency import PhaseEfficiency
from splitinference.core.values.plan import Plan, Prediction, Ranges
from splitinference.core.values.problem import Problem


def spreads(node: Node) -> tuple[float, float] | None:
    """Spreads of the node's prefill and decode times; of several processors the largest. None where one is not known.

    A spread that was measured here while segments served wins over that of the figures it corrects.
    """
    places = [processor.efficiency for processor in node.processors] or [node.efficiency]
    prefill = _one(node.prefill_calibration_spread, [place.prefill for place in places])
    decode = _one(node.calibration_spread, [place.decode for place in places])
    return None if prefill is None or decode is None else (prefill, decode)


def _one(measured: float | None, phases: list[PhaseEfficiency]) -> float | None:
    if measured is not None:
        return measured
    known = [phase.spread for phase in phases if phase.spread is not None]
    return max(known) if len(known) == len(phases) else None


def ranges(plan: Plan, problem: Problem) -> Ranges | None:
    """The ranges of a plan's prediction; None where the spread of a place that it uses is not known.

    Raises UnknownPlaceError as `predict` does.
    """
    used = {name for segment in plan.segments for name in segment.nodes}
    known = {node.name: spreads(node) for node in problem.snapshot.nodes if node.name in used}
    if any(spread is None for spread in known.values()):
        return None
    low, high = (predict(plan, _scaled(problem, known, power)) for power in (-1.0, 1.0))

    def both(figure: str, least: Prediction = low, most: Prediction = high) -> tuple[float, float]:
        return (getattr(least, figure), getattr(most, figure))

    return Ranges(
        time_to_first_token_ms=both("time_to_first_token_ms"),
        time_per_output_token_ms=both("time_per_output_token_ms"),
        latency_ms=both("latency_ms"),
        bottleneck_ms=both("bottleneck_ms"),
        tokens_per_s=both("tokens_per_s", high, low),
    )


def _scaled(problem: Problem, known: dict[str, tuple[float, float] | None], power: float) -> Problem:
    def scaled(node: Node) -> Node:
        spread = known.get(node.name)
        if spread is None:
            return node
        prefill, decode = spread
        factors = {
            "prefill_calibration": node.prefill_calibration * (1.0 + prefill) ** power,
            "calibration": node.calibration * (1.0 + decode) ** power,
        }
        processors = tuple(
            place.model_copy(
                update={
                    name: factor * (1.0 + more) ** power
                    for name, factor, more in (
                        ("prefill_calibration", place.prefill_calibration, prefill),
                        ("calibration", place.calibration, decode),
                    )
                    if factor is not None
                }
            )
            for place in node.processors
        )
        return node.model_copy(update={**factors, "processors": processors})

    nodes = tuple(scaled(node) for node in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})
